"""The source of an export: the shadow of an adapter, or a pretrained one, with the base's tokenizer."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.data.tokenizers import stop_ids
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.model import ShadowedModel, preflight
from shadowpeft.model.detach import detached_shadow
from shadowpeft.storage import adapter_folder, hub_folder, reading, shadow_folder, stock_models
from shadowpeft.storage.base_facts import BaseFacts


@dataclass(frozen=True)
class Source:
    """A shadow to export, whose weights are not loaded yet.

    Attributes:
        base: folder or hub id of the base.
        folder: the adapter's folder, or that of a pretrained shadow.
        pretrained: whether it is the latter.
        tokenizer: the base's.
        backbone: configuration with the kind of model that the detached one will be; its sizes may be others.
        task: what it was trained for.
        labels: number of classes of a classifier, `None` otherwise.
    """

    base: str
    folder: Path
    pretrained: bool
    tokenizer: PreTrainedTokenizerBase
    backbone: PretrainedConfig
    task: arch.Task
    labels: int | None

    @classmethod
    def inspect(cls, base: str, adapter: str | Path | None, shadow: str | Path | None) -> "Source":
        """Find out what will be exported, from the small files and without reading weights.

        Args:
            base: folder or hub id of the base.
            adapter: the adapter's folder or hub id.
            shadow: folder of a pretrained shadow, in place of `adapter`.

        Raises:
            ConfigError: not exactly one of adapter and shadow is given.
            CheckpointError: there is no such folder, or what describes it is damaged.
            UserError: the base cannot be reached.
        """
        if (adapter is None) == (shadow is None):
            raise ConfigError(
                "give either --adapter, the folder of an adapter, or --shadow, that of a pretrained shadow"
            )
        if adapter is not None:
            adapter = hub_folder.local(adapter, adapter_folder.FILES)
            if not adapter.is_dir():
                raise CheckpointError(f"no adapter folder at {adapter}")
        config, tokenizer, _ = preflight.inspect(base, needs_family=False)
        task: arch.Task = "causal-lm"
        if adapter is None:
            assert shadow is not None
            folder, labels = Path(shadow), None
            backbone = shadow_folder.backbone_config(shadow, config)
        else:
            folder = Path(adapter)
            backbone, facts = _described(folder, config)
            labels = facts.num_labels
            if facts.task != "causal-lm":
                task = "sequence-classification"
        return cls(
            base=base,
            folder=folder,
            pretrained=adapter is None,
            tokenizer=tokenizer,
            backbone=_detached_kind(backbone, config),
            task=task,
            labels=labels,
        )

    def detach(self, dtype: torch.dtype | str) -> PreTrainedModel:
        """Load the base, and build the detached model, which ends its answers where the base does.

        Args:
            dtype: type of the weights, `auto` for the base's.

        Raises:
            CheckpointError: the shadow's folder is damaged or was written for another base.
            UserError: the base cannot be loaded, or its head cannot be folded.
        """
        if self.task == "causal-lm":
            base = stock_models.load_model(self.base, dtype)
        else:
            assert self.labels is not None
            base = stock_models.load_classifier(self.base, self.labels, dtype)
        if self.pretrained:
            shadow = shadow_folder.load(base, self.folder)
            model = detached_shadow(base, shadow, base.config, arch.token_embedding_of(base).weight.dtype)
        else:
            model = ShadowedModel.from_pretrained(base, self.folder).detached()
        if self.task == "causal-lm":
            model.generation_config.eos_token_id = stop_ids(model, self.tokenizer)
        return model


def _detached_kind(backbone: PretrainedConfig, base: PretrainedConfig) -> PretrainedConfig:
    """Return a configuration with the kind of the detached model; its sizes may be others."""
    # An explicit shadow gets the base's head, so its own embeddings are never tied to it. An implicit one has
    # dense blocks, whatever the base has, and one block is enough to show what they are.
    if backbone is base:
        backbone = copy.deepcopy(base)
        arch.make_shadow(backbone, 1)
    else:
        backbone.tie_word_embeddings = False
    return backbone


def _described(adapter: Path, base: PretrainedConfig) -> tuple[PretrainedConfig, BaseFacts]:
    """Read the configuration of an adapter's shadow, and the facts of its base.

    Raises:
        CheckpointError: the description is missing, damaged or of another format.
    """
    path = adapter / adapter_folder.CONFIG
    if not path.exists():
        raise CheckpointError(f"{adapter} holds no {adapter_folder.CONFIG}: it is not an adapter folder")
    meta = reading.read_meta(path, adapter_folder.READABLE, adapter_folder.KEYS)
    backbone, explicit = base, meta.get("explicit_shadow")
    if isinstance(explicit, dict):
        backbone = reading.stock_config(explicit, "the adapter's shadow")
    return backbone, BaseFacts.read(meta.get("base"), path)
