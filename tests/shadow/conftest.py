"""The families as cases, for the tests of `shadow`."""

from helpers.family_cases import case, classifier, config, model_type, shadowed  # noqa: F401 - fixtures
