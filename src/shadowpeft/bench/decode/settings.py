"""The settings of a measurement of decoding, checked before any weights are built."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shadowpeft.bench.decode.specs import (
    EVERYTHING,
    WAYS,
    DecodeSpec,
    Way,
    specs_of,
    ways_of,
)
from shadowpeft.bench.shapes import SHAPES
from shadowpeft.checked_fields import changed, check, nearest, split, whole_numbers, within
from shadowpeft.config import Variant
from shadowpeft.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Tokens of a text that the numerical test compares, and that a CUDA graph writes before it is timed.
CHECKED = 16
# The fewest new tokens of a text that is timed: some are written before the clock runs.
LEAST_NEW = 24
# Tokens of a model's random prompt.
PROMPT = 256


@dataclass(frozen=True)
class DecodeBench:
    """Settings of `shadowpeft bench decode`.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    shape: str | None = None
    """Shapes of the base, separated by commas: 0.6b, 4b and 8b (Qwen3, random weights), embedded, tiny; by
    default embedded, if there is no model."""
    model: str | None = None
    """In place of a shape, folder or hub id of a model."""
    adapter: str | None = None
    """Folder or hub id of the model's trained adapter; by default the shadow is untrained."""
    shadow: str | None = None
    """What an untrained shadow starts from: a shape, or folder or hub id of a model or of a pretrained
    shadow; by default a random shadow of the base's own architecture."""
    data: str | None = None
    """Texts to continue in place of random tokens: rows as eval takes them, with a model."""
    split: str = "test"
    """Split of a data set folder or hub id."""
    texts: int = within(8, least=1)
    """The most texts of data."""
    batch: str = "1"
    """Rows that are written at once, several numbers with commas."""
    context: str | None = None
    """Tokens of a random prompt, several numbers with commas; by default the shape's own, 256 for a model."""
    new_tokens: int = within(64, least=LEAST_NEW)
    """Tokens that are written behind a prompt; the most of a text of data, which may end before."""
    methods: str | None = None
    """What to measure, separated by commas, each METHOD or METHOD:IMPL (shadow:triton); by default everything
    that can run here."""
    ways: str | None = None
    """How it is called, separated by commas: generate as a user calls it, graph for a one-token step in a
    CUDA graph, compiled for generate with cache_implementation=static; by default all that can run here."""
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
        self._refuse_idle()
        for shape in self.shapes:
            if shape not in SHAPES:
                raise ConfigError(
                    f"there is no shape {shape!r}{nearest(shape, SHAPES)}; "
                    f"the shapes are: {', '.join(SHAPES)}"
                )
        # Each refuses what it cannot read.
        self.specs(), self.way_names(), self.batches(), self.contexts(None)

    def _refuse_idle(self) -> None:
        """Refuse settings that would be ignored.

        Raises:
            ConfigError: names them.
        """
        if self.shape is not None and self.model is not None:
            raise ConfigError("shape and model exclude each other: random weights, or those of a model")
        for name, given in (("adapter", self.adapter), ("data", self.data)):
            if given is not None and self.model is None:
                raise ConfigError(f"{name} needs model, the base that it belongs to")
        for name, own in (("shadow", self.shadow), ("variant", self.variant)):
            if own is not None and self.adapter is not None:
                raise ConfigError(f"{name} is for an untrained shadow, and adapter brings its own; give one")
        of_data = changed(self, ("split", "texts"))
        if of_data and self.data is None:
            raise ConfigError(f"{of_data[0]} says which texts of data are read; give data, or leave it out")
        if changed(self, ["draft_tokens"]) and not any(spec.draft_tokens for spec in self.specs()):
            raise ConfigError("draft_tokens is for the method draft, which is not named; leave it out")
        if self.data is not None and (self.context is not None or self.batches() != [1]):
            raise ConfigError("data has texts of its own, one row each: leave out context and batch")
        if self.shape is not None and not self.shapes:
            raise ConfigError(
                f"shape must name at least one, got {self.shape!r}; the shapes are: {', '.join(SHAPES)}"
            )

    @property
    def shapes(self) -> list[str]:
        """The shapes by name; none for a model."""
        if self.model is not None:
            return []
        return split("embedded" if self.shape is None else self.shape)

    @property
    def rows(self) -> Path:
        """The file of the rows."""
        return Path(self.output)

    def specs(self) -> list[DecodeSpec]:
        """Read what is measured."""
        methods = EVERYTHING if self.methods is None else self.methods
        return specs_of(methods, self.draft_tokens)

    def way_names(self) -> list[Way]:
        """Read how it is called."""
        return list(WAYS) if self.ways is None else ways_of(self.ways)

    def batches(self) -> list[int]:
        """Read how many rows are written at once."""
        return whole_numbers("batch", self.batch, least=1)

    def contexts(self, shape: str | None) -> list[int]:
        """Read how many tokens the random prompts of a shape, or of a model, have."""
        if self.context is None:
            return [PROMPT if shape is None else SHAPES[shape].prompt]
        return whole_numbers("context", self.context, least=2)

    def weights_dtype(self, device: "torch.device") -> "torch.dtype":
        """Give the type of the weights on a device."""
        import torch

        auto = torch.bfloat16 if device.type == "cuda" else torch.float32
        return {"auto": auto, "float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]
