"""Facts that identify a base: a folder holds those of its own base, so that another base is refused."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.errors import CheckpointError

# Values of each part: enough to distinguish two fine-tuned versions of one base, few enough to read in the
# JSON.
_SAMPLES = 16
# Values of one part may differ by this share of the largest: what rounding to a mantissa of 8 bits can
# change.
_ROUNDING = 0.02
_TYPES = {
    "name": str,
    "model_type": str,
    "task": str,
    "hidden_size": int,
    "num_hidden_layers": int,
    "vocab_size": int,
    "sample": dict,
}
_MUST_BE_EQUAL = ("model_type", "task", "hidden_size", "num_hidden_layers", "vocab_size", "num_labels")


@dataclass(frozen=True)
class BaseFacts:
    """Facts that identify a base: its layout, its sizes and a few of its weights.

    Attributes:
        name: name or path that it was loaded from, empty if it was built in memory.
        model_type: its family, by transformers' name.
        task: what its head is for.
        hidden_size: width of its hidden states.
        num_hidden_layers: how many blocks it has.
        vocab_size: rows of its embeddings.
        num_labels: classes of a classifier, `None` otherwise.
        sample: a few values of the embeddings, the first and the last block; none of a part that is quantised
            or not in memory.
    """

    name: str
    model_type: str
    task: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    num_labels: int | None
    sample: dict[str, list[float]]

    @classmethod
    def of(cls, base: PreTrainedModel) -> "BaseFacts":
        """Read the facts off a model."""
        config, task = base.config, arch.task_of(base)
        blocks = arch.blocks_of(base)
        return cls(
            name=config.name_or_path or "",
            model_type=config.model_type,
            task=task,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            vocab_size=config.vocab_size,
            num_labels=config.num_labels if task == "sequence-classification" else None,
            sample={
                "embeddings": _sample(arch.token_embedding_of(base)),
                "first block": _sample(blocks[0]),
                "last block": _sample(blocks[-1]),
            },
        )

    @classmethod
    def read(cls, values: Any, path: Path, whose: str = "an adapter's") -> "BaseFacts":
        """Check parsed JSON and take the facts from it.

        Args:
            values: what stands under 'base' in the file.
            path: the file, for messages.
            whose: what the file describes, for messages.

        Raises:
            CheckpointError: a fact is missing or of the wrong type.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or sorted(values) != sorted(names):
            raise CheckpointError(f"{path} is not {whose} configuration: 'base' must hold {', '.join(names)}")
        wrong = [name for name, kind in _TYPES.items() if not isinstance(values[name], kind)]
        if "sample" not in wrong and not all(map(_is_list_of_numbers, values["sample"].values())):
            wrong.append("sample")
        if wrong:
            raise CheckpointError(
                f"{path} is not {whose} configuration: base.{wrong[0]} has a value of the wrong kind"
            )
        return cls(**values)

    def refuse_other(self, base: "BaseFacts", folder: Path, what: str = "adapter") -> None:
        """Raise unless `base` is the model of these facts, at whatever precision it was loaded.

        Args:
            base: the facts of the model at hand.
            folder: where these facts are stored, for messages.
            what: what the folder holds, for messages.

        Raises:
            CheckpointError: another family, size, task or set of weights; the message says which.
        """
        other = f"the {what} in {folder} was trained on another base ({self.name}): "
        saved, found = dataclasses.asdict(self), dataclasses.asdict(base)
        for name in _MUST_BE_EQUAL:
            if saved[name] != found[name]:
                raise CheckpointError(f"{other}{name} {saved[name]}, this base has {found[name]}")
        for part, values in self.sample.items():
            at_hand = base.sample.get(part, [])
            # A quantised or offloaded part has no sample, on either side.
            if values and at_hand and not _close(values, at_hand):
                raise CheckpointError(
                    f"{other}this base has the same shape but other weights (of its {part}); load the base "
                    "it was trained on"
                )


def _is_list_of_numbers(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(value, float) and math.isfinite(value) for value in part)


def _sample(module: nn.Module) -> list[float]:
    """Read a few values of a module's first matrix; none if it is quantised or not in memory."""
    matrix = next((parameter for parameter in module.parameters() if parameter.ndim == 2), None)
    # Quantised weights are packed into integers, or they are floats of one byte with a scale beside them.
    if matrix is None or matrix.is_meta or not matrix.is_floating_point() or matrix.itemsize < 2:
        return []
    if arch.is_packed(matrix):
        return []
    flat = matrix.detach().flatten()
    picked = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64, device="cpu").long()
    return flat[picked.to(flat.device)].float().cpu().tolist()


def _close(saved: list[float], found: list[float]) -> bool:
    bound = _ROUNDING * max(map(abs, saved))
    return len(saved) == len(found) and all(abs(a - b) <= bound for a, b in zip(saved, found, strict=True))
