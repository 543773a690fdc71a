"""The one dataclass of settings: what a shadow is made of and how strongly it acts."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from shadowpeft.checked_fields import check, nearest, within
from shadowpeft.errors import ConfigError

Variant = Literal["normed", "paper", "peft"]
DistilLoss = Literal["kl", "lk"]
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


# Settings of PEFT's that have no counterpart here, with what to do.
_ELSEWHERE = {
    "modules_to_save": "heads and embeddings belong to the base, which stays frozen (a classifier's heads "
    "train with the shadow anyway); train them in the base first, then attach",
    "trainable_token_indices": "embeddings belong to the base, which stays frozen; resize the base and train "
    "the new rows in it first, then attach",
    "shadow_hidden_size": "a random shadow reads the base's embeddings and so has the base's width; for a "
    "narrower one give a narrower pretrained model, attach(base, shadow=model)",
    "shadow_model": "give it to attach(base, shadow=...), or as --shadow",
    "share_embeddings": "a random shadow always reads the base's embeddings, and a model given as the shadow "
    "its own",
    "layers_to_transform": "all blocks from inject_from on are adapted; set inject_from",
    "target_modules": "all blocks from inject_from on are adapted; set inject_from",
    "exclude_modules": "all blocks from inject_from on are adapted; set inject_from",
    "layers_pattern": "the blocks of a family are known; leave it out",
    "init_weights": "a fresh adapter always starts as one that changes nothing; leave it out",
    "task_type": "it follows from the base's class; leave it out",
    "inference_mode": "load with is_trainable=False",
    "shadow_alpha": "it is called alpha here",
    "shadow_dropout": "it is called dropout here",
    "shadow_num_hidden_layers": "it is called shadow_layers here",
    "shadow_num_attention_heads": "it is called shadow_attention_heads here",
    "update_hidden_size": "it is called update_width here",
    "auxiliary_loss_weight": "it is called shadow_loss_weight here",
}


# Larger than in any model: a number from a damaged file is refused before anything is built from it.
LARGEST = 2**31
Settings = TypeVar("Settings", bound=type)


def _refuses_unknown(cls: Settings) -> Settings:
    """Make a settings class refuse an unknown keyword as a mapping's key is refused, in one sentence."""
    stock = cls.__init__  # type: ignore[misc]

    @functools.wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        _refuse_unknown(cls, kwargs)
        stock(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[misc]
    return cls


def _refuse_unknown(cls: type[Any], keys: Iterable[str]) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    for key in keys:
        if key in _ELSEWHERE:
            raise ConfigError(f"{key!r} is a setting of PEFT's, not of shadowpeft: {_ELSEWHERE[key]}")
        if key not in known:
            raise ConfigError(
                f"unknown setting {key!r}{nearest(key, known)}; known settings: {', '.join(known)}"
            )


@_refuses_unknown
@dataclass(frozen=True)
class ShadowConfig:
    """Settings of one adapter. `None` means the variant's default; for a size of the shadow, the base's size.

    Raises:
        ConfigError: a value is out of range.
    """

    variant: Variant = "normed"
    """`normed`, ours, compares shadow and hidden state at one scale; `paper` computes figure 2 of arXiv
    2604.19254 as the authors' package does; `peft` computes what Hugging Face PEFT does."""
    r: int | None = within(None, least=1, below=LARGEST)
    """Rank of the injection, `W_down` and `W_up` of eq. 3."""
    update_width: int | None = within(None, least=1, below=LARGEST)
    """Hidden width of the update's networks T and G (eq. 5 and 6)."""
    alpha: float | None = within(None, above=-LARGEST, below=LARGEST)
    """Strength of the injection (eq. 4); in the variant `normed` 0.6, beside a pretrained shadow 0.3."""
    dropout: float | None = within(None, least=0, below=1)
    """Probability, in training, of dropping values of the injection (and of T in the variant `paper`)."""
    shadow_loss_weight: float | None = within(None, least=0, below=LARGEST)
    """Lambda of eq. 9, the weight of the loss on `head(s^(0))`."""
    inject_from: int | None = within(None, least=0, below=LARGEST)
    """Index (from 0) of the first block whose input is corrected. Blocks before it run without gradients; the
    shadow state still reads their outputs."""
    shadow_layers: int = within(1, least=1, below=LARGEST)
    """Number of blocks of an implicit shadow."""
    shadow_intermediate_size: int | None = within(None, least=1, below=LARGEST)
    """MLP width of the shadow's blocks; in the variant `normed` a quarter of the base's unless set."""
    shadow_attention_heads: int | None = within(None, least=1, below=LARGEST)
    """Attention heads of the shadow's blocks."""
    shadow_key_value_heads: int | None = within(None, least=1, below=LARGEST)
    """Key and value heads of the shadow's blocks."""
    shadow_head_dim: int | None = within(None, least=1, below=LARGEST)
    """Width of one attention head of the shadow's blocks."""
    unit_state: bool | None = None
    """In the variant `normed`, scale s^(0) to unit rms before the first boundary reads it. By default this is
    done for a pretrained shadow, whose states can have any size. A random shadow starts at that size."""
    output_gains: bool | None = None
    """In the variant `normed`, scale each channel of a correction as the norms behind a block's attention and
    MLP scale what the block writes. By default this is done where the base has such norms (Gemma 2 and 3,
    OLMo 2)."""
    shadow_distil: float = within(0.0, least=0, most=1)
    """Share of the shadow's loss, from 0 to 1, that is the divergence from the attached model's own answer.
    The rest is the loss on the labels. It matters in training only."""
    distil_loss: DistilLoss = "kl"
    """How that divergence is measured: `kl` for KL(p || q), p the attached answer and q the shadow's, or `lk`
    for -log sum min(p, q), whose sum is the chance that a draft is accepted. Not for classifiers."""
    train_backbone: bool = True
    """Whether an explicit shadow's own blocks train. With `false` they stay as the model given as the shadow
    has them, in the base's type; projection, boundaries and heads train."""

    def __post_init__(self) -> None:
        check(self)
        if self.distil_loss != "kl" and self.shadow_distil == 0:
            raise ConfigError(
                f"distil_loss {self.distil_loss} says how shadow_distil learns, and shadow_distil is 0; "
                "set it above 0, or leave distil_loss out"
            )
        for name, switch in (("unit_state", self.unit_state), ("output_gains", self.output_gains)):
            if switch and self.variant != "normed":
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
            ConfigError: a key is not a setting (the message names the nearest), or a value is out of range.
        """
        _refuse_unknown(cls, values)
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


def refuse_frozen(config: ShadowConfig, is_explicit: bool) -> None:
    """Refuse to keep the blocks of a shadow that is not another model's decoder.

    Args:
        config: the settings.
        is_explicit: whether the shadow is such a decoder, with embeddings of its own.

    Raises:
        ConfigError: says what the setting needs.
    """
    if not config.train_backbone and not is_explicit:
        raise ConfigError(
            "train_backbone false keeps the blocks of another model's decoder, and this shadow is a copy of "
            "the base's architecture, which must be trained; give a pretrained model as the shadow, or leave "
            "train_backbone out"
        )


def refuse_depth(inject_from: int, blocks: int) -> None:
    """Refuse corrections that would begin after a base's last block.

    Raises:
        ConfigError: says how many blocks there are and what to set.
    """
    if inject_from >= blocks:
        raise ConfigError(
            f"inject_from must be below the base's {blocks} blocks, got {inject_from}: "
            f"no block would be adapted; set it to at most {blocks - 1}"
        )
