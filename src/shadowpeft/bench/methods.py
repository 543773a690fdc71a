"""The methods that are timed: how each is put on the base, and what is called to train a step or to read a prompt.

B rows, T tokens.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft import ShadowConfig, ShadowedModel, arch, attach
from shadowpeft.bench.settings import Bench
from shadowpeft.bench.specs import Spec
from shadowpeft.config import Variant
from shadowpeft.losses.frozen_head import Head
from shadowpeft.losses.normalised import frozen_head_losses

RANK = 8  # of LoRA and DoRA


@dataclass(frozen=True)
class Fitted:
    """A method that is on the base.

    Attributes:
        model: what holds the trained parameters.
        inputs: makes the arguments of `loss` from token ids, (B, T); never compiled.
        loss: the loss of a training step.
        prefill: from token ids, the logits of the last position, the cache filled as `generate` fills it.
        impl: how the boundary is computed; `None` for other methods.
        inject_from: the first adapted block, `None` for a method that knows of none.
    """

    model: nn.Module
    inputs: Callable[[Tensor], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    prefill: Callable[[Tensor], Tensor]
    impl: str | None = None
    inject_from: int | None = None

    def trained(self) -> list[nn.Parameter]:
        """List what a step trains."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def fit(spec: Spec, base: PreTrainedModel, settings: Bench) -> Fitted:
    """Put a method on a frozen base, its weights drawn on the base's device.

    Raises:
        ImportError: its library is not installed.
        UserError: the method cannot do this here.
    """
    with torch.device(base.device), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing`", FutureWarning
        )  # PEFT asks by a deprecated name
        fitted = _METHODS[spec.method](spec, base, settings)
    if settings.adapter_dtype != "own":
        for parameter in fitted.trained():
            parameter.data = parameter.data.to(
                torch.float32 if settings.adapter_dtype == "float32" else base.dtype
            )
    return fitted


def ours(base: PreTrainedModel, variant: Variant | None, impl: str, **changes: Any) -> ShadowedModel:
    """Attach a shadow as a user does, with what is left open at its defaults."""
    return attach(base, replace(config_of(variant), **changes), impl=impl)


def config_of(variant: Variant | None) -> ShadowConfig:
    """Give the settings of a shadow: the defaults of its variant, or those of ShadowConfig."""
    return ShadowConfig() if variant is None else ShadowConfig(variant=variant)


def _shadow(spec: Spec, base: PreTrainedModel, settings: Bench) -> Fitted:
    block = spec.block(len(arch.blocks_of(base)))
    model = ours(base, settings.variant, spec.impl or "auto", inject_from=block)
    first = block if block is not None else config_of(settings.variant).resolved().inject_from
    return _plain(model, model, {}, impl=spec.impl, inject_from=first)


def _base(spec: Spec, base: PreTrainedModel, settings: Bench) -> Fitted:
    """The floor: nothing is trained, but every block hands a gradient through."""
    if spec.method == "base-chunked":
        return Fitted(
            base,
            _embedded_and_ids(base),
            lambda x_BTD, ids_BT: _lean_loss(base, ids_BT, inputs_embeds=x_BTD),
            _no_prefill,
        )
    return Fitted(
        base,
        _embedded_and_ids(base),
        lambda x_BTD, ids_BT: base(inputs_embeds=x_BTD, labels=ids_BT, use_cache=False).loss,
        lambda ids_BT: base(input_ids=ids_BT, use_cache=True, logits_to_keep=1).logits,
    )


def _lora(spec: Spec, base: PreTrainedModel, settings: Bench) -> Fitted:
    """LoRA or DoRA; at a depth, on the linear layers of the upper blocks alone, so that no gradient goes below."""
    from peft import LoraConfig

    first = spec.block(len(arch.blocks_of(base)))
    upper = [name for name, _ in _linear_layers(base, first or 0)]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        target_modules=upper if first else "all-linear",
        use_dora=spec.method == "dora",
    )
    model = _by_peft(base, config, settings)
    if spec.method == "lora-chunked":
        return Fitted(
            model,
            _ids,
            lambda ids_BT: _lean_loss(base, ids_BT, input_ids=ids_BT),
            _no_prefill,
            inject_from=first,
        )
    return _plain(model, model, {"use_cache": False}, inject_from=first)


def _peft_shadow(spec: Spec, base: PreTrainedModel, settings: Bench) -> Fitted:
    from peft import ShadowConfig as PeftShadowConfig

    model = _by_peft(base, PeftShadowConfig(task_type="CAUSAL_LM"), settings)
    return _plain(model, model, {"use_cache": False}, inject_from=0)


def _shadow_peft(spec: Spec, base: PreTrainedModel, settings: Bench) -> Fitted:
    import shadow_peft

    model = shadow_peft.ShadowForCausalLM(shadow_peft.get_shadow_model(base, shadow_peft.ShadowConfig()))
    for parameter in model.parameters():  # they leave it to their scripts to give the shadow the base's type
        parameter.data = parameter.data.to(base.dtype)
    return _plain(model, model, {"use_cache": False}, inject_from=1)


_METHODS: dict[str, Callable[[Spec, PreTrainedModel, Bench], Fitted]] = {
    "base": _base,
    "base-chunked": _base,
    "lora": _lora,
    "lora-chunked": _lora,
    "dora": _lora,
    "peft-shadow": _peft_shadow,
    "shadow-peft": _shadow_peft,
    "shadow": _shadow,
}


def _plain(model: nn.Module, call: Callable[..., Any], without_cache: dict[str, Any], **facts: Any) -> Fitted:
    """What a user calls: `model(input_ids, labels=...).loss`; the libraries of others keep a cache even then unless told not to."""
    return Fitted(
        model,
        _ids,
        lambda ids_BT: call(input_ids=ids_BT, labels=ids_BT, **without_cache).loss,
        lambda ids_BT: call(input_ids=ids_BT, use_cache=True, logits_to_keep=1).logits,
        **facts,
    )


def _ids(ids_BT: Tensor) -> tuple[Tensor, ...]:
    return (ids_BT,)


def _embedded_and_ids(base: PreTrainedModel) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Embeddings that want a gradient: so every block has one to compute, as below a trained layer."""
    table = arch.token_embedding_of(base)
    return lambda ids_BT: (table(ids_BT).detach().requires_grad_(True), ids_BT)


def _no_prefill(_: Tensor) -> Tensor:
    raise AssertionError("a method for training alone was asked for a prefill")


def _lean_loss(base: PreTrainedModel, ids_BT: Tensor, **inputs: Tensor) -> Tensor:
    """The base's loss without its logits, as ours is computed."""
    h_BTD = arch.decoder_of(base)(**inputs, use_cache=False).last_hidden_state
    return frozen_head_losses((h_BTD,), Head.of(base), ids_BT, None, None)[0]


def _linear_layers(base: PreTrainedModel, first: int) -> Iterator[tuple[str, nn.Module]]:
    """Name the linear layers of the blocks from one on, as the base names them."""
    upper = {
        layer
        for block in list(arch.blocks_of(base))[first:]
        for layer in block.modules()
        if isinstance(layer, nn.Linear)
    }
    return ((name, layer) for name, layer in base.named_modules() if layer in upper)


def _by_peft(base: PreTrainedModel, config: Any, settings: Bench) -> Any:
    from peft import get_peft_model

    return get_peft_model(base, config, autocast_adapter_dtype=settings.adapter_dtype == "own")


def precision(base: PreTrainedModel, settings: Bench) -> contextlib.AbstractContextManager[Any]:
    """Return the context a step is computed in: autocast where what is trained is of another type than the base."""
    if settings.adapter_dtype == "float32" and base.dtype != torch.float32:
        return torch.autocast(base.device.type, base.dtype)
    return contextlib.nullcontext()
