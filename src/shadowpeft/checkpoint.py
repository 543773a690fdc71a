"""The adapter folder: safetensors, JSON and a model card. Loading is strict both ways and never runs what a file names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

import shadowpeft
from shadowpeft import arch, shadow
from shadowpeft.adapter import Adapter
from shadowpeft.card import model_card
from shadowpeft.config import ShadowConfig
from shadowpeft.errors import CheckpointError
from shadowpeft.files import text, write_together

WEIGHTS, CONFIG, CARD = "shadow.safetensors", "shadow_config.json", "README.md"
FORMAT = 1
# Enough values to tell two fine-tunings of one base apart, few enough to read in the JSON.
_SAMPLES = 16


@dataclass(frozen=True)
class BaseFacts:
    """What is written down of a base to recognise it: layout, size, and some of its weights."""

    name: str
    model_type: str
    task: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    num_labels: int | None
    sample: list[float]

    @classmethod
    def of(cls, base: PreTrainedModel) -> "BaseFacts":
        """Read the facts off a model."""
        config, task = base.config, arch.task_of(base)
        table_VD = arch.token_embedding_of(base).weight.detach()
        picked = torch.linspace(0, table_VD.shape[0] - 1, _SAMPLES).long()
        values = table_VD[picked.to(table_VD.device), 0].float().cpu().tolist()
        labels = config.num_labels if task == "sequence-classification" else None
        return cls(
            config.name_or_path or "",
            config.model_type,
            task,
            config.hidden_size,
            config.num_hidden_layers,
            config.vocab_size,
            labels,
            values,
        )

    def refuse_other(self, base: "BaseFacts", folder: Path) -> None:
        """Raise unless `base` is the model these facts were read off, at whatever precision it was loaded.

        Raises:
            CheckpointError: another family, size, task or set of weights; the message says which.
        """
        for field in ("model_type", "task", "hidden_size", "num_hidden_layers", "vocab_size", "num_labels"):
            wanted, got = vars(self)[field], vars(base)[field]
            if wanted != got:
                raise CheckpointError(
                    f"the adapter in {folder} was trained on another base ({self.name}): {field} {wanted}, this base has {got}"
                )
        scale = max(map(abs, self.sample), default=0.0)
        if len(self.sample) != len(base.sample) or any(abs(a - b) > 0.02 * scale for a, b in zip(self.sample, base.sample, strict=True)):
            raise CheckpointError(
                f"the adapter in {folder} was trained on another base ({self.name}): this base has the same shape but other "
                "weights; load the base it was trained on"
            )


def save(
    adapter: Adapter, base: PreTrainedModel, folder: str | Path, run: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write an adapter: its tensors, its settings with the facts of its base, and a model card that tells of the run.

    Args:
        adapter: what to save.
        base: the model it was trained on, for its facts.
        folder: made if need be; its other files are left alone.
        run: what to tell of the training in the card, by name.
        tensors: the adapter's tensors gathered elsewhere (sharded training), in place of its own.

    Raises:
        CheckpointError: the files could not be written; those already there are unchanged.
    """
    folder = Path(folder)
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in (tensors or adapter.state_dict()).items()}
    facts = BaseFacts.of(base)
    backbone = adapter.shadow.backbone.config.to_dict()
    meta = {
        "format": FORMAT,
        "shadowpeft_version": shadowpeft.__version__,
        "shadow": adapter.config.to_dict(),
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
    try:
        facts, settings, explicit = BaseFacts(**meta["base"]), meta["shadow"], meta["explicit_shadow"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not an adapter's configuration: {error}") from error
    facts.refuse_other(BaseFacts.of(base), folder)
    config = ShadowConfig.from_dict(settings)
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in _build(base, config, explicit).state_dict().items()}
    state = _read_tensors(folder / WEIGHTS, wanted)
    adapter = _build(base, config, explicit)
    adapter.load_state_dict(state, strict=True, assign=True)  # keep the saved precision; the caller chooses the final one
    return adapter


def _build(base: PreTrainedModel, config: ShadowConfig, explicit: dict[str, Any] | None) -> Adapter:
    if explicit is None:
        return Adapter(base, config, shadow.implicit(base, config.resolved()))
    return Adapter(base, config, shadow.explicit_from_config(base, _stock_config(explicit)))


def _stock_config(values: dict[str, Any]) -> PretrainedConfig:
    """Turn stored values into a configuration of a supported family; a class or code path named in them is not looked at."""
    model_type = values.get("model_type")
    if model_type not in arch.FAMILIES:
        raise CheckpointError(
            f"the adapter's shadow is of the family {model_type!r}, which is not supported; supported: {arch.supported()}"
        )
    return CONFIG_MAPPING[model_type].from_dict({name: value for name, value in values.items() if name != "auto_map"})


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"no adapter folder at {folder}")
    path = folder / CONFIG
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no {CONFIG}: it is not an adapter folder") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise CheckpointError(f"{path} has format {found!r}, this version of shadowpeft reads format {FORMAT}")
    return meta


def _read_tensors(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read exactly the wanted tensors; compare names and shapes from the header before reading any of them."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
            _compare(path, wanted, found)
            return {name: file.get_tensor(name) for name in found}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); copy it again or use an earlier checkpoint") from error


def _compare(path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"extra {name}" for name in found if name not in wanted]
    problems += [f"{name} has shape {found[name]}, expected {shape}" for name, shape in wanted.items() if found.get(name, shape) != shape]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{path} does not fit its configuration: {'; '.join(problems[:3])}{more}")
