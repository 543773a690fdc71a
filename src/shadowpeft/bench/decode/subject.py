"""What is measured: the shape of a model with random weights, or a model with its adapter."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft.bench import shapes
from shadowpeft.bench.decode.settings import DecodeBench
from shadowpeft.model import sources
from shadowpeft.storage import stock_models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """A base, and what the shadow beside it is made from.

    Attributes:
        shape: name of the shape; `None` for a model.
        model: folder or hub id of the model; `None` for a shape.
        adapter: folder or hub id of the trained adapter; `None` for an untrained shadow.
        shadow: what an untrained shadow starts from: a shape, or a folder or hub id; `None` for a random
            shadow of the base's own architecture.
    """

    shape: str | None = None
    model: str | None = None
    adapter: str | None = None
    shadow: str | None = None

    @property
    def name(self) -> str:
        """The name that lines and tables have for it."""
        return self.shape or f"{self.model}"

    @property
    def facts(self) -> dict[str, Any]:
        """What rows say of it."""
        return asdict(self)

    def config(self) -> PretrainedConfig:
        """Return the base's configuration, without any weights."""
        if self.shape is not None:
            return shapes.SHAPES[self.shape].config()
        return stock_models.load_config(str(self.model))

    def base(self, device: torch.device, dtype: torch.dtype, seed: int) -> PreTrainedModel:
        """Build or read the base on a device."""
        if self.shape is not None:
            return shapes.build(self.shape, device, dtype, seed)
        base: Any = stock_models.load_model(str(self.model), dtype)
        return base.to(device)

    def start(self, device: torch.device, dtype: torch.dtype, seed: int) -> PreTrainedModel | str | None:
        """Return what an untrained shadow starts from, as `attach` takes it."""
        if self.shadow is None:
            return None
        if self.shadow in shapes.SHAPES:
            return shapes.build(self.shadow, device, dtype, seed)
        found: Any = sources.open_source(self.shadow, dtype)
        return found if isinstance(found, str) else found.to(device)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Read the model's tokenizer."""
        return stock_models.load_tokenizer(str(self.model))


def subjects_of(settings: DecodeBench) -> list[Subject]:
    """Return what the settings ask for, one after the other."""
    if settings.model is not None:
        return [Subject(None, settings.model, settings.adapter, settings.shadow)]
    return [Subject(shape=name, shadow=settings.shadow) for name in settings.shapes]
