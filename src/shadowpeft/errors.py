"""What a user can do wrong, one type each.

A program can catch one of them; the command line prints its message as one sentence.
"""


class UserError(ValueError):
    """A request that cannot be met; the message says what was expected, what was got and what to do."""


class ConfigError(UserError):
    """A setting that is unknown, out of range or in contradiction to another."""


class UnsupportedModelError(UserError):
    """A base or shadow model of a family, class or shape that `arch` does not list."""


class CheckpointError(UserError):
    """A saved adapter or checkpoint that is missing, damaged, of another base, or cannot be written."""


class DataError(UserError):
    """A data file, row or label that cannot be used; the message names the file and line."""


def is_torch_write_failure(error: BaseException) -> bool:
    """Return whether torch's file writer failed, which reports a full disk as a plain `RuntimeError`."""
    # The last comes if a file is so small that the disk is found full only when it is closed.
    said = ("PytorchStreamWriter", "inline_container", "iostream error")
    return any(words in str(error) for words in said)
