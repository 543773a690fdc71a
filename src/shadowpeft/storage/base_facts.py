"""What a folder remembers of the base it was written beside, so that another base is refused."""

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

# Enough values of each to tell two fine-tunings of one base apart, few enough to read in the JSON.
_SAMPLES = 16


_TYPES = {
    "name": str,
    "model_type": str,
    "task": str,
    "hidden_size": int,
    "num_hidden_layers": int,
    "vocab_size": int,
    "sample": dict,
}


@dataclass(frozen=True)
class BaseFacts:
    """What is written down of a base to recognise it: layout, size, and values of its embeddings, first and last block."""

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
        """Take the facts from parsed JSON; `whose` says in errors what the file describes.

        Raises:
            CheckpointError: a fact is missing or of the wrong type.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or sorted(values) != sorted(names):
            raise CheckpointError(f"{path} is not {whose} configuration: 'base' must hold {', '.join(names)}")
        wrong = [name for name, kind in _TYPES.items() if not isinstance(values[name], kind)]
        parts = values["sample"].values() if "sample" not in wrong else []
        if not all(
            isinstance(part, list) and all(isinstance(x, float) and math.isfinite(x) for x in part)
            for part in parts
        ):
            wrong.append("sample")
        if wrong:
            raise CheckpointError(
                f"{path} is not {whose} configuration: base.{wrong[0]} has a value of the wrong kind"
            )
        return cls(**values)

    def refuse_other(self, base: "BaseFacts", folder: Path, what: str = "adapter") -> None:
        """Raise unless `base` is the model these facts were read off, at whatever precision it was loaded.

        Args:
            base: the facts of the model at hand.
            folder: where these facts were written down.
            what: what the folder holds.

        Raises:
            CheckpointError: another family, size, task or set of weights; the message says which.
        """
        for field in ("model_type", "task", "hidden_size", "num_hidden_layers", "vocab_size", "num_labels"):
            wanted, got = vars(self)[field], vars(base)[field]
            if wanted != got:
                raise CheckpointError(
                    f"the {what} in {folder} was trained on another base ({self.name}): {field} {wanted}, this base has {got}"
                )
        for part, values in self.sample.items():
            found = base.sample.get(part, [])
            if values and found and not _close(values, found):  # a quantised or offloaded part has no sample
                raise CheckpointError(
                    f"the {what} in {folder} was trained on another base ({self.name}): this base has the same shape but other "
                    f"weights (of its {part}); load the base it was trained on"
                )


def _sample(module: nn.Module) -> list[float]:
    """Read a few values of a module's first matrix, none where it is quantised (so packed or scaled) or not in memory."""
    matrix = next((parameter for parameter in module.parameters() if parameter.ndim == 2), None)
    if (
        matrix is None
        or matrix.device.type == "meta"
        or not matrix.is_floating_point()
        or matrix.itemsize < 2
    ):
        return []
    flat = matrix.detach().flatten()
    picked = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64).long()
    return flat[picked.to(flat.device)].float().cpu().tolist()


def _close(wanted: list[float], got: list[float]) -> bool:
    """Compare within what rounding to 8 bits of mantissa can change."""
    scale = max(map(abs, wanted))
    return len(wanted) == len(got) and all(
        abs(a - b) <= 0.02 * scale for a, b in zip(wanted, got, strict=True)
    )
