"""What is exported: the shadow of an adapter, or a pretrained one, and the tokenizer that goes with it."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.data.tokenizers import stop_ids
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.model import ShadowedModel
from shadowpeft.model.detach import detached_shadow
from shadowpeft.storage import adapter_folder, reading, shadow_folder, stock_models
from shadowpeft.storage.base_facts import BaseFacts


@dataclass(frozen=True)
class Source:
    """A shadow to export, looked at and not loaded yet.

    Attributes:
        base: folder or hub id of the base.
        folder: the adapter's folder, or that of a pretrained shadow.
        pretrained: whether it is the latter.
        tokenizer: the base's.
        backbone: configuration that tells what kind of model the detached one will be, sizes left aside.
        task: what it was trained for.
        labels: how many classes a classifier tells.
    """

    base: str
    folder: Path
    pretrained: bool
    tokenizer: PreTrainedTokenizerBase
    backbone: PretrainedConfig
    task: arch.Task
    labels: int | None

    @classmethod
    def look(cls, base: str, adapter: str | Path | None, shadow: str | Path | None) -> "Source":
        """Find out what is to be exported from the small files, before any weights are read.

        Raises:
            ConfigError: not exactly one of adapter and shadow is given.
            CheckpointError: there is no such folder, or what describes it is damaged.
            UserError: the base cannot be reached.
        """
        if (adapter is None) == (shadow is None):
            raise ConfigError(
                "give either --adapter, the folder of an adapter, or --shadow, that of a pretrained shadow"
            )
        if adapter is not None and not Path(adapter).is_dir():
            raise CheckpointError(f"no adapter folder at {adapter}")
        config = stock_models.load_config(base)  # a base that cannot be reached is found out with one request
        tokenizer = stock_models.load_tokenizer(base)
        if adapter is None:
            assert shadow is not None
            backbone = shadow_folder.backbone_config(shadow, config)
            return cls(
                base, Path(shadow), True, tokenizer, _detached_kind(backbone, config), "causal-lm", None
            )
        backbone, facts = _described(Path(adapter), config)
        task: arch.Task = "causal-lm" if facts.task == "causal-lm" else "sequence-classification"
        return cls(
            base, Path(adapter), False, tokenizer, _detached_kind(backbone, config), task, facts.num_labels
        )

    def detach(self, dtype: torch.dtype | str) -> PreTrainedModel:
        """Load the base, build the detached model in its type, and let it stop where the base's answers end.

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
    """Describe the detached model by kind, its sizes left aside: an explicit shadow's head is the base's and so never tied to its own
    embeddings; an implicit one has dense blocks, whatever the base's are, and one stands for all."""
    if backbone is base:
        backbone = copy.deepcopy(base)
        arch.set_depth(backbone, 1)
    else:
        backbone.tie_word_embeddings = False
    return backbone


def _described(adapter: Path, base: PretrainedConfig) -> tuple[PretrainedConfig, BaseFacts]:
    """Read the configuration of an adapter's shadow, and the facts of its base."""
    path = adapter / adapter_folder.CONFIG
    if not path.exists():
        raise CheckpointError(f"{adapter} holds no {adapter_folder.CONFIG}: it is not an adapter folder")
    meta = reading.read_meta(path, adapter_folder.READABLE)
    explicit = meta.get("explicit_shadow")
    backbone = reading.stock_config(explicit, "the adapter's shadow") if isinstance(explicit, dict) else base
    return backbone, BaseFacts.read(meta.get("base"), path)
