"""Values for the settings that a user left open, from the base, the shadow and the variant."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from shadowpeft import arch
from shadowpeft.config import ResolvedConfig, ShadowConfig
from shadowpeft.errors import ConfigError
from shadowpeft.shadow.network import Shadow, sizes_of

# Pretrained shadows were measured with this value (results/quality/large_base, results/method/search), and
# random ones alone with the variant's own 0.6.
PRETRAINED_ALPHA = 0.3

# Settings that change what an adapter computes and that the shape of no tensor shows. A saved adapter must
# name them, or it would mean something else when a default changes.
UNSEEN = ("alpha", "dropout", "shadow_loss_weight", "unit_state", "output_gains")


def settle(
    base: PretrainedConfig,
    config: ShadowConfig,
    pretrained: Shadow | None = None,
    folder: str | Path | None = None,
) -> ResolvedConfig:
    """Return the settings of an adapter with a value for each that was left open.

    A value comes from the first of these that has one: the settings as given, the folder of a pretrained
    shadow (its sizes), the base and the kind of shadow (variant `normed` alone), the variant.

    Args:
        base: configuration of the base model.
        config: the settings as given.
        pretrained: the shadow that the adapter starts from, `None` for a random one of the base's own
            architecture.
        folder: the folder that `pretrained` was read from, `None` where it is another model's decoder.

    Raises:
        ConfigError: the settings ask for another size than the pretrained shadow has.
    """
    given = {name: value for name, value in config.to_dict().items() if value is not None}
    found: dict[str, Any] = {}
    if config.variant == "normed":
        found = _found_by_normed(base, is_pretrained=pretrained is not None)
    sizes: Mapping[str, int | None] = {}
    if pretrained is not None:
        source = "the model given as the shadow" if folder is None else f"the shadow in {folder}"
        _refuse_other_sizes(config, pretrained, source)
        if pretrained.borrows:
            sizes = sizes_of(pretrained.backbone.config)
    # The folder's sizes come last: its number of blocks must replace the default, which is a number as well.
    return ShadowConfig.from_dict({**found, **given, **sizes}).resolved()


def left_open(config: ShadowConfig) -> list[str]:
    """Name the settings of `UNSEEN` that have no value."""
    values = config.to_dict()
    return [name for name in UNSEEN if values[name] is None]


def _found_by_normed(base: PretrainedConfig, is_pretrained: bool) -> dict[str, Any]:
    """Return the values of the variant `normed` that follow from the base and from how the shadow starts."""
    found: dict[str, Any] = {
        "output_gains": bool(arch.family_of_config(base).norms_behind(base)),
        # The states of a pretrained shadow can have any size; a random one starts at unit size.
        "unit_state": is_pretrained,
    }
    width = arch.mlp_width(base)
    if is_pretrained:
        found["alpha"] = PRETRAINED_ALPHA
    elif width is not None:
        # A quarter of the base's, rounded down to a multiple of 8.
        found["shadow_intermediate_size"] = max(8, width // 32 * 8)
    return found


def _refuse_other_sizes(config: ShadowConfig, shadow: Shadow, source: str) -> None:
    """Raise if the settings ask for a size that a pretrained shadow does not have.

    Raises:
        ConfigError: names the setting. One block, the default, counts as not asked for.
    """
    asked, default = config.to_dict(), ShadowConfig().to_dict()
    for name, size in sizes_of(shadow.backbone.config).items():
        if asked[name] not in (default[name], size):
            raise ConfigError(f"{name} is set to {asked[name]}, and {source} has {size}; leave {name} out")
