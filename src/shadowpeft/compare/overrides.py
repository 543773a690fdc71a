"""The settings of a method that a study may set in place of the defaults."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from peft import LoraConfig
from peft import ShadowConfig as PeftShadowConfig

from shadowpeft.checked_fields import nearest
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.search_space import OURS
from shadowpeft.compare.study import Study
from shadowpeft.config import ShadowConfig
from shadowpeft.errors import ConfigError

_CONFIGS: dict[str, Any] = {
    "lora": LoraConfig,
    "dora": LoraConfig,
    "peft-shadow": PeftShadowConfig,
    **dict.fromkeys(OURS, ShadowConfig),
}
_NO_OVERRIDES = (
    # The study decides these.
    "task_type", "peft_type", "use_dora", "inference_mode",
    # PEFT records in these where a saved adapter came from.
    "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    # PEFT needs these for what a study does not do: other runtimes, and passes over data before training.
    "runtime_config", "megatron_config", "megatron_core", "arrow_config", "eva_config", "corda_config",
    "lora_ga_config",
)  # fmt: skip
# What makes a method what it is.
_FIXED = {"shadow-frozen": {"train_backbone": False}}


def known_settings(method: str) -> list[str]:
    """List the settings of a method that a study may set."""
    if method not in _CONFIGS:
        return []
    decided = (*_NO_OVERRIDES, *_FIXED.get(method, {}))
    return [entry.name for entry in dataclasses.fields(_CONFIGS[method]) if entry.name not in decided]


def refuse_unknown(method: str, given: Iterable[str]) -> None:
    """Refuse settings that a method does not have.

    Raises:
        ConfigError: names the first one, and what there is.
    """
    known = known_settings(method)
    for name in given:
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "it has none"
            raise ConfigError(
                f"overrides of {method}: unknown setting {name!r}{nearest(name, known)}; {there}"
            )


def overrides(cell: Cell, study: Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the study sets for the cell's method, and apart from it the cell's alpha.

    No size depends on alpha, so that sizes are matched without it, once for all trials.

    Raises:
        ConfigError: a setting is unknown, or the study sets the alpha that it searches for.
    """
    given = {name: _whole(value) for name, value in study.overrides.get(cell.method, {}).items()}
    refuse_unknown(cell.method, given)
    alpha = "shadow_alpha" if cell.method == "peft-shadow" else "alpha"
    searched = {}
    if cell.alpha is not None and alpha in known_settings(cell.method):
        searched = {alpha: cell.alpha}
    if searched and alpha in given:
        raise ConfigError(
            f"overrides of {cell.method} set {alpha}, which is searched for; set it under search instead"
        )
    if cell.method == "shadow-paper":
        given = {"variant": "paper", **given}
    return {**given, **_FIXED.get(cell.method, {})}, searched


def _whole(value: Any) -> Any:
    """Return 8 for 8.0, which a study file may hold in its place."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
