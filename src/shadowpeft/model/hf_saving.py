"""`save_pretrained`, as transformers and its Trainer call it, writes one adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from shadowpeft.decoder import sharded
from shadowpeft.decoder.loan import trained_weights
from shadowpeft.decoder.offloaded import in_memory
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import adapter_folder, base_facts

# What transformers' own callers of `save_pretrained` pass and an adapter does not need.
_UNUSED = ("max_shard_size", "safe_serialization", "save_peft_format", "token", "variant")


_WAY_OUT = (
    "; to keep both, save the base (model.base.save_pretrained), attach to the saved base, and give the new "
    "adapter this one's weights (model.adapter.load_state_dict)"
)


class HFSavingMixin:
    """Saving of adapters. Listed before `PreTrainedModel`, whose method it replaces."""

    active_adapter: str
    _facts: base_facts.BaseFacts

    def _base(self) -> PreTrainedModel:
        raise NotImplementedError

    def _refuse_resized_base(self) -> None:
        raise NotImplementedError

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
            CheckpointError: weights of the base train or have changed, `state_dict` lacks the adapter or its
                values, or the files could not be written; those already there are unchanged.
        """
        unapplied = [key for key, value in stock.items() if key not in _UNUSED and value]
        if unapplied:
            raise ConfigError(
                f"save_pretrained writes an adapter and does not take {', '.join(unapplied)}; to publish "
                "call push_to_hub()"
            )
        self._refuse_resized_base()
        self._refuse_trained_base()
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
        self._refuse_changed_weights()
        adapter_folder.save(self._adapter(adapter), tensors, self._facts, save_directory, run=run or {})

    def _refuse_trained_base(self) -> None:
        """Raise if weights of the base require gradients: the folder of an adapter holds none of them.

        Raises:
            CheckpointError: names the first such weight.
        """
        trained = trained_weights(self._base())
        if trained:
            raise CheckpointError(
                f"the base's weight {trained[0]} requires a gradient, and an adapter's folder holds "
                "no weights of the base: what it learnt would be lost; freeze it before training "
                f"(model.base.requires_grad_(False)){_WAY_OUT}"
            )

    def _refuse_changed_weights(self) -> None:
        """Raise if the base's weights are not those that it had when it was lent.

        Raises:
            CheckpointError: names the part that changed. What is not in memory is not compared.
        """
        part = self._facts.other_part(base_facts.BaseFacts.of(self._base()))
        if part is not None:
            raise CheckpointError(
                f"the base's weights have changed since it was lent (of its {part}), and an adapter's folder "
                f"holds none of them: the change would be lost{_WAY_OUT}"
            )

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
