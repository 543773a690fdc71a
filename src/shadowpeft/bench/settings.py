"""The settings of a measurement, checked before any weights are built."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shadowpeft.bench.shapes import SHAPES
from shadowpeft.bench.specs import DEFAULTS, TRAINED_IN, Spec, parse
from shadowpeft.checked_fields import check, nearest, within
from shadowpeft.config import Variant
from shadowpeft.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Bench:
    """Settings of `shadowpeft bench train` and `shadowpeft bench forward`.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    shape: str = "embedded"
    """Shapes of the base, separated by commas: 0.6b, 4b and 8b (Qwen3, random weights), embedded, tiny."""
    batch: int | None = within(None, least=1)
    """Rows of a step; by default the shape's own."""
    tokens: int | None = within(None, least=2)
    """Tokens of a row; by default the shape's own."""
    methods: str | None = None
    """What to measure, separated by commas, each METHOD, METHOD:IMPL (shadow:triton) or METHOD@DEPTH
    (shadow@1/2, lora@18); by default everything that can run here."""
    compiled: str = ""
    """What to measure through torch.compile as well, in the same form, or all."""
    variant: Variant | None = None
    """Variant of the shadow; by default that of ShadowConfig."""
    rounds: int = within(3, least=1)
    """How often the methods take turns (A B C A B C has two rounds)."""
    repeats: int = within(3, least=1)
    """Timed steps of a method in each round."""
    warmup: int = within(1, least=0)
    """Steps before them that are not timed."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the base's weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    adapter_dtype: str | None = None
    """Types of the trained weights, separated by commas: float32, base for the base's type, autocast for
    float32 under autocast, as trainers do it. Every method is measured with each. By default float32 in a
    training step, as attach makes them, and base in reading a prompt, as they are loaded for use."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    seed: int = within(0, least=0)
    """Seed of the random weights and tokens."""
    limit_seconds: float | None = within(None, above=0)
    """Seconds after which no further method begins. What was measured before counts."""
    output: str | None = None
    """File of the rows, a JSON line each. Rows of earlier runs stay in it. By default
    results/speed/bench/train.jsonl or forward.jsonl. The table and the picture are made beside it."""

    def __post_init__(self) -> None:
        check(self)
        if not self.shapes:
            raise ConfigError(
                f"shape must name at least one, got {self.shape!r}; the shapes are: {', '.join(SHAPES)}"
            )
        for shape in self.shapes:
            if shape not in SHAPES:
                raise ConfigError(
                    f"there is no shape {shape!r}{nearest(shape, SHAPES)}; "
                    f"the shapes are: {', '.join(SHAPES)}"
                )

        if not self.trained_in:
            raise ConfigError(
                f"adapter_dtype must name at least one type, got {self.adapter_dtype!r}; "
                f"there are: {', '.join(TRAINED_IN)}"
            )
        for place, name in enumerate(self.trained_in):
            if name not in TRAINED_IN:
                raise ConfigError(
                    f"there is no adapter_dtype {name!r}{nearest(name, TRAINED_IN)}; "
                    f"there are: {', '.join(TRAINED_IN)}"
                )
            if name in self.trained_in[:place]:
                raise ConfigError(f"adapter_dtype names {name} twice; once is enough")

    @property
    def trained_in(self) -> list[str]:
        """The types of what is trained, by name."""
        names = self.adapter_dtype
        if names is None:
            names = "float32" if self.kind == "train" else "base"
        return [name.strip() for name in names.split(",") if name.strip()]

    @property
    def shapes(self) -> list[str]:
        """The shapes by name."""
        return [name.strip() for name in self.shape.split(",") if name.strip()]

    @property
    def kind(self) -> str:
        """What is timed: `train` or `forward`."""
        return "forward"

    @property
    def rows(self) -> Path:
        """The file of the rows."""
        return Path(self.output or f"results/speed/bench/{self.kind}.jsonl")

    def specs(self) -> list[Spec]:
        """Read what is measured: each method with each type of what it trains."""
        methods = DEFAULTS[self.kind] if self.methods is None else self.methods
        named = parse(methods, self.compiled, self.kind)
        return [typed for spec in named for typed in spec.typed(self.trained_in)]

    def size(self, shape: str) -> tuple[int, int]:
        """Give rows and tokens of a step at a shape."""
        own = SHAPES[shape]
        return self.batch or (
            own.batch if self.kind == "train" else own.prefill_batch
        ), self.tokens or own.tokens

    def base_dtype(self, device: "torch.device") -> "torch.dtype":
        """Give the type of the base's weights on a device."""
        import torch

        auto = torch.bfloat16 if device.type == "cuda" else torch.float32
        return {"auto": auto, "float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]


@dataclass(frozen=True)
class TrainBench(Bench):
    """Settings of `shadowpeft bench train`."""

    checkpointing: bool = False
    """Recompute activations in the backward pass in place of keeping them (gradient checkpointing)."""

    @property
    def kind(self) -> str:
        """What is timed."""
        return "train"
