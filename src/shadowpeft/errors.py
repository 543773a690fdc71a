"""What a user can do wrong, one type each, so that a program can tell them apart and the command line can print one sentence."""


class UserError(ValueError):
    """Something the caller asked for cannot be done; the message says what was expected, what was got and what to do."""


class ConfigError(UserError):
    """A setting is unknown, out of range or contradicts another."""


class UnsupportedModelError(UserError):
    """The base or shadow model is of a family, class or shape that `arch` does not list."""


class CheckpointError(UserError):
    """A saved adapter or checkpoint is missing, damaged, written for another base, or cannot be written."""


class DataError(UserError):
    """A data file, row or label cannot be used; the message names the file and line."""
