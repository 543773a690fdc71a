"""The methods that write: how each is put on a base, as a user loads it for use."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, PreTrainedModel, StaticCache

from shadowpeft import ShadowedModel, attach
from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.subject import Subject
from shadowpeft.bench.decode.weights import SharedWeights
from shadowpeft.bench.methods import RANK, config_of
from shadowpeft.config import Variant

# How large the weights become that are zero before training.
MOVED = 0.02


@dataclass(frozen=True)
class Writer:
    """A model that writes.

    Attributes:
        model: what is called.
        stock: the transformers model whose `generate` that ends in.
        static_cache: makes a static cache for so many tokens.
        options: arguments of `generate` that belong to the method.
    """

    model: Any
    stock: PreTrainedModel
    static_cache: Callable[[int], Cache]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loader:
    """Builds the writers of one base.

    Args:
        weights: the base.
        subject: what the shadow is made from.
        variant: the variant of an untrained shadow; `None` for the default.
        seed: decides the random weights: those of ours are the same with each implementation.
    """

    weights: SharedWeights
    subject: Subject
    variant: Variant | None
    seed: int

    def load(self, spec: DecodeSpec) -> Writer:
        """Build a method in the base's type, its weights drawn on the base's device.

        Raises:
            ImportError: its library is not installed.
            UserError: the method cannot do this here.
        """
        return _METHODS[spec.method](self, spec)

    @torch.no_grad()
    def shadowed(self, impl: str) -> ShadowedModel:
        """Put the trained adapter beside the base, or a shadow that corrects something as a trained one does.

        An untrained one does not, since some of its weights are zero.
        """
        base = self.weights.lend()
        if self.subject.adapter is not None:
            return ShadowedModel.from_pretrained(base, self.subject.adapter, impl=impl)
        torch.manual_seed(self.seed)
        start = self.subject.start(base.device, base.dtype, self.seed)
        with torch.device(base.device):
            model = attach(base, config_of(self.variant), start, dtype=base.dtype, impl=impl).eval()
            for parameter in model.parameters():
                if parameter.requires_grad and not parameter.any():
                    parameter.normal_(std=MOVED)
        return model.requires_grad_(False)


def _stock(model: PreTrainedModel) -> Writer:
    return Writer(model, model, lambda tokens: StaticCache(config=model.config, max_cache_len=tokens))


def _base(loader: Loader, _: DecodeSpec) -> Writer:
    return _stock(loader.weights.lend())


def _peft(loader: Loader, spec: DecodeSpec) -> Writer:
    """Apply LoRA or PEFT's Shadow; its weights are what they are before training, which costs the same."""
    from peft import LoraConfig
    from peft import ShadowConfig as PeftShadowConfig

    if spec.method == "peft-shadow":
        return _by_peft(loader, PeftShadowConfig(task_type="CAUSAL_LM"), loader.weights.lend())
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
    return _by_peft(loader, config, loader.weights.lend())


def _merged(loader: Loader, spec: DecodeSpec) -> Writer:
    """Apply LoRA or DoRA to a copy of the weights, and merge it into them."""
    from peft import LoraConfig

    config = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, target_modules="all-linear", use_dora=spec.method == "dora-merged"
    )
    return _stock(_by_peft(loader, config, loader.weights.copied()).model.merge_and_unload())


def _by_peft(loader: Loader, config: Any, base: PreTrainedModel) -> Writer:
    from shadowpeft.compare.peft_methods import peft_model

    torch.manual_seed(loader.seed)
    with torch.device(base.device):
        model = peft_model(base, config, autocast_adapter_dtype=False).eval()
    # PEFT's Shadow keeps some weights in float32, which in use are loaded in the base's type.
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dtype != base.dtype:
            parameter.data = parameter.data.to(base.dtype)
    return Writer(model, base, lambda tokens: StaticCache(config=base.config, max_cache_len=tokens))


def _shadow(loader: Loader, spec: DecodeSpec) -> Writer:
    assert spec.impl is not None
    model = loader.shadowed(spec.impl)
    options = {}
    if spec.draft_tokens is not None:
        options = {"draft": "shadow", "draft_tokens": spec.draft_tokens}
    return Writer(model, model, lambda tokens: model.new_cache(max_length=tokens), options)


def _detached(loader: Loader, _: DecodeSpec) -> Writer:
    model = loader.shadowed("reference")
    alone = model.detached()
    model.unload()
    return _stock(alone.requires_grad_(False))


_METHODS: dict[str, Callable[[Loader, DecodeSpec], Writer]] = {
    "base": _base,
    "lora": _peft,
    "lora-merged": _merged,
    "dora-merged": _merged,
    "peft-shadow": _peft,
    "shadow": _shadow,
    "detached": _detached,
    "draft": _shadow,
}
