"""The adapter folder: weights, settings and a model card.

Loading refuses a tensor too many as well as a tensor too few, and never runs code that a file names.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

import shadowpeft
from shadowpeft import shadow
from shadowpeft.config import LARGEST, ResolvedConfig, ShadowConfig
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.shadow import draft_vocabulary, open_settings
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import reading
from shadowpeft.storage.atomic import text, write_together
from shadowpeft.storage.base_facts import BaseFacts
from shadowpeft.storage.card import adapter_card

WEIGHTS, CONFIG, CARD = "shadow.safetensors", "shadow_config.json", "README.md"
# Only where the adapter has one.
VOCABULARY = "draft_vocabulary.safetensors"
# transformers' Trainer looks for this file to find a checkpoint's weights. Nothing of ours reads it.
INDEX = "model.safetensors.index.json"
# What is read.
FILES = (WEIGHTS, CONFIG, VOCABULARY)
# Format 1 is of a time when the variant `normed` was another function: both heads of a classifier answered,
# and gates began at 0.05. Format 2 is of the time before `output_gains`.
FORMAT, READABLE = 3, (2, 3)
KEYS = (
    "format", "shadowpeft_version", "shadow", "explicit_shadow", "base", "draft_vocabulary", "draft_head",
)  # fmt: skip


def save(
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    facts: BaseFacts,
    folder: str | Path,
    run: Mapping[str, Any],
    prefix: str = "",
    auto: str = "AutoModelForCausalLM",
) -> None:
    """Write an adapter: its tensors, its settings with the facts of its base, and a model card.

    Args:
        adapter: what to save.
        tensors: its tensors by name, whole; those of `adapter` itself may be sharded.
        facts: of the base that it was trained on.
        folder: made if need be; its other files are left alone.
        run: facts of the training for the card, by name.
        prefix: what the tensors' names begin with in the model that has the adapter.
        auto: transformers' class that loads the base, for the card.

    Raises:
        CheckpointError: the files could not be written; those already there are unchanged.
    """
    folder = Path(folder)
    if any(tensor.is_meta for tensor in tensors.values()):
        raise CheckpointError("the adapter is on the device 'meta' and has no weights; nothing was written")
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    backbone = adapter.shadow.backbone.config.to_dict()
    meta = {
        "format": FORMAT,
        "shadowpeft_version": shadowpeft.__version__,
        "shadow": adapter.settings.to_dict(),
        "explicit_shadow": None if adapter.shadow.borrows else backbone,
        "base": dataclasses.asdict(facts),
    }
    files: dict[str, Callable[[Path], object]] = {}
    if adapter.draft_vocabulary is not None:
        ids = {"ids": adapter.draft_vocabulary.int()}
        # Its length, without which a file that an earlier adapter left here would be this one's.
        meta["draft_vocabulary"] = len(ids["ids"])
        files[VOCABULARY] = lambda path: save_file(ids, path, metadata={"format": "pt"})
    # Named only where there is one: programs from before it read every other folder.
    if adapter.draft_head is not None:
        meta["draft_head"] = {"rank": adapter.draft_head.rank}
    sizes = {name: tensor.numel() for name, tensor in state.items()}
    index = {"weight_map": {f"{prefix}{name}": WEIGHTS for name in state}}
    card = adapter_card(facts.name, adapter.settings, sizes, run=run, auto=auto, labels=facts.num_labels)
    write_together(
        folder,
        {
            WEIGHTS: lambda path: save_file(state, path, metadata={"format": "pt"}),
            CONFIG: text(json.dumps(meta, indent=2) + "\n"),
            INDEX: text(json.dumps(index, indent=2) + "\n"),
            CARD: text(card),
            **files,
        },
    )


def load(base: PreTrainedModel, folder: str | Path) -> Adapter:
    """Read an adapter for a base; every name and shape is checked before memory is allocated.

    Raises:
        CheckpointError: a file is missing, damaged or of another format, a tensor is missing, extra or of
            another shape, or the adapter was trained on another base.
        ConfigError: a setting in the JSON is unknown or out of range.
    """
    folder = Path(folder)
    meta = _read_config(folder)
    explicit = meta.get("explicit_shadow")
    if not isinstance(meta.get("shadow"), dict) or not (explicit is None or isinstance(explicit, dict)):
        raise CheckpointError(
            f"{folder / CONFIG} is not an adapter's configuration: 'shadow' must hold settings"
        )
    BaseFacts.read(meta.get("base"), folder / CONFIG).refuse_other(BaseFacts.of(base), folder)
    if meta["format"] == 2:
        meta["shadow"]["output_gains"] = False
    config = ShadowConfig.from_dict(meta["shadow"])
    if open_settings.left_open(config):
        raise CheckpointError(
            f"{folder / CONFIG} must say alpha, dropout, shadow_loss_weight, unit_state and output_gains, "
            "and does not; save the adapter again"
        )
    layers = config.shadow_layers if explicit is None else explicit.get("num_hidden_layers", 1)
    vocabulary = _read_vocabulary(meta.get("draft_vocabulary"), folder, base.config.vocab_size)
    build = partial(_build, base, config.resolved(), explicit, _draft_rank(meta, folder / CONFIG))
    adapter = reading.load_module(build, folder / CONFIG, folder / WEIGHTS, layers=layers)
    adapter.draft_vocabulary = vocabulary
    return adapter


def _read_vocabulary(length: Any, folder: Path, vocab_size: int) -> Tensor | None:
    """Read the draft vocabulary, if the description names one by its length."""
    if length is None:
        return None
    path = folder / VOCABULARY
    ids = reading.read_ids(path)
    if len(ids) != length:
        raise CheckpointError(
            f"{path} holds {len(ids)} ids, and {CONFIG} names {length!r}: they are of two adapters; copy "
            "both again"
        )
    try:
        return draft_vocabulary.checked(ids, vocab_size)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _build(
    base: PreTrainedModel, settings: ResolvedConfig, explicit: dict[str, Any] | None, draft_rank: int | None
) -> Adapter:
    if explicit is None:
        network = shadow.implicit(base, settings)
    else:
        backbone = reading.stock_config(explicit, "the adapter's shadow")
        network = shadow.explicit_from_config(base, backbone)
    return Adapter(base, settings, network, draft_rank)


def _draft_rank(meta: Mapping[str, Any], path: Path) -> int | None:
    """Return the rank of the draft head that a description names; `None` if it names none."""
    draft_head = meta.get("draft_head")
    if draft_head is None:
        return None
    rank = draft_head.get("rank") if isinstance(draft_head, dict) else None
    if type(rank) is not int or not 1 <= rank < LARGEST or len(draft_head) != 1:
        raise CheckpointError(
            f"{path}: draft_head must hold its rank, a whole number, and nothing else, got {draft_head!r}"
        )
    return rank


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"there is no adapter folder {folder}")
    path = folder / CONFIG
    if not path.exists():
        hint = "; did you mean its adapter/?" if (folder / "adapter" / CONFIG).is_file() else ""
        raise CheckpointError(f"{folder} holds no {CONFIG}: it is not an adapter folder{hint}")
    return reading.read_meta(path, READABLE, KEYS)
