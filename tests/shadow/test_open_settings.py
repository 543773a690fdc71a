"""The values of settings that were left open."""

from typing import Any

import pytest
from helpers.families import TINY, attached, tiny_config, tiny_model

from shadowpeft import ConfigError, ShadowConfig, arch
from shadowpeft.shadow import explicit, implicit
from shadowpeft.shadow.open_settings import left_open, settle


@pytest.mark.parametrize("model_type", TINY)
def test_our_variant_takes_a_quarter_of_the_mlp_and_the_published_ones_all_of_it(model_type: str) -> None:
    """Catches a default that a family reads elsewhere, or that reaches the published variants."""
    whole = arch.mlp_width(tiny_model(model_type).config)

    def width(**settings: Any) -> int | None:
        model = attached(tiny_model(model_type), ShadowConfig(**settings))
        return arch.mlp_width(model.adapters["default"].shadow.backbone.config)

    assert width(variant="paper") == width(variant="peft") == whole
    if whole is None:
        return
    own = width()
    assert own is not None
    assert own % 8 == 0
    assert abs(own - whole / 4) < 8
    assert width(shadow_intermediate_size=24) == 24


def test_how_strong_a_fresh_shadow_is() -> None:
    """Catches a pretrained shadow at a strength that it was never measured with, and a wish that is not
    heard.
    """

    def alpha(given: bool, **settings) -> float:
        other = tiny_model("llama", seed=1) if given else None
        return (
            attached(tiny_model("llama"), ShadowConfig(**settings), shadow=other)
            .adapters["default"]
            .settings.alpha
        )

    assert [alpha(False), alpha(True), alpha(True, alpha=0.7), alpha(True, variant="paper")] == [
        0.6,
        0.3,
        0.7,
        0.1,
    ]


def test_whose_state_is_brought_to_unit_size() -> None:
    """Catches a random shadow that loses the size it learns, a published variant that is changed, and a wish
    that is not heard.
    """

    def unit_state(given: bool, **settings) -> bool:
        other = tiny_model("llama", seed=1) if given else None
        return (
            attached(tiny_model("llama"), ShadowConfig(**settings), shadow=other)
            .adapters["default"]
            .settings.unit_state
        )

    assert [unit_state(False), unit_state(True)] == [False, True]
    assert [unit_state(False, unit_state=True), unit_state(True, unit_state=False)] == [True, False]
    assert [unit_state(True, variant=variant) for variant in ("paper", "peft")] == [False, False]
    with pytest.raises(
        ConfigError, match="unit_state belongs to the variant 'normed', got it with 'paper'; leave it out"
    ):
        ShadowConfig(variant="paper", unit_state=True)
    with pytest.raises(ConfigError, match="unit_state must be true or false, got 1"):
        ShadowConfig(unit_state=1)


def test_what_was_asked_for_is_kept():
    """Catches a default that replaces a wish, and one that is open still."""
    asked = ShadowConfig(
        r=3, update_width=4, alpha=0.2, dropout=0.1, shadow_loss_weight=0.0, inject_from=2, shadow_layers=2,
        shadow_intermediate_size=24, unit_state=True, output_gains=False, shadow_distil=0.4,
    )  # fmt: skip
    settled = settle(tiny_config("gemma3_text"), asked)
    assert settled.to_dict() == asked.to_dict()
    assert settle(tiny_config("gemma3_text"), settled) == settled, "nothing is left open"


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_every_setting_that_no_shape_shows_has_a_value(variant):
    """Catches an adapter whose file would mean something else when a default changes."""
    asked = ShadowConfig(variant=variant)
    assert left_open(asked) == ["alpha", "dropout", "shadow_loss_weight", "unit_state", "output_gains"]
    settled = settle(tiny_config("llama"), asked)
    assert left_open(settled) == []
    assert None not in (settled.r, settled.update_width, settled.inject_from)


def test_the_folder_of_a_shadow_gives_its_sizes():
    """Catches sizes that are taken from a model, whose own they are, or not from a folder; one block is the
    default.
    """
    base = tiny_model("llama")
    wide = implicit(base, ShadowConfig(shadow_layers=2, shadow_intermediate_size=24).resolved())
    found = settle(base.config, ShadowConfig(), wide, folder="somewhere")
    assert (found.shadow_layers, found.shadow_intermediate_size, found.shadow_head_dim) == (2, 24, 8)
    assert settle(base.config, ShadowConfig(shadow_layers=2), wide, folder="somewhere") == found
    with pytest.raises(
        ConfigError, match="shadow_layers is set to 3, and the shadow in somewhere has 2; leave"
    ):
        settle(base.config, ShadowConfig(shadow_layers=3), wide, folder="somewhere")
    model = explicit(base, tiny_model("llama", seed=1))
    assert settle(base.config, ShadowConfig(), model).shadow_intermediate_size is None


def test_a_size_is_refused_beside_a_model_that_has_another():
    """Catches a size that is asked for and not applied, since the model given as the shadow has its own."""
    base = tiny_model("llama")
    model = explicit(base, tiny_model("llama", seed=1))
    blocks = model.backbone.config.num_hidden_layers
    assert settle(base.config, ShadowConfig(shadow_layers=blocks), model).shadow_layers == blocks
    with pytest.raises(
        ConfigError, match=f"shadow_layers is set to {blocks + 1}, and the model given as the"
    ):
        settle(base.config, ShadowConfig(shadow_layers=blocks + 1), model)
