"""The adapters beside one base: adding, choosing and deleting them, and what computes their boundaries."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import arch
from shadowpeft.config import ShadowConfig
from shadowpeft.decoder.casting import trained_type
from shadowpeft.errors import ConfigError, UnsupportedModelError
from shadowpeft.model import sources
from shadowpeft.ops import choice
from shadowpeft.shadow import draft_vocabulary, place
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import adapter_folder, hub_folder


class AdaptersMixin:
    """The methods for adapters. Listed before `PreTrainedModel`, whose methods of these names they replace.

    Attributes:
        adapters: the adapters by name.
        active_adapter: the name of the one that calls use by default.
        impl: the implementation of the boundaries, as it was asked for.
    """

    adapters: nn.ModuleDict
    active_adapter: str
    impl: str
    training: bool
    config: PretrainedConfig
    _boundary: choice.Boundary

    def _base(self) -> PreTrainedModel:
        raise NotImplementedError

    @property
    def adapter(self) -> Adapter:
        """The active adapter.

        Raises:
            ConfigError: there is none.
            UserError: the model was unloaded.
        """
        return self._adapter(None)

    def add_adapter(
        self,
        name: str,
        config: ShadowConfig | None = None,
        shadow: PreTrainedModel | str | Path | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Add an untrained adapter and make it the active one. Arguments and errors as `attach`."""
        base, config = self._base(), config or ShadowConfig()
        if not isinstance(config, ShadowConfig):
            raise ConfigError(
                f"config must be a ShadowConfig, got {type(config).__name__}; ShadowConfig.from_dict makes "
                "one of a mapping"
            )
        own = {id(p) for part in (base, self.adapters) for p in part.parameters()}
        if isinstance(shadow, nn.Module) and {id(p) for p in shadow.parameters()} & own:
            raise ConfigError(
                "this shadow is already part of the model (as base or as another adapter's shadow); give a "
                "copy of it"
            )
        check_type(dtype)
        self._own(name, sources.fresh_adapter(base, config, shadow), dtype, is_trainable=True)

    def load_adapter(
        self,
        folder: str | Path,
        name: str = "default",
        dtype: torch.dtype | None = None,
        is_trainable: bool = False,
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> None:
        """Load an adapter and make it the active one. Arguments and errors as `from_pretrained`."""
        check_type(dtype)
        folder = hub_folder.local(folder, adapter_folder.FILES, revision, subfolder)
        self._own(name, adapter_folder.load(self._base(), folder), dtype, is_trainable)

    def set_adapter(self, name: str, inference_mode: bool = False) -> None:
        """Choose the adapter that calls use by default; only this one trains, unless it was loaded frozen.

        Args:
            name: the adapter.
            inference_mode: freeze this one, too.

        Raises:
            ConfigError: there is no adapter of that name, or several are given.
        """
        self._adapter(name)
        self.active_adapter = name
        self._name_what_it_is()
        for other in self.adapters:
            self._adapter(other).set_trainable(other == name and not inference_mode)

    def delete_adapter(self, name: str) -> None:
        """Delete an adapter. If it is the active one, the first of the others becomes active, with a warning.

        Raises:
            ConfigError: there is no adapter of that name.
        """
        self._adapter(name)
        del self.adapters[name]
        if name != self.active_adapter:
            return
        self.active_adapter = next(iter(self.adapters), "")
        if self.active_adapter:
            warnings.warn(
                f"adapter {name!r} was the active one and is deleted; {self.active_adapter!r} is active now",
                stacklevel=2,
            )
            self.set_adapter(self.active_adapter)

    def set_draft_vocabulary(self, ids: Tensor | Iterable[int] | None, adapter: str | None = None) -> None:
        """Choose the tokens that an adapter's shadow drafts: its head then reads their rows alone.

        What is generated stays the same: a token outside is never drafted, and the base writes it. It is
        saved with the adapter, and `generate(draft="shadow")` uses it.

        Args:
            ids: the tokens, (N,), in any order; `None` for all.
            adapter: which one; the active one by default.

        Raises:
            ConfigError: they are not ids of the base's tokens, or the model is a classifier.
        """
        chosen = self._adapter(adapter)
        if ids is not None and chosen.score is not None:
            raise ConfigError("a classifier drafts nothing, and has no draft vocabulary")
        chosen.draft_vocabulary = (
            None if ids is None else draft_vocabulary.checked(ids, self._base().config.vocab_size)
        )

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return how many parameters train, and how many there are with the base's."""
        stock: Any = self
        return stock.num_parameters(only_trainable=True), stock.num_parameters()

    def print_trainable_parameters(self) -> None:
        """Print the counts of `get_nb_trainable_parameters`, and the share that trains, as PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    def set_impl(self, impl: str) -> None:
        """Choose the implementation of the boundaries. It is not part of an adapter and is not saved.

        Args:
            impl: `reference` for plain torch, `compile` for `torch.compile` of it, `triton` for the fused
                kernels, `auto` for `triton` where it can run and `reference` elsewhere. Apart from `auto`,
                none is ever replaced by another.

        Raises:
            ConfigError: it cannot run on this machine, or cannot serve this model.
            UserError: the model was unloaded.
        """
        self._base()  # raises if the model was unloaded
        chosen = choice.boundary_of(impl)
        for adapter in self._all_adapters():
            self._require_served(impl, adapter)
        self.impl, self._boundary = impl, chosen

    def _adapter(self, name: str | None) -> Adapter:
        self._base()  # raises if the model was unloaded
        if name is None:
            name = self.active_adapter
        if not isinstance(name, str):
            raise ConfigError(f"one adapter answers a call; give the name of one, got {name!r}")
        adapters = self.adapters
        if not adapters:
            raise ConfigError("the model has no adapter; add_adapter() or load_adapter() one")
        if name not in adapters:
            raise ConfigError(f"no adapter named {name!r}; there are: {', '.join(adapters)}")
        adapter = adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def _name_what_it_is(self) -> None:
        """Give the configuration the base's name while the adapter changes nothing, and else none.

        By this name TRL's trainers load the reference of a model that they are about to train. No name stands
        for a base with a trained adapter, and the bare base is another model.
        """
        name = self._base().config.name_or_path
        if self.active_adapter and not self._adapter(None).changes_nothing():
            name = ""
        self.config.name_or_path = name

    def _all_adapters(self) -> list[Adapter]:
        return [self._adapter(name) for name in self.adapters]

    def _own(self, name: str, adapter: Adapter, dtype: torch.dtype | None, is_trainable: bool) -> None:
        """Register an adapter on the base's device, in the wanted type, and make it the active one."""
        if not name or "." in name or name in self.adapters or name in dir(self.adapters):
            raise ConfigError(
                "adapter names must be new, not empty, without dots and none of torch's own words (such as "
                f"'keys'), got {name!r}; there are: {', '.join(self.adapters) or 'none'}"
            )
        table = arch.token_embedding_of(self._base()).weight
        unmade = any(tensor.is_meta for tensor in (*adapter.parameters(), *adapter.buffers()))
        if table.is_meta and not next(adapter.parameters()).is_meta:
            raise UnsupportedModelError(
                "the base's embeddings are not in memory (offloaded or on 'meta'); load the base onto a "
                "device first"
            )
        if unmade and not table.is_meta:
            raise UnsupportedModelError(
                "the adapter was made on the device 'meta' and has no weights, and the base has; attach or "
                "load it outside of torch.device('meta') and init_empty_weights()"
            )
        blocked = arch.gradient_stop(self._base()) if is_trainable and not unmade else None
        if blocked is not None:
            raise UnsupportedModelError(
                f"no gradient passes through the base's quantised layers ({blocked}), so nothing could be "
                "trained; quantise it in 4 or 8 bits with bitsandbytes or with weight-only types of torchao, "
                "or load a trained adapter with is_trainable=False"
            )
        self._require_served(self.impl, adapter)
        if dtype is None:
            dtype = trained_type(table.dtype) if is_trainable else table.dtype
        place(adapter, adapter.shadow, table, dtype)
        adapter.name, adapter.is_trainable = name, is_trainable
        adapter.train(self.training)
        self.adapters[name] = adapter
        self.set_adapter(name)

    def _require_served(self, impl: str, adapter: Adapter) -> None:
        """Raise if the named implementation could not run an adapter."""
        base, settings = self._base(), adapter.settings
        norms = []
        if settings.variant == "normed":
            norms = [arch.input_norm_of(block, arch.family_of(base)) for block in arch.blocks_of(base)]
        choice.require_served(
            impl, arch.token_embedding_of(base).weight.dtype, (settings.r, settings.update_width), norms
        )


def check_type(dtype: torch.dtype | None) -> None:
    """Raise unless a type is one that weights can have.

    Raises:
        ConfigError: it is not.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(
            f"dtype must be a floating-point type of torch, such as torch.float32, got {dtype!r}; "
            "leave it out for the default"
        )
