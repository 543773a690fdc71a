"""What transformers asks of every model, answered for a base that is only lent: flags, embeddings, checkpointing, adapter verbs."""

from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.errors import UserError
from shadowpeft.model import hf_surface
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.shadow.boundary import BoundaryWeights


class StockSurface:
    """Goes before `PreTrainedModel`: the parts of its surface that must not act on the base as if it were ours."""

    task: arch.Task
    adapters: nn.ModuleDict
    active_adapter: str
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 - transformers' own form

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # as with attention above: the base has checked its configuration, and this model only copies it

    @property
    def _no_split_modules(self) -> set[str]:
        return hf_surface.unit_classes(self._base(), self.adapters)

    def _base(self) -> PreTrainedModel:
        raise NotImplementedError

    def enable_input_require_grads(self) -> None:
        """Do nothing: only reentrant checkpointing needs inputs with a gradient, and no hook goes onto the lent base."""

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, **kwargs: Any
    ) -> None:
        if isinstance(gradient_checkpointing_func, partial) and gradient_checkpointing_func.keywords.get(
            "use_reentrant"
        ):
            raise UserError(
                "gradient checkpointing must be set to use_reentrant=False, or the shadow gets no gradient"
            )
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)  # type: ignore[misc]

    def get_input_embeddings(self) -> nn.Module:
        """Return the base's token embeddings."""
        return arch.token_embedding_of(self._base())

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the base's language-model head, `None` for a classifier."""
        return arch.head_of(self._base()) if self.task == "causal-lm" else None

    def resize_token_embeddings(self, *_: Any, **__: Any) -> nn.Embedding:
        """Refuse: the vocabulary belongs to the base.

        Raises:
            UserError: always; resize the base before attaching.
        """
        raise UserError(
            "the embeddings belong to the base: call resize_token_embeddings on the base before attach()"
        )

    def active_adapters(self) -> list[str]:
        """Return the name of the adapter that calls use by default, in a list as transformers has it."""
        return [self.active_adapter]

    def enable_adapters(self) -> None:
        """Refuse: adapters are off only while `disabled()` lasts.

        Raises:
            UserError: always.
        """
        raise UserError("adapters are on unless a call is inside `with model.disabled():`")

    disable_adapters = enable_adapters


def unit_classes(base: PreTrainedModel, adapters: nn.ModuleDict) -> set[str]:
    """Name the classes of which every module is a unit, as accelerate's `TRANSFORMER_BASED_WRAP` asks for them."""
    units = [
        arch.blocks_of(base)[0],
        *(module for module in adapters.modules() if isinstance(module, BoundaryWeights)),
    ]
    for adapter in adapters.values():
        assert isinstance(adapter, Adapter)
        units.append(adapter.shadow.backbone.get_submodule(f"{adapter.shadow.family.blocks}.0"))
    return {type(module).__name__ for module in units}
