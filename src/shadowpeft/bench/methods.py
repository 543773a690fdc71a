"""The methods that are timed: how each is put on the base, and what a step of training or reading calls.

B rows, T tokens.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft import ShadowConfig, ShadowedModel, arch, attach
from shadowpeft.arch.versions import bridge_former_cache_name
from shadowpeft.bench import liger
from shadowpeft.bench.settings import Bench
from shadowpeft.bench.specs import Spec
from shadowpeft.config import Variant
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.losses.frozen_head import Head
from shadowpeft.losses.normalised import frozen_head_losses

RANK = 8  # of LoRA and DoRA


@dataclass(frozen=True)
class AppliedMethod:
    """A method that is on the base.

    Attributes:
        model: holds the trained parameters.
        inputs: makes the arguments of `loss` from token ids, (B, T); never compiled.
        loss: computes the loss of a training step.
        prefill: computes the logits of the last position from token ids, and fills the cache as `generate`
            does.
        impl: how the boundary is computed; `None` for other methods.
        inject_from: the first adapted block; `None` for a method without such a setting.
        trained_in: what is trained in which type (`specs.TRAINED_IN`); `None` for a method that trains
            nothing.
    """

    model: nn.Module
    inputs: Callable[[Tensor], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    prefill: Callable[[Tensor], Tensor]
    impl: str | None = None
    inject_from: int | None = None
    trained_in: str | None = None

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that a step trains."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def apply(spec: Spec, base: PreTrainedModel, settings: Bench) -> AppliedMethod:
    """Put a method on a frozen base, its weights drawn on the base's device.

    Raises:
        ImportError: its library is not installed.
        UserError: the method cannot do this here.
    """
    with torch.device(base.device):
        applied = _METHODS[spec.method](spec, base, settings)
    # Float32 without autocast is what a library does by itself: PEFT's Shadow computes with its layers in the
    # base's type alone, and its rows say so.
    if spec.trained_in != "float32":
        dtype = base.dtype if spec.trained_in == "base" else torch.float32
        for parameter in applied.trained():
            parameter.data = parameter.data.to(dtype)
    return replace(applied, trained_in=spec.trained_in)


def ours(
    base: PreTrainedModel, variant: Variant | None, impl: str, trained_in: str | None = None, **changes: Any
) -> ShadowedModel:
    """Attach a shadow as a user does; open settings have their defaults."""
    dtype = base.dtype if trained_in == "base" else None
    return attach(base, replace(config_of(variant), **changes), dtype=dtype, impl=impl)


def config_of(variant: Variant | None) -> ShadowConfig:
    """Return the settings of a shadow: the defaults of its variant, or of ShadowConfig."""
    return ShadowConfig() if variant is None else ShadowConfig(variant=variant)


def refuse_impl(
    impl: str, config: Any, variant: Variant | None, dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse an implementation that cannot run on a device, by attaching it to a base without weights.

    Raises:
        ConfigError: it cannot.
    """
    with torch.device("meta"):
        ours(arch.build(config, "causal-lm").to(dtype), variant, impl)  # type: ignore[arg-type]
    if impl == "triton" and device.type == "cpu" and torch.cuda.is_available():
        raise ConfigError(
            "impl='triton' needs a GPU, the device is cpu; choose --device cuda or another implementation"
        )


def _shadow(spec: Spec, base: PreTrainedModel, settings: Bench) -> AppliedMethod:
    block = spec.block(len(arch.blocks_of(base)))
    model = ours(base, settings.variant, spec.impl or "auto", spec.trained_in, inject_from=block)
    if block is None:
        block = config_of(settings.variant).resolved().inject_from
    return _plain(model, impl=spec.impl, inject_from=block)


def _base(spec: Spec, base: PreTrainedModel, settings: Bench) -> AppliedMethod:
    """Apply nothing: the floor, in which nothing is trained but every block passes a gradient on."""
    if spec.method == "base-chunked":
        return AppliedMethod(
            base,
            _embedded_and_ids(base),
            loss=lambda x_BTD, ids_BT: _loss_without_logits(base, ids_BT, inputs_embeds=x_BTD),
            prefill=_no_prefill,
        )
    return AppliedMethod(
        base,
        _embedded_and_ids(base),
        loss=lambda x_BTD, ids_BT: base(inputs_embeds=x_BTD, labels=ids_BT, use_cache=False).loss,
        prefill=lambda ids_BT: base(input_ids=ids_BT, use_cache=True, logits_to_keep=1).logits,
    )


def _lora(spec: Spec, base: PreTrainedModel, settings: Bench) -> AppliedMethod:
    """Apply LoRA or DoRA; at a depth on the upper blocks alone, so that no gradient goes below them."""
    from peft import LoraConfig

    first = spec.block(len(arch.blocks_of(base)))
    upper = [name for name, _ in _linear_layers(base, first or 0)]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        target_modules=upper if first else "all-linear",
        use_dora=spec.method == "dora",
    )
    model = _by_peft(base, config, spec)
    if spec.method == "lora-chunked":
        return AppliedMethod(
            model,
            _ids,
            loss=lambda ids_BT: _loss_without_logits(base, ids_BT, input_ids=ids_BT),
            prefill=_no_prefill,
            inject_from=first,
        )
    return _plain(model, use_cache=False, inject_from=first)


