"""`save_pretrained`, as transformers and its Trainer call it, writes one adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shadowpeft.decoder import sharded
from shadowpeft.decoder.offloaded import in_memory
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import adapter_folder, base_facts

# What transformers' own callers of `save_pretrained` pass and an adapter does not need.
_UNUSED = ("max_shard_size", "safe_serialization", "save_peft_format", "token", "variant")


class HFSavingMixin:
    """Saving of adapters. Listed before `PreTrainedModel`, whose method it replaces."""

    active_adapter: str
    _facts: base_facts.BaseFacts

    def _adapter(self, name: str | None) -> Adapter:
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | Path,
        adapter: str | None = None,
        run: Mapping[str, Any] | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        **stock: Any,
    ) -> None:
        """Write one adapter (never the base) to a folder: safetensors, JSON and a model card.

        Under FSDP every process must call it.

        Args:
            save_directory: the folder; files of an earlier save are replaced only once the new ones are
                complete.
            adapter: which one; the active one by default.
            run: facts of the training for the model card, by name.
            state_dict: this model's tensors gathered elsewhere, as sharded training passes them.
            is_main_process: write only if true, as distributed training passes it.
            **stock: what transformers' own callers pass and an adapter does not need, such as
                `max_shard_size`.

        Raises:
            ConfigError: an argument is given that would not be applied, such as `push_to_hub=True`.
            CheckpointError: `state_dict` lacks the adapter or its values, or the files could not be written; those already there are unchanged.
        """
        unapplied = [key for key, value in stock.items() if key not in _UNUSED and value]
        if unapplied:
            raise ConfigError(
                f"save_pretrained writes an adapter and does not take {', '.join(unapplied)}; to publish "
                "call push_to_hub()"
            )
        if adapter is None:
            adapter = self.active_adapter
        # Every process must take part in gathering, also one that writes nothing.
        tensors = self._tensors_of(adapter, state_dict)
        if not is_main_process:
            return
        if not tensors:
            raise CheckpointError(
                f"the given state_dict holds nothing of adapter {adapter!r} (no key starts with "
                f"{_prefix(adapter)!r}); nothing was written"
            )
        unread = [key for key, tensor in tensors.items() if tensor.is_meta]
        if unread:
            raise CheckpointError(
                f"the given state_dict has {unread[0]} on the meta device, which holds no values; leave "
                "state_dict out, and offloaded weights are fetched; nothing was written"
            )
        adapter_folder.save(self._adapter(adapter), tensors, self._facts, save_directory, run=run or {})

    def _tensors_of(self, name: str, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Return an adapter's tensors by name, from a state dict of the whole model if one is given."""
        if state_dict is None:
            adapter = self._adapter(name)
            with in_memory([adapter]):
                return sharded.whole(adapter.state_dict())
        prefix = _prefix(name)
        return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def _prefix(adapter: str) -> str:
    return f"adapters.{adapter}."
