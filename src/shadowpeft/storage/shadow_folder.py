"""The shadow folder: a pretrained shadow without boundary weights.

`attach(base, shadow=folder)` starts an adapter from it.
Loading is as strict as an adapter's: names and shapes are compared before memory is allocated, and another
base is refused.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedModel

import shadowpeft
from shadowpeft.config import ShadowConfig
from shadowpeft.decoder import sharded
from shadowpeft.errors import CheckpointError
from shadowpeft.shadow import Shadow, implicit
from shadowpeft.shadow.network import explicit_from_config, sizes_of
from shadowpeft.storage import reading
from shadowpeft.storage.atomic import text, write_together
from shadowpeft.storage.base_facts import BaseFacts
from shadowpeft.storage.card import shadow_card

WEIGHTS, CONFIG, CARD = "pretrained_shadow.safetensors", "pretrained_shadow.json", "README.md"
FORMAT = 1
KEYS = ("format", "shadowpeft_version", "shadow", "explicit_shadow", "base", "run")
# All settings whose names begin so are sizes of the shadow, but for these two, which belong to the adapter's
# objective.
_SIZES = {field.name for field in dataclasses.fields(ShadowConfig) if field.name.startswith("shadow_")} - {
    "shadow_loss_weight",
    "shadow_distil",
}


def holds(folder: str | Path) -> bool:
    """Return whether a path is a shadow folder, by the file that describes one."""
    return (Path(folder) / CONFIG).is_file()


def save(
    shadow: Shadow,
    facts: BaseFacts,
    folder: str | Path,
    run: Mapping[str, Any],
    auto: str = "AutoModelForCausalLM",
) -> None:
    """Write a shadow: its tensors, its sizes with the facts of its base, and a model card.

    Args:
        shadow: what to save.
        facts: of the base that it was pretrained beside.
        folder: made if need be; its other files are left alone.
        run: facts of the pretraining for the card, by name: plain values that JSON has.
        auto: transformers' class that loads the base, for the card.

    Raises:
        CheckpointError: the files could not be written; those already there are unchanged.
    """
    state = {
        name: tensor.detach().contiguous().cpu()
        for name, tensor in sharded.whole(shadow.state_dict()).items()
    }
    config = shadow.backbone.config
    described: dict[str, Any] = {"shadow": None, "explicit_shadow": config.to_dict()}
    if shadow.borrows:
        described = {"shadow": sizes_of(config), "explicit_shadow": None}
    meta = {
        "format": FORMAT,
        "shadowpeft_version": shadowpeft.__version__,
        **described,
        "base": dataclasses.asdict(facts),
        "run": dict(run),
    }
    total = sum(tensor.numel() for tensor in state.values())
    card = shadow_card(facts.name, shadow.borrows, sizes_of(config), total=total, run=run, auto=auto)
    write_together(
        Path(folder),
        {
            WEIGHTS: lambda path: save_file(state, path, metadata={"format": "pt"}),
            CONFIG: text(json.dumps(meta, indent=2) + "\n"),
            CARD: text(card),
        },
    )


def load(base: PreTrainedModel, folder: str | Path) -> Shadow:
    """Read a shadow for the base that it was pretrained beside, or for a classifier made of that base.

    Raises:
        CheckpointError: a file is missing, damaged or of another format, a tensor is missing, extra or of
            another shape, or the shadow was pretrained beside another base.
        ConfigError: a size in the JSON is unknown or out of range.
    """
    folder = Path(folder)
    meta = _read_meta(folder)
    now = BaseFacts.of(base)
    facts = BaseFacts.read(meta.get("base"), folder / CONFIG, "a shadow folder's")
    # A shadow maps tokens to hidden states, whatever head reads these, so the task need not be the same.
    dataclasses.replace(facts, task=now.task, num_labels=now.num_labels).refuse_other(now, folder, "shadow")
    if meta["explicit_shadow"] is None:
        layers = meta["shadow"]["shadow_layers"]
    else:
        layers = meta["explicit_shadow"].get("num_hidden_layers", 1)
    build = partial(_build, base, meta)
    return reading.load_module(build, folder / CONFIG, folder / WEIGHTS, layers=layers)


def backbone_config(folder: str | Path, base: PretrainedConfig) -> PretrainedConfig:
    """Read the configuration of a folder's shadow, and none of its weights.

    Args:
        folder: the shadow folder.
        base: configuration of the base, which is returned for an implicit shadow.

    Raises:
        CheckpointError: the description is missing, damaged or of another format.
    """
    explicit = _read_meta(Path(folder))["explicit_shadow"]
    return base if explicit is None else reading.stock_config(explicit, "the shadow")


def is_explicit(folder: str | Path) -> bool:
    """Return whether a folder's shadow is another model's decoder, by its description.

    Raises:
        CheckpointError: the description is missing, damaged or of another format.
    """
    return _read_meta(Path(folder))["explicit_shadow"] is not None


def _build(base: PreTrainedModel, meta: Mapping[str, Any]) -> Shadow:
    if meta["explicit_shadow"] is None:
        return implicit(base, ShadowConfig.from_dict(meta["shadow"]).resolved())
    return explicit_from_config(base, reading.stock_config(meta["explicit_shadow"], "the shadow"))


def _read_meta(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no shadow folder {folder}; a model of the hub is loaded first, then given itself"
        )
    path = folder / CONFIG
    if not path.exists():
        hint = "; did you mean its shadow/?" if holds(folder / "shadow") else ""
        if (folder / "config.json").is_file():
            hint = (
                "; it seems to be a model: load it with AutoModelForCausalLM.from_pretrained(...) and give "
                "that"
            )
        raise CheckpointError(f"{folder} holds no {CONFIG}: it is not a shadow folder{hint}")
    meta = reading.read_meta(path, (FORMAT,), KEYS)
    sizes, explicit = meta.get("shadow"), meta.get("explicit_shadow")
    if isinstance(sizes, dict):
        reading.refuse_unknown(path, sizes, sorted(_SIZES), within="shadow.")
    is_implicit = isinstance(sizes, dict) and set(sizes) == _SIZES and explicit is None
    is_explicit = sizes is None and isinstance(explicit, dict)
    if not is_implicit and not is_explicit:
        raise CheckpointError(
            f"{path} does not describe a shadow: it must hold either 'shadow' with "
            f"{', '.join(sorted(_SIZES))}, or "
            "'explicit_shadow'"
        )
    return meta
