"""The settings of a measurement, checked before any weights are built."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shadowpeft.bench.shapes import SHAPES
from shadowpeft.bench.specs import DEFAULTS, Spec, parse
from shadowpeft.config import Variant
from shadowpeft.errors import ConfigError
from shadowpeft.settings import nearest

if TYPE_CHECKING:
    import torch

_LEAST = {"batch": 1, "tokens": 2, "rounds": 1, "repeats": 1, "warmup": 0, "seed": 0}


@dataclass(frozen=True)
class Bench:
    """Settings of `shadowpeft bench train` and `shadowpeft bench forward`.

    Args:
        shape: shapes of the base, separated by commas: 0.6b, 4b and 8b (Qwen3, random weights), embedded, tiny.
        batch: rows of a step; by default the shape's own.
        tokens: tokens of a row; by default the shape's own.
        methods: what to measure, separated by commas, each METHOD, METHOD:IMPL (shadow:triton) or METHOD@DEPTH (shadow@1/2, lora@18);
            by default everything that can run here.
        compiled: what to measure through torch.compile as well, in the same form, or all.
        variant: variant of the shadow; by default that of ShadowConfig.
        rounds: how often the methods take turns (A B C A B C has two rounds).
        repeats: timed steps of a method in each round.
        warmup: steps before them that are not timed.
        dtype: type of the base's weights; auto is bfloat16 on a GPU and float32 on a CPU.
        adapter_dtype: type of what is trained: base for the base's type; float32 under autocast, as trainers do it; own for
            what each library does if left alone.
        device: auto, cpu, cuda or cuda:1.
        seed: of random weights and tokens.
        limit_seconds: begin no further method after so many seconds; what was measured counts.
        output: file of the rows, a JSON line each; rows of earlier runs stay in it. By default
            results/speed/bench/train.jsonl or forward.jsonl. The table and the picture are made beside it.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    shape: str = "embedded"
    batch: int | None = None
    tokens: int | None = None
    methods: str | None = None
    compiled: str = ""
    variant: Variant | None = None
    rounds: int = 3
    repeats: int = 3
    warmup: int = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    adapter_dtype: Literal["base", "float32", "own"] = "base"
    device: str = "auto"
    seed: int = 0
    limit_seconds: float | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = vars(self)[name]
            if value is None and name in ("batch", "tokens"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number, {least} or more, got {value!r}")
        if not self.shapes:
            raise ConfigError(
                f"shape must name at least one, got {self.shape!r}; the shapes are: {', '.join(SHAPES)}"
            )
        for shape in self.shapes:
            if shape not in SHAPES:
                raise ConfigError(
                    f"there is no shape {shape!r}{nearest(shape, SHAPES)}; the shapes are: {', '.join(SHAPES)}"
                )
        if self.limit_seconds is not None and not self.limit_seconds > 0:
            raise ConfigError(f"limit_seconds must be above 0, got {self.limit_seconds!r}")

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
        """Read what is measured."""
        return parse(DEFAULTS[self.kind] if self.methods is None else self.methods, self.compiled, self.kind)

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
    """Settings of `shadowpeft bench train`.

    Args:
        checkpointing: recompute activations in the backward pass in place of keeping them (gradient checkpointing).
    """

    checkpointing: bool = False

    @property
    def kind(self) -> str:
        """What is timed."""
        return "train"
