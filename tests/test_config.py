"""Settings: defaults per variant, and one clear sentence for everything that is wrong."""

import pytest

from shadowpeft import ConfigError, ShadowConfig, UserError, attach


def test_defaults_follow_the_variant():
    """Catches one variant's defaults leaking into another: the published ones are not ours to change."""
    sizes = {"normed": (16, 10, 1), "paper": (16, 10, 1), "peft": (8, 8, 0)}
    strengths = {"normed": (0.6, 0.0, 0.5), "paper": (0.1, 0.2, 0.05), "peft": (0.1, 0.2, 0.05)}
    for variant in sizes:
        config = ShadowConfig(variant=variant).resolved()
        assert (config.r, config.update_width, config.inject_from) == sizes[variant]
        assert (config.alpha, config.dropout, config.shadow_loss_weight) == strengths[variant]
        assert config.shadow_distil == 0
    assert ShadowConfig().variant == "normed"
    assert ShadowConfig(variant="peft", r=4).resolved().update_width == 4, "PEFT's update width follows r"


def test_round_trip_through_a_mapping():
    config = ShadowConfig(r=3, alpha=0.4, shadow_layers=2, shadow_distil=0.25)
    assert ShadowConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("key", "nearest"), [("shadow_layer", "shadow_layers"), ("droput", "dropout"), ("lora_r", None)]
)
def test_an_unknown_key_is_named_with_its_nearest(key, nearest):
    with pytest.raises(ConfigError, match=f"unknown setting '{key}'") as caught:
        ShadowConfig.from_dict({key: 1})
    assert nearest is None or f"did you mean '{nearest}'" in str(caught.value)


WRONG = [
    {"r": 0},
    {"r": 1.5},
    {"r": True},
    {"dropout": 1.0},
    {"dropout": -0.1},
    {"variant": "papr"},
    {"alpha": "x"},
    {"shadow_loss_weight": -1},
    {"shadow_distil": -0.1},
    {"shadow_distil": 1.1},
    {"shadow_distil": float("nan")},
    {"shadow_distil": True},
    {"shadow_distil": None},
    {"inject_from": -1},
    {"distil_loss": "tv"},
    {"distil_loss": "lk"},
]


def test_a_loss_that_nothing_is_learnt_by_is_refused():
    """Catches a setting that is accepted and not applied."""
    with pytest.raises(ConfigError, match="shadow_distil is 0; set it above 0"):
        ShadowConfig(distil_loss="lk")
    assert ShadowConfig(distil_loss="lk", shadow_distil=0.5).resolved().distil_loss == "lk"


@pytest.mark.parametrize("wrong", WRONG)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ShadowConfig(**wrong)


def test_a_share_beyond_1_is_told_in_one_sentence():
    with pytest.raises(ConfigError, match=r"^shadow_distil must be from 0 to 1, got 1\.5$"):
        ShadowConfig(shadow_distil=1.5)


def test_settings_that_do_not_fit_the_base_are_refused(base):
    """Catches a setting that is accepted and not applied."""
    with pytest.raises(ConfigError, match="no block would be adapted"):
        attach(base, ShadowConfig(inject_from=4))
    with pytest.raises(UserError, match="at most the base's 4"):
        attach(base, ShadowConfig(shadow_layers=5))


def test_a_number_beyond_any_model_is_refused():
    """Catches an adapter's file with a damaged number that is accepted without a word."""
    for name, value in (("alpha", 1e300), ("alpha", 10**400), ("r", 10**400), ("shadow_loss_weight", 1e300)):
        with pytest.raises(ConfigError, match=f"^{name} must be "):
            ShadowConfig(**{name: value})


@pytest.mark.parametrize("key", ["modules_to_save", "trainable_token_indices", "shadow_hidden_size"])
def test_what_peft_has_and_we_do_not_is_refused_by_name(key):
    """Catches a `TypeError` of Python's where a user of PEFT should read what to do."""
    for make in (ShadowConfig, lambda **values: ShadowConfig.from_dict(values)):
        with pytest.raises(ConfigError, match=f"'{key}' is a setting of PEFT's.*attach"):
            make(**{key: 8})
    with pytest.raises(ConfigError, match="did you mean 'dropout'"):
        ShadowConfig(droput=0.1)
