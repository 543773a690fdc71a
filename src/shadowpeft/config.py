"""The one dataclass of settings: what a shadow is made of and how strongly it acts."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shadowpeft.errors import ConfigError
from shadowpeft.settings import nearest

Variant = Literal["normed", "paper", "peft"]
# What computes the boundaries; see `ops/choice.py`. No setting of an adapter: any of them computes the same.
Impl = Literal["auto", "reference", "compile", "triton"]

# Ours from the measurements in results/, the published ones from the paper's table 7 and PEFT's ShadowConfig.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "normed": {
        "r": 16,
        "update_width": 10,
        "inject_from": 1,
        "alpha": 0.6,
        "dropout": 0.0,
        "shadow_loss_weight": 0.5,
    },
    "paper": {
        "r": 16,
        "update_width": 10,
        "inject_from": 1,
        "alpha": 0.1,
        "dropout": 0.2,
        "shadow_loss_weight": 0.05,
    },
    "peft": {
        "r": 8,
        "update_width": 8,
        "inject_from": 0,
        "alpha": 0.1,
        "dropout": 0.2,
        "shadow_loss_weight": 0.05,
    },
}


# Beyond any model; a number from a damaged file is refused before anything is built from it.
_LARGEST = 2**31


@dataclass(frozen=True)
class ShadowConfig:
    """Settings of one adapter. `None` stands for the variant's value, and for the shadow's sizes for the base model's.

    Args:
        variant: `normed`, ours, compares shadow and hidden state at one scale; `paper` computes figure 2 of arXiv 2604.19254 as
            the authors' package does; `peft` computes what Hugging Face PEFT does.
        r: rank of the injection, `W_down` and `W_up` of eq. 3.
        update_width: hidden width of the update's networks T and G (eq. 5 and 6).
        alpha: strength of the injection (eq. 4); in the variant `normed` 0.6, beside a pretrained shadow 0.3.
        dropout: probability, in training, of dropping values of the injection (and of T in the variant `paper`).
        shadow_loss_weight: lambda of eq. 9, the weight of the loss on `head(s^(0))`.
        inject_from: index (from 0) of the first block whose input is corrected; blocks before it run without gradients, and the shadow
            state still reads what they put out.
        shadow_layers: number of blocks of an implicit shadow.
        shadow_intermediate_size: MLP width of the shadow's blocks; in the variant `normed` a quarter of the base's unless set.
        shadow_attention_heads: attention heads of the shadow's blocks.
        shadow_key_value_heads: key and value heads of the shadow's blocks.
        shadow_head_dim: width of one attention head of the shadow's blocks.
        unit_state: in the variant `normed`, whether s^(0) is brought to unit rms where the boundaries begin to read it; unless set, it is
            for a pretrained shadow, whose states are of any size, and not for a random one, which begins at that size.
        output_gains: in the variant `normed`, whether a correction is spread over channels as the norms behind a block's attention and MLP
            spread what the block writes; unless set, it is where the base has such norms (Gemma 2 and 3, OLMo 2).
        shadow_distil: share of the shadow's loss, from 0 to 1, that is learnt from the attached model's own answer instead of from the
            labels. It counts in training alone: what an adapter computes does not depend on it.

    Raises:
        ConfigError: a value is out of range.
    """

    variant: Variant = "normed"
    r: int | None = None
    update_width: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    shadow_loss_weight: float | None = None
    inject_from: int | None = None
    shadow_layers: int = 1
    shadow_intermediate_size: int | None = None
    shadow_attention_heads: int | None = None
    shadow_key_value_heads: int | None = None
    shadow_head_dim: int | None = None
    unit_state: bool | None = None
    output_gains: bool | None = None
    shadow_distil: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.variant, str) or self.variant not in _DEFAULTS:
            raise ConfigError(
                f"variant must be 'normed', 'paper' or 'peft', got {self.variant!r}{nearest(self.variant, _DEFAULTS)}"
            )
        for name, value in dataclasses.asdict(self).items():
            _check(name, value)
        for name in _SWITCHES:
            if vars(self)[name] and self.variant != "normed":
                raise ConfigError(
                    f"{name} belongs to the variant 'normed', got it with {self.variant!r}; leave it out"
                )

    def resolved(self) -> "ResolvedConfig":
        """Return the settings with the variant's defaults filled in."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        r = {"update_width": given["r"]} if self.variant == "peft" and "r" in given else {}
        return ResolvedConfig(**{**_DEFAULTS[self.variant], **r, **given})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for JSON or YAML."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ShadowConfig":
        """Build the settings from a mapping such as a parsed file.

        Raises:
            ConfigError: a key is not a setting (the message names the nearest one) or a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"unknown setting {key!r}{nearest(key, known)}; known settings: {', '.join(known)}"
                )
        return cls(**values)


@dataclass(frozen=True)
class ResolvedConfig(ShadowConfig):
    """A `ShadowConfig` whose variant-dependent settings are numbers."""

    r: int = 0
    update_width: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    shadow_loss_weight: float = 0.0
    inject_from: int = 0
    unit_state: bool = False
    output_gains: bool = False


_SWITCHES = ("unit_state", "output_gains")
_OPTIONAL = (
    "r",
    "update_width",
    "alpha",
    "dropout",
    "shadow_loss_weight",
    "inject_from",
    "shadow_intermediate_size",
    "shadow_attention_heads",
    "shadow_key_value_heads",
    "shadow_head_dim",
    *_SWITCHES,
)


def _check(name: str, value: object) -> None:
    """Refuse a value of the wrong type or range before anything is built from it."""
    if name == "variant" or (value is None and name in _OPTIONAL):
        return
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, got {value!r}")
        return
    if name in ("alpha", "dropout", "shadow_loss_weight", "shadow_distil"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name} must be a number, got {value!r}")
        if not -_LARGEST < value < _LARGEST:  # nor NaN
            raise ConfigError(f"{name} must be a finite number, got {value!r}")
        if name == "dropout" and not 0 <= value < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {value!r}")
        if name == "shadow_loss_weight" and value < 0:
            raise ConfigError(f"shadow_loss_weight must be 0 or more, got {value!r}")
        if name == "shadow_distil" and not 0 <= value <= 1:
            raise ConfigError(f"shadow_distil must be from 0 to 1, got {value!r}")
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    least = 0 if name == "inject_from" else 1
    if not least <= value < _LARGEST:
        raise ConfigError(f"{name} must be {least} or more (and below {_LARGEST}), got {value!r}")


def refuse_depth(inject_from: int, blocks: int) -> None:
    """Refuse corrections that would begin behind a base's last block.

    Raises:
        ConfigError: says how many blocks there are and what to set.
    """
    if inject_from >= blocks:
        raise ConfigError(
            f"inject_from must be below the base's {blocks} blocks, got {inject_from}: no block would be adapted; "
            f"set it to at most {blocks - 1}"
        )