def _lora_liger(spec: Spec, base: PreTrainedModel, settings: Bench) -> AppliedMethod:
    """Apply LoRA to a base with liger-kernel's patches."""
    rotated = liger.patch(base)
    lora = _lora(spec, base, settings)

    def loss(ids_BT: Tensor) -> Tensor:
        with rotated():
            return lora.loss(ids_BT)

    return replace(lora, loss=loss, prefill=_no_prefill)


def _peft_shadow(spec: Spec, base: PreTrainedModel, settings: Bench) -> AppliedMethod:
    from peft import ShadowConfig as PeftShadowConfig

    model = _by_peft(base, PeftShadowConfig(task_type="CAUSAL_LM"), spec)
    return _plain(model, use_cache=False, inject_from=0)


def _shadow_peft(spec: Spec, base: PreTrainedModel, settings: Bench) -> AppliedMethod:
    import shadow_peft

    if spec.trained_in == "float32" and base.dtype != torch.float32:
        raise UserError(
            f"shadow-peft computes float32 weights beside a base in {base.dtype} under autocast alone; "
            "measure it with adapter_dtype base or autocast"
        )
    model = shadow_peft.ShadowForCausalLM(shadow_peft.get_shadow_model(base, shadow_peft.ShadowConfig()))
    bridge_former_cache_name(base, model.peft_model.shadow_model)
    # The library leaves it to its users to give the shadow the base's type.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(base.dtype)
    return _plain(model, use_cache=False, inject_from=1)


_METHODS: dict[str, Callable[[Spec, PreTrainedModel, Bench], AppliedMethod]] = {
    "base": _base,
    "base-chunked": _base,
    "lora": _lora,
    "lora-chunked": _lora,
    "lora-liger": _lora_liger,
    "dora": _lora,
    "peft-shadow": _peft_shadow,
    "shadow-peft": _shadow_peft,
    "shadow": _shadow,
}


def _plain(
    model: nn.Module, use_cache: bool | None = None, impl: str | None = None, inject_from: int | None = None
) -> AppliedMethod:
    """Return a method that computes what a user calls, `model(input_ids, labels=...).loss`.

    Args:
        model: the model.
        use_cache: what the loss is called with: False for the models of other libraries, which else keep a
            cache even while they train.
        impl: how the boundary is computed.
        inject_from: the first adapted block.
    """
    options: dict[str, Any] = {}
    if use_cache is not None:
        options["use_cache"] = use_cache
    return AppliedMethod(
        model,
        _ids,
        loss=lambda ids_BT: model(input_ids=ids_BT, labels=ids_BT, **options).loss,
        prefill=lambda ids_BT: model(input_ids=ids_BT, use_cache=True, logits_to_keep=1).logits,
        impl=impl,
        inject_from=inject_from,
    )


def _ids(ids_BT: Tensor) -> tuple[Tensor, ...]:
    return (ids_BT,)


def _embedded_and_ids(base: PreTrainedModel) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return embeddings that need a gradient, so that every block computes one."""
    table = arch.token_embedding_of(base)
    return lambda ids_BT: (table(ids_BT).detach().requires_grad_(True), ids_BT)


def _no_prefill(_: Tensor) -> Tensor:
    raise AssertionError("a method for training alone was asked for a prefill")


def _loss_without_logits(base: PreTrainedModel, ids_BT: Tensor, **inputs: Tensor) -> Tensor:
    """Return the base's loss, computed like ours: without keeping the logits of all tokens."""
    h_BTD = arch.decoder_of(base)(**inputs, use_cache=False).last_hidden_state
    (loss,) = frozen_head_losses((h_BTD,), Head.of(base), labels_BT=ids_BT, shift_labels=None, num_items=None)
    return loss


def _linear_layers(base: PreTrainedModel, first: int) -> Iterator[tuple[str, nn.Module]]:
    """Return the linear layers of the blocks from `first` on, with their names in the base."""
    upper = {
        layer
        for block in list(arch.blocks_of(base))[first:]
        for layer in block.modules()
        if isinstance(layer, nn.Linear)
    }
    return ((name, layer) for name, layer in base.named_modules() if layer in upper)


def _by_peft(base: PreTrainedModel, config: Any, spec: Spec) -> Any:
    from shadowpeft.compare.peft_methods import peft_model

    return peft_model(base, config, autocast_adapter_dtype=spec.trained_in != "base")


def precision(base: PreTrainedModel, applied: AppliedMethod) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a step, autocast where it was asked for."""
    if applied.trained_in == "autocast" and base.dtype != torch.float32:
        return torch.autocast(base.device.type, base.dtype)
    return contextlib.nullcontext()
