"""The adapter folder: safetensors, JSON and a model card. Loading is strict both ways and never runs what a file names."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import shadowpeft
from shadowpeft import arch, shadow
from shadowpeft.config import ShadowConfig
from shadowpeft.errors import CheckpointError
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import reading
from shadowpeft.storage.card import model_card
from shadowpeft.storage.stock_models import text, write_together

WEIGHTS, CONFIG, CARD = "shadow.safetensors", "shadow_config.json", "README.md"
# 1 was written while the variant `normed` was another function (both heads of a classifier answered, gates began at 0.05), 2 before there
# were `output_gains`.
FORMAT, READABLE = 3, (2, 3)
# Enough values of each to tell two fine-tunings of one base apart, few enough to read in the JSON.
_SAMPLES = 16
_TYPES = {"name": str, "model_type": str, "task": str, "hidden_size": int, "num_hidden_layers": int, "vocab_size": int, "sample": dict}


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
        if not all(isinstance(part, list) and all(isinstance(x, float) and math.isfinite(x) for x in part) for part in parts):
            wrong.append("sample")
        if wrong:
            raise CheckpointError(f"{path} is not {whose} configuration: base.{wrong[0]} has a value of the wrong kind")
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
    if matrix is None or matrix.device.type == "meta" or not matrix.is_floating_point() or matrix.itemsize < 2:
        return []
    flat = matrix.detach().flatten()
    picked = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64).long()
    return flat[picked.to(flat.device)].float().cpu().tolist()


def _close(wanted: list[float], got: list[float]) -> bool:
    """Compare within what rounding to 8 bits of mantissa can change."""
    scale = max(map(abs, wanted))
    return len(wanted) == len(got) and all(abs(a - b) <= 0.02 * scale for a, b in zip(wanted, got, strict=True))


def save(adapter: Adapter, tensors: Mapping[str, Tensor], facts: BaseFacts, folder: str | Path, run: Mapping[str, Any]) -> None:
    """Write an adapter: its tensors, its settings with the facts of its base, and a model card that tells of the run.

    Args:
        adapter: what to save.
        tensors: its tensors by name, whole; its own may be sharded.
        facts: of the base it was trained on.
        folder: made if need be; its other files are left alone.
        run: what to tell of the training in the card, by name.

    Raises:
        CheckpointError: the files could not be written; those already there are unchanged.
    """
    folder = Path(folder)
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    backbone = adapter.shadow.backbone.config.to_dict()
    meta = {
        "format": FORMAT,
        "shadowpeft_version": shadowpeft.__version__,
        "shadow": adapter.settings.to_dict(),
        "explicit_shadow": None if adapter.shadow.borrows else backbone,
        "base": vars(facts),
    }
    card = model_card(facts.name, adapter.config, {name: tensor.numel() for name, tensor in state.items()}, run)
    write_together(
        folder,
        {
            WEIGHTS: lambda path: save_file(state, path, metadata={"format": "pt"}),
            CONFIG: text(json.dumps(meta, indent=2) + "\n"),
            CARD: text(card),
        },
    )


def load(base: PreTrainedModel, folder: str | Path) -> Adapter:
    """Read an adapter for a base; every name and shape is checked before anything is allocated.

    Raises:
        CheckpointError: a file is missing, damaged or of another format, a tensor is missing, extra or misshapen, or the
            adapter was trained on another base.
        ConfigError: a setting in the JSON is unknown or out of range.
    """
    folder = Path(folder)
    meta = _read_config(folder)
    explicit = meta.get("explicit_shadow")
    if not isinstance(meta.get("shadow"), dict) or not (explicit is None or isinstance(explicit, dict)):
        raise CheckpointError(f"{folder / CONFIG} is not an adapter's configuration: 'shadow' must hold settings")
    BaseFacts.read(meta.get("base"), folder / CONFIG).refuse_other(BaseFacts.of(base), folder)
    if meta["format"] == 2:
        meta["shadow"]["output_gains"] = False
    config, found = ShadowConfig.from_dict(meta["shadow"]), reading.read_header(folder / WEIGHTS)
    if None in (config.alpha, config.dropout, config.shadow_loss_weight, config.unit_state, config.output_gains):
        raise CheckpointError(
            f"{folder / CONFIG} must say alpha, dropout, shadow_loss_weight, unit_state and output_gains, and does not; save the adapter "
            "again"
        )
    layers = config.shadow_layers if explicit is None else explicit.get("num_hidden_layers", 1)
    build = partial(_build, base, config, explicit)
    reading.compare(folder / WEIGHTS, reading.shapes_of(build, folder / CONFIG, folder / WEIGHTS, layers, len(found)), found)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in found}
    adapter = build()
    adapter.load_state_dict(state, strict=True, assign=True)  # keep the saved precision; the caller chooses the final one
    return adapter


def _build(base: PreTrainedModel, config: ShadowConfig, explicit: dict[str, Any] | None) -> Adapter:
    if explicit is None:
        return Adapter(base, config, shadow.implicit(base, config.resolved()))
    return Adapter(base, config, shadow.explicit_from_config(base, reading.stock_config(explicit, "the adapter's shadow")))


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"there is no adapter folder {folder} (adapters are read from folders, not from hub ids)")
    path = folder / CONFIG
    if not path.exists():
        hint = "; did you mean its adapter/?" if (folder / "adapter" / CONFIG).is_file() else ""
        raise CheckpointError(f"{folder} holds no {CONFIG}: it is not an adapter folder{hint}")
    return reading.read_meta(path, READABLE)
