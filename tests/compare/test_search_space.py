"""What a search may try: the same number of settings for every method, each of them of its own."""

import pytest

from shadowpeft.compare.search_space import (
    METHODS,
    OURS,
    SEARCH,
    SHADOWS,
    built_in,
    check_trials,
    refuse_unknown,
)
from shadowpeft.errors import ConfigError

RATE = {"learning_rate": 1e-3}


def test_every_method_has_as_many_built_in_settings():
    """Catches a method that is searched more than another, and a setting that is tried twice."""
    assert set(SEARCH) == set(METHODS)
    assert {len(settings) for settings in SEARCH.values()} == {8}
    assert all(len(set(settings)) == len(settings) for settings in SEARCH.values())
    assert {name for name in METHODS if SEARCH[name][0].alpha is not None} == set(SHADOWS)
    backbones = {name for name in METHODS if SEARCH[name][0].backbone_learning_rate is not None}
    assert backbones == {"shadow-explicit"}


def test_new_heads_have_a_rate_of_their_own():
    """Catches LoRA's heads trained at the rate of its body, which is far too low for them."""
    for method in METHODS:
        plain, classified = (built_in(method, has_new_head) for has_new_head in (False, True))
        assert plain == list(SEARCH[method])
        head = None if method == "base" else 3e-3
        assert [each.head_learning_rate for each in classified] == [head] * 8
        assert [each._replace(head_learning_rate=None) for each in classified] == plain


def test_a_search_within_the_rules_is_taken():
    check_trials("lora", None, trials=8)
    check_trials("lora", [RATE, {"learning_rate": 3e-3}], trials=2)
    check_trials("peft-shadow", [{**RATE, "alpha": 0.3}], trials=1)
    for method in OURS:
        check_trials(method, [{**RATE, "alpha": 0.3, "backbone_learning_rate": 1e-5}], trials=1)
    for method in METHODS:
        if method != "base":
            check_trials(method, [{**RATE, "head_learning_rate": 3e-3}], trials=1)


@pytest.mark.parametrize(
    ("method", "settings", "trials", "message"),
    [
        ("lora", None, 9, "trials must be 8 or less with the built-in settings, got 9"),
        ("lora", [RATE], 2, "search.lora must list 2 settings, got 1 settings"),
        ("lora", RATE, 1, "search.lora must list 1 settings, got {'learning_rate'"),
        ("lora", [RATE, dict(RATE)], 2, "search.lora lists {'learning_rate': 0.001} twice"),
        ("lora", [{"alpha": 1.0}], 1, "search.lora must list settings such as {learning_rate: 0.001}"),
        ("lora", [{**RATE, "alpha": 1.0}], 1, "nothing to search called 'alpha'"),
        ("shadow", [{**RATE, "alhpa": 1.0}], 1, "called 'alhpa' (did you mean 'alpha'?)"),
        ("peft-shadow", [{**RATE, "backbone_learning_rate": 1e-5}], 1, "can be searched for shadow, shadow-"),
        ("base", [{**RATE, "head_learning_rate": 3e-3}], 1, "of the bare base the head alone is trained"),
        (
            "lora",
            [{**RATE, "head_learning_rate": 0}],
            1,
            "head_learning_rate must be a number above 0, got 0",
        ),
        ("lora", [{"learning_rate": 0}], 1, "learning_rate must be a number above 0, got 0"),
        ("lora", [{"learning_rate": True}], 1, "learning_rate must be a number above 0, got True"),
        ("lora", [{"learning_rate": float("inf")}], 1, "learning_rate must be a number above 0, got inf"),
        ("lora", [{"learning_rate": float("nan")}], 1, "learning_rate must be a number above 0, got nan"),
    ],
)
def test_a_search_that_is_unequal_or_malformed_is_refused(method, settings, trials, message):
    with pytest.raises(ConfigError) as refused:
        check_trials(method, settings, trials)
    assert message in str(refused.value)


def test_an_unknown_name_is_refused_with_the_known_ones():
    refuse_unknown("lora", METHODS, "method")
    with pytest.raises(
        ConfigError, match=r"no method 'lroa' \(did you mean 'lora'\?\); the methods are: base"
    ):
        refuse_unknown("lroa", METHODS, "method")
