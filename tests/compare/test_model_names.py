"""Short names of models."""

import pytest

from shadowpeft.compare.model_names import short


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("models/gemma-270m", "org/qwen-0.5b"), ["gemma-270m", "qwen-0.5b"]),
        (("./gemma-270m",), ["gemma-270m"]),
        (("src/embedded/model",), ["embedded/model"]),
        (("a/one/model", "two/model/", "org/qwen"), ["one/model", "two/model", "qwen"]),
        (("a/one/model", "b/one/model"), ["a/one/model", "b/one/model"]),
        (("one/qwen", "two/qwen", "c/d/e/gemma"), ["one/qwen", "two/qwen", "e/gemma"]),
        (("qwen", "one/qwen"), ["qwen", "one/qwen"]),
        (("qwen", "./qwen"), ["qwen", "./qwen"]),
        (("model",), ["model"]),
        ((".", "/"), [".", "/"]),
    ],
)
def test_labels_of_models_tell_them_apart(names, labels):
    """Catches two models under one name, a name that says nothing, and more of a path than it takes."""
    assert [short(names)(name) for name in names] == labels
    assert short(names)("of/another/study") == "of/another/study"
