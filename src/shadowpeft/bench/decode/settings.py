"""The settings of a measurement of decoding, checked before any weights are built."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shadowpeft.bench.decode.specs import (
    EVERYTHING,
    DecodeSpec,
    Way,
    specs_of,
    split,
    ways_of,
    whole_numbers,
)
from shadowpeft.bench.shapes import SHAPES
from shadowpeft.checked_fields import check, nearest, within
from shadowpeft.config import Variant
from shadowpeft.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Tokens of a text that the numerical test compares, and that a CUDA graph writes before it is timed.
CHECKED = 16


@dataclass(frozen=True)
class DecodeBench:
    """Settings of `shadowpeft bench decode`.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    shape: str = "embedded"
    """Shapes of the base, separated by commas: 0.6b, 4b and 8b (Qwen3, random weights), embedded, tiny."""
    batch: str = "1"
    """Rows that are written at once, several numbers with commas."""
    context: str | None = None
    """Tokens of the prompt, several numbers with commas; by default the shape's own."""
    new_tokens: int = within(64, least=24)
    """Tokens that are written behind the prompt."""
    methods: str = EVERYTHING
    """What to measure, separated by commas, each METHOD or METHOD:IMPL (shadow:triton)."""
    ways: str = "generate,graph,compiled"
    """How it is called, separated by commas: generate as a user calls it, graph for a one-token step in a
    CUDA graph, compiled for generate with cache_implementation=static."""
    draft_tokens: str = "4,auto"
    """Lengths of drafts, separated by commas, for the method draft."""
    variant: Variant | None = None
    """Variant of the shadow; by default that of ShadowConfig."""
    rounds: int = within(3, least=1)
    """How often the methods take turns (A B C A B C has two rounds)."""
    repeats: int = within(1, least=1)
    """Timed texts of a method in each round."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of all weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    seed: int = within(0, least=0)
    """Seed of the random weights and tokens."""
    limit_seconds: float | None = within(None, above=0)
    """Seconds after which no further method begins. What was measured before counts."""
    resume: bool = False
    """Leave out what the file of rows has already from the same code, libraries and device."""
    output: str = "results/speed/bench/decode.jsonl"
    """File of the rows, a JSON line each. Rows of earlier runs stay in it. The table is made beside it."""

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
        self.specs()
        self.way_names()
        self.batches()
        for shape in self.shapes:
            self.contexts(shape)

    @property
    def shapes(self) -> list[str]:
        """The shapes by name."""
        return split(self.shape)

    @property
    def rows(self) -> Path:
        """The file of the rows."""
        return Path(self.output)

    def specs(self) -> list[DecodeSpec]:
        """Read what is measured."""
        return specs_of(self.methods, self.draft_tokens)

    def way_names(self) -> list[Way]:
        """Read how it is called."""
        return ways_of(self.ways)

    def batches(self) -> list[int]:
        """Read how many rows are written at once."""
        return whole_numbers("batch", self.batch, least=1)

    def contexts(self, shape: str) -> list[int]:
        """Read how many tokens the prompts have."""
        if self.context is None:
            return [SHAPES[shape].prompt]
        return whole_numbers("context", self.context, least=2)

    def weights_dtype(self, device: "torch.device") -> "torch.dtype":
        """Give the type of the weights on a device."""
        import torch

        auto = torch.bfloat16 if device.type == "cuda" else torch.float32
        return {"auto": auto, "float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]
