"""The adapters beside one base: adding, choosing and deleting them, and what computes their boundaries."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.config import ShadowConfig
from shadowpeft.errors import ConfigError, UnsupportedModelError
from shadowpeft.model import sources
from shadowpeft.ops import choice
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import adapter_folder


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
        self._own(name, sources.fresh_adapter(base, config, shadow), dtype)

    def load_adapter(
        self, folder: str | Path, name: str = "default", dtype: torch.dtype | None = None
    ) -> None:
        """Load an adapter from its folder and make it the active one.

        Raises:
            CheckpointError: the folder is damaged or was written for another base.
        """
        self._own(name, adapter_folder.load(self._base(), folder), dtype)

    def set_adapter(self, name: str) -> None:
        """Choose the adapter that calls use by default; only this one trains.

        Raises:
            ConfigError: there is no adapter of that name.
        """
        self._adapter(name)
        self.active_adapter = name
        for other in self.adapters:
            self._adapter(other).set_trainable(other == name)

    def delete_adapter(self, name: str) -> None:
        """Delete an adapter that is not the active one.

        Raises:
            ConfigError: there is no adapter of that name, or it is the active one.
        """
        self._adapter(name)
        if name == self.active_adapter:
            raise ConfigError(f"adapter {name!r} is the active one; set_adapter() another first, or unload()")
        del self.adapters[name]

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
        if name not in self.adapters:
            raise ConfigError(f"no adapter named {name!r}; there are: {', '.join(self.adapters) or 'none'}")
        adapter = self.adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def _all_adapters(self) -> list[Adapter]:
        return [self._adapter(name) for name in self.adapters]

    def _own(self, name: str, adapter: Adapter, dtype: torch.dtype | None) -> None:
        """Register an adapter on the base's device, in the wanted type, and make it the active one."""
        if not name or "." in name or name in self.adapters or name in dir(self.adapters):
            raise ConfigError(
                "adapter names must be new, not empty, without dots and none of torch's own words (such as "
                f"'keys'), got {name!r}; there are: {', '.join(self.adapters) or 'none'}"
            )
        table = arch.token_embedding_of(self._base()).weight
        if table.device.type == "meta" and next(adapter.parameters()).device.type != "meta":
            raise UnsupportedModelError(
                "the base's embeddings are not in memory (offloaded or on 'meta'); load the base onto a "
                "device first"
            )
        self._require_served(self.impl, adapter)
        adapter.cast(table.device, dtype or table.dtype, base_dtype=table.dtype)
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
