"""`save_pretrained`, as transformers and its Trainer call it, writes one adapter."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.decoder import sharded
from shadowpeft.decoder.loan import trained_weights
from shadowpeft.decoder.offloaded import in_memory
from shadowpeft.errors import CheckpointError, ConfigError, UserError
from shadowpeft.model.refusals import refuse_resized
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

    adapters: nn.ModuleDict
    active_adapter: str
    task: arch.Task
    _facts: base_facts.BaseFacts

    def _base(self) -> PreTrainedModel:
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
        selected_adapters: Iterable[str] | None = None,
        **stock: Any,
    ) -> None:
        """Write one adapter or several (never the base): each as safetensors, JSON and a model card.

        Under FSDP every process must call it.

        Args:
            save_directory: the folder; files of an earlier save are replaced only once the new ones are
                complete.
            adapter: which one; the active one by default.
            run: facts of the training for the model card, by name.
            state_dict: this model's tensors gathered elsewhere, as sharded training passes them.
            is_main_process: write only if true, as distributed training passes it.
            selected_adapters: names of several adapters, in place of `adapter`. As in PEFT each is written to
                a folder of its name, and one called `default` to `save_directory` itself.
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
        if selected_adapters is not None:
            names = [selected_adapters] if isinstance(selected_adapters, str) else list(selected_adapters)
            if adapter is not None or not names:
                raise ConfigError(
                    "save_pretrained takes either adapter, one name, or selected_adapters, a list of names "
                    f"such as {list(self.adapters)}"
                )
            places = {name: _place(save_directory, name) for name in names if self._adapter(name)}
            for name, place in places.items():
                self.save_pretrained(
                    place, name, run=run, state_dict=state_dict, is_main_process=is_main_process
                )
            return
        refuse_resized(self._base(), self._facts.vocab_size)
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
        adapter_folder.save(
            self._adapter(adapter),
            tensors,
            self._facts,
            save_directory,
            run=run or {},
            prefix=_prefix(adapter),
            auto=arch.auto_class(self._base().config, self.task).__name__,
        )

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        # What transformers' Trainer does not miss in a checkpoint: all but the active adapter.
        stock: Any = self
        return [key for key in stock.state_dict() if not key.startswith(_prefix(self.active_adapter))]

    @_keys_to_ignore_on_save.setter
    def _keys_to_ignore_on_save(self, value: Any) -> None:
        """Do nothing: they follow from the active adapter, whatever `post_init` gathers."""

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the whole model's tensors, or those of a saved adapter into the active one.

        transformers' Trainer reads a checkpoint's `shadow.safetensors` and passes it here, to resume and to
        load the best model. An adapter is always loaded strictly.

        Args:
            state_dict: tensors by the names of this model, or by those of an adapter's file.
            strict: refuse a tensor too many or too few, for the whole model.
            assign: as torch's; an adapter's tensors are copied.

        Raises:
            CheckpointError: they are those of an adapter with other names or shapes than the active one's.
        """
        if not state_dict or any(key.startswith(("base.", "adapters.")) for key in state_dict):
            stock: Any = super()
            return stock.load_state_dict(state_dict, strict=strict, assign=assign)
        try:
            self._adapter(None).load_state_dict(state_dict, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"the saved adapter does not fit the active one, {self.active_adapter!r}: attach with the "
                f"settings that it was trained with ({error})"
            ) from error
        return _IncompatibleKeys([], [])

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
            try:
                with in_memory([adapter]):
                    return sharded.whole(adapter.state_dict())
            except UserError as error:
                raise CheckpointError(f"{error}; nothing was written") from error
        prefix = _prefix(name)
        return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def _place(directory: str | Path, name: str) -> Path:
    """Return the folder of one of several adapters, which is never outside of the directory.

    Raises:
        ConfigError: the name is a path.
    """
    if "/" in name or "\\" in name:
        raise ConfigError(f"adapter {name!r} has a name that is a path; save it by itself, with adapter=")
    return Path(directory) / ("" if name == "default" else name)


def _prefix(adapter: str) -> str:
    return f"adapters.{adapter}."
