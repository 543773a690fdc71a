"""What transformers asks of every model, for a base that is only lent: flags, embeddings, adapters."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import arch
from shadowpeft.arch import versions
from shadowpeft.errors import UserError
from shadowpeft.model.headless import Headless
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.shadow.boundary import BoundaryWeights


class HFSurfaceMixin:
    """The methods of `PreTrainedModel` that would act on the base as if it were ours. Listed before it."""

    task: arch.Task
    active_adapter: str
    base: PreTrainedModel | None
    config: PretrainedConfig
    # Set by accelerate where it spreads the whole model, not the base alone.
    _own_device_map: dict[str, int | str | torch.device] | None = None
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Several processes train by DDP and FSDP2 alone.
    supports_tp_plan = False
    supports_pp_plan = False

    _skip_keys_device_placement = [*versions.CACHE_NAMES]  # noqa: RUF012 - transformers' own form

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # as for attention above: the base has checked its configuration, which this model copies

    @property
    def _no_split_modules(self) -> set[str]:
        return _unit_classes(self._base(), self._all_adapters())

    def _base(self) -> PreTrainedModel:
        raise NotImplementedError

    def _all_adapters(self) -> list[Adapter]:
        raise NotImplementedError

    def _name_what_it_is(self) -> None:
        raise NotImplementedError

    @property
    def base_model(self) -> Headless:
        """The model without its head, as transformers has it: attached, unless inside `disabled()`.

        The frozen model that the adapter was attached to is `base`.
        """
        stock: Any = self
        return Headless(stock)

    def get_decoder(self) -> Headless:
        """Return `base_model`."""
        return self.base_model

    @property
    def loss_function(self) -> Any:
        """The loss that transformers would compute of the logits; the model's own is eq. 9.

        Raises:
            UserError: where it is set to another, which would not be applied.
        """
        stock: Any = super()
        return stock.loss_function

    @loss_function.setter
    def loss_function(self, value: Any) -> None:
        raise UserError(
            "the model's loss is that of eq. 9 and takes no loss_function; give a function of both heads' "
            "logits to ShadowTrainer(compute_loss_func=...)"
        )

    def _get_name(self) -> str:
        # The Trainer's label smoothing shifts the labels of models that have the name of a language model.
        return type(self if self.base is None else self.base).__name__

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {super().__repr__()}"

    def train(self, mode: bool = True) -> Any:
        """Set the mode, as torch does, and keep the configuration's name true (`_name_what_it_is`)."""
        # To look at the weights waits for the device, and a trainer calls this at every step. A name that is
        # gone stays so until another adapter is chosen.
        if self.base is not None and self.config.name_or_path:
            self._name_what_it_is()
        stock: Any = super()
        return stock.train(mode)

    def init_weights(self) -> None:
        """Raise: base and adapters have their weights, and drawing them anew would lose what was trained.

        Raises:
            UserError: always; a fresh adapter is added by `add_adapter`.
        """
        raise UserError(
            "init_weights would overwrite the base's and the trained weights; add_adapter() makes a fresh "
            "adapter"
        )

    initialize_weights = init_weights

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: transformers asks for it where it would draw weights anew."""

    def post_init(self) -> None:
        """Do nothing: base and adapters are complete, and have done what this does in a stock model."""

    def can_generate(self: Any = None) -> bool:
        """Return whether a model can generate; asked of the class, whether some model of it can."""
        return self is None or self.task == "causal-lm"

    @property
    def hf_device_map(self) -> dict[str, int | str | torch.device]:
        """Where accelerate keeps each part; without it transformers would move a spread base to one device.

        Raises:
            AttributeError: neither this model nor its base has been spread; transformers asks in this way.
        """
        if self._own_device_map is not None:
            return self._own_device_map
        spread = None if self.base is None else arch.device_map_of(self.base)
        if spread is None:
            raise AttributeError("hf_device_map")
        return {f"base.{part}".rstrip("."): place for part, place in spread.items()}

    @hf_device_map.setter
    def hf_device_map(self, value: dict[str, int | str | torch.device]) -> None:
        self._own_device_map = value

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], **options: Any) -> None:
        """Choose how attention is computed, in the base and in every shadow."""
        # Not by transformers' own method, which before 5.23 finds no model of the same kind inside another.
        base = self._base()
        arch.set_implementations(base, attention=attn_implementation, **options)
        for adapter in self._all_adapters():
            adapter.shadow.backbone.set_attn_implementation(attn_implementation, **options)
        # Some bases (Falcon) cannot change, which transformers has said in a warning.
        self.config._attn_implementation = base.config._attn_implementation

    def set_experts_implementation(self, experts_implementation: str | dict[str, str]) -> None:
        """Choose how mixtures of experts compute, in the base and in every shadow that is one."""
        base = self._base()
        arch.set_implementations(base, experts=experts_implementation)
        for adapter in self._all_adapters():
            adapter.shadow.backbone.set_experts_implementation(experts_implementation)
        self.config._experts_implementation = base.config._experts_implementation

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise UserError(
            "torch.nn.DataParallel copies a model for each GPU and would lose the base's blocks; start one "
            "process for each GPU (torchrun or accelerate launch), or show this one a single GPU "
            "(CUDA_VISIBLE_DEVICES=0)"
        )

    def enable_input_require_grads(self) -> None:
        """Do nothing: only reentrant checkpointing needs it, and the lent base gets no hook."""

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, **kwargs: Any
    ) -> None:
        if isinstance(gradient_checkpointing_func, partial) and gradient_checkpointing_func.keywords.get(
            "use_reentrant"
        ):
            raise UserError(
                "gradient checkpointing must be set to use_reentrant=False, or the shadow gets no gradient"
            )
        stock: Any = super()
        stock._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the base's token embeddings."""
        return arch.token_embedding_of(self._base())

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the base's language-model head, `None` for a classifier."""
        return arch.head_of(self._base()) if self.task == "causal-lm" else None

    def resize_token_embeddings(self, *_: Any, **__: Any) -> nn.Embedding:
        """Raise: the vocabulary belongs to the base.

        Raises:
            UserError: always; resize the base before attaching.
        """
        raise UserError(
            "the embeddings belong to the base: call resize_token_embeddings on the base before attach()"
        )

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Raise: embeddings and head belong to the base.

        Raises:
            UserError: always; set them on the base before attaching.
        """
        raise UserError("embeddings and head belong to the base: set them on the base before attach()")

    set_output_embeddings = set_input_embeddings

    def active_adapters(self) -> list[str]:
        """Return the name of the adapter that calls use by default, in a list as transformers has it."""
        return [self.active_adapter]

    def enable_adapters(self) -> None:
        """Raise: adapters are off only while `disabled()` lasts.

        Raises:
            UserError: always.
        """
        raise UserError("adapters are on unless a call is inside `with model.disabled():`")

    disable_adapters = disable_adapter = enable_adapters

    def merge_and_unload(self, *_: Any, **__: Any) -> PreTrainedModel:
        """Raise: a shadow is a network beside the base, and no change of the base's weights.

        Raises:
            UserError: always.
        """
        raise UserError(
            "a shadow cannot be merged into the base's weights: detached() gives the shadow alone as a "
            "model, and unload() the base alone"
        )

    merge_adapter = merge_and_unload


def _unit_classes(base: PreTrainedModel, adapters: Iterable[Adapter]) -> set[str]:
    """Return the names of the classes that FSDP shards module by module (`TRANSFORMER_BASED_WRAP`)."""
    units = [arch.blocks_of(base)[0]]
    for adapter in adapters:
        units += [module for module in adapter.modules() if isinstance(module, BoundaryWeights)]
        units.append(adapter.shadow.backbone.get_submodule(f"{adapter.shadow.family.blocks}.0"))
    return {type(module).__name__ for module in units}
