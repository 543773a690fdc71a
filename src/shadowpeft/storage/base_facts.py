"""Facts that identify a base: a folder holds those of its own base, so that another base is refused."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.errors import CheckpointError
from shadowpeft.storage import reading

# Values of the embeddings, of the first and of the last block.
_SAMPLES = 16
# Values of each other weight: with a few from every one, it hardly matters where a fine-tuned base differs.
_OF_EACH = 4
# Blocks of more weights than this (experts, one by one) give one value of each.
_MANY = 64
# Digits that are kept of them, well below the rounding.
_DIGITS = 6
# A value may differ by this share of itself: what rounding to a mantissa of 8 bits can change (2^-8), and
# another to 11 bits. Fine-tuning at a rate of 1e-5 moves the smaller weights further in one step.
_ROUNDING = 2.0**-8 + 2.0**-11
# What rounding to float16 can change in the smallest values.
_FLOOR = 1e-7
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
        sample: a few values of the embeddings, and of every weight of every block; none of a part that is
            quantised, sharded or not in memory. Folders of earlier versions have the embeddings, the first
            and the last block alone.
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
            sample=_sample(
                {
                    "embeddings": _first_matrix(arch.token_embedding_of(base)),
                    "first block": _first_matrix(blocks[0]),
                    "last block": _first_matrix(blocks[-1]),
                }
            )
            | _sample_each(blocks),
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
        if isinstance(values, dict) and set(values) >= set(names):
            reading.refuse_unknown(path, values, names, within="base.")
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
        part = self.other_part(base)
        if part is not None:
            raise CheckpointError(
                f"{other}this base has the same shape but other weights (of its {part}); load the base "
                "it was trained on"
            )

    def other_part(self, base: "BaseFacts") -> str | None:
        """Name a part in which the weights of `base` are others, `None` if there is none.

        A part that is quantised, sharded or not in memory has no sample, on either side, and is not compared.
        """
        for part, values in self.sample.items():
            at_hand = base.sample.get(part, [])
            if values and at_hand and not _close(values, at_hand):
                return part
        return None


def _is_list_of_numbers(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(value, float) and math.isfinite(value) for value in part)


def _first_matrix(module: nn.Module) -> Tensor | None:
    return next((parameter for parameter in module.parameters() if parameter.ndim == 2), None)


def _sample_each(blocks: nn.ModuleList) -> dict[str, list[float]]:
    """Read a few values of every weight of every block, by names such as `block 3: mlp.up_proj.weight`."""
    values: dict[str, list[float]] = {}
    for index, block in enumerate(blocks):
        weights = dict(block.named_parameters())
        count = _OF_EACH if len(weights) <= _MANY else 1
        found = _sample({f"block {index}: {name}": weight for name, weight in weights.items()}, count)
        values |= {name: [float(f"{x:.{_DIGITS}g}") for x in xs] for name, xs in found.items() if xs}
    return values


@torch.no_grad()
def _sample(weights: Mapping[str, Tensor | None], count: int | None = None) -> dict[str, list[float]]:
    """Read values of each weight, spread over it; none of one whose values cannot be read here.

    Args:
        weights: the weights by name.
        count: how many values of each are read; by default those of earlier versions' folders.
    """
    read: dict[torch.device, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        if _is_readable(weight):
            flat = weight.detach().flatten()
            picked = _ends_included(flat) if count is None else _from_each_part(flat, count)
            read.setdefault(weight.device, {})[name] = picked.float()
    values: dict[str, list[float]] = {name: [] for name in weights}
    # One transfer from each device: every transfer waits for all that the device still has to do.
    for picked_by_name in read.values():
        parts = (
            torch.cat(list(picked_by_name.values())).cpu().split([len(x) for x in picked_by_name.values()])
        )
        values |= {name: part.tolist() for name, part in zip(picked_by_name, parts, strict=True)}
    return values


def _ends_included(flat: Tensor) -> Tensor:
    picked = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64, device="cpu").long()
    return flat[picked.to(flat.device)]


def _from_each_part(flat: Tensor, count: int) -> Tensor:
    """Return the value in the middle of each of `count` equal parts."""
    step = max(1, flat.numel() // count)
    return flat[step // 2 :: step][:count]


def _is_readable(weight: Tensor | None) -> TypeGuard[Tensor]:
    """Return whether a weight is a plain tensor of floats in memory."""
    # Quantised weights are packed into integers, are floats of one byte with a scale beside them, or have a
    # class of tensors of their own, as sharded ones have.
    if weight is None or type(weight) not in (Tensor, nn.Parameter):
        return False
    return not weight.is_meta and weight.is_floating_point() and weight.itemsize >= 2 and weight.numel() > 0


def _close(saved: list[float], found: list[float]) -> bool:
    """Return whether two lists hold the same values, up to rounding."""
    if len(saved) != len(found):
        return False
    return all(
        abs(a - b) <= _ROUNDING * max(abs(a), abs(b)) + _FLOOR for a, b in zip(saved, found, strict=True)
    )
