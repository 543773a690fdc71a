"""The sizes at which each method trains as many parameters as LoRA, counted on models without weights."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from transformers import PretrainedConfig

from shadowpeft import arch
from shadowpeft.compare import budget
from shadowpeft.compare.peft_methods import peft_config, peft_model
from shadowpeft.config import ShadowConfig
from shadowpeft.errors import ConfigError
from shadowpeft.model import attach, sources
from shadowpeft.shadow.open_settings import settle
from shadowpeft.storage import stock_models

MATCHED = ("lora", "dora", "peft-shadow", "shadow", "shadow-paper", "shadow-frozen")
_LOW_RANK = ("lora", "dora")
_BACKBONE = (".shadow.", ".shadow_backbone.", ".shadow_projection.")
# The names of an MLP's width that PEFT's Shadow can change.
_PEFT_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")


def matched(
    model: str,
    method: str,
    rank: int,
    given: tuple[tuple[str, Any], ...] = (),
    shadow_model: str | None = None,
) -> dict[str, Any]:
    """Return a method's settings with sizes that meet LoRA's number of trainable parameters at a rank.

    Args:
        model: folder or hub id of the base.
        method: a method that can be matched.
        rank: the LoRA rank.
        given: settings that stay as they are, as pairs.
        shadow_model: folder or hub id of the model whose decoder is the shadow; `None` for the base's own
            architecture.

    Raises:
        ConfigError: no sizes come within 5 %.
    """
    settings = dict(given)
    best = _best(model, method, json.dumps(settings, sort_keys=True), shadow_model)
    found = budget.refuse_unmatched(method, rank, budget_of=lambda r: lora_parameters(model) * r, best=best)
    sized = {**settings, **found.settings}
    if method in _LOW_RANK:
        sized = {"lora_alpha": 2 * sized["r"], "lora_dropout": 0.0, **sized}
    return sized


@cache
def lora_parameters(model: str) -> int:
    """Count what LoRA on all linear layers except the head trains for each unit of its rank."""
    return Counter(model, "lora", {}).count({"r": 1})


def trained_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the parameters that training changes, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


# The key is JSON, since the settings may hold lists, which cannot be hashed.
@cache
def _best(model: str, method: str, given: str, shadow_model: str | None) -> Callable[[int], budget.Match]:
    """Return what matches a method's sizes to a budget; they are counted once for all ranks and trials."""
    counter = Counter(model, method, json.loads(given), shadow_model)
    if method in _LOW_RANK:
        return _match_low_rank(counter)
    costs = size_costs(counter)
    return lambda wanted: budget.match(wanted, costs)


def _match_low_rank(counter: "Counter") -> Callable[[int], budget.Match]:
    if "r" in counter.settings:
        only = budget.Match({}, counter.count({}))
        return lambda wanted: only
    one, two = counter.count({"r": 1}), counter.count({"r": 2})
    return budget.nearest_rank(2 * one - two, two - one)


class Counter:
    """What a method trains at given sizes, counted on a copy of the base without weights.

    Args:
        model: folder or hub id of the base.
        method: a method that can be matched.
        settings: settings of the method that stay as they are.
        shadow_model: folder or hub id of the model whose decoder is the shadow.

    Attributes:
        shadow: configuration of that decoder; `None` for a shadow of the base's own architecture.
    """

    def __init__(
        self, model: str, method: str, settings: Mapping[str, Any], shadow_model: str | None = None
    ) -> None:
        self.method, self.settings = method, settings
        self.config = stock_models.load_config(model)
        self.family = arch.family_of_config(self.config)
        self.shadow: PretrainedConfig | None = None
        if shadow_model is not None:
            self.shadow = sources.config_of(shadow_model, self.config)

    @property
    def is_ours(self) -> bool:
        """Whether the method is a shadow of this package."""
        return self.method in ("shadow", "shadow-paper", "shadow-frozen")

    def count(self, sizes: budget.Sizes, backbone_alone: bool = False) -> int:
        """Count the trainable parameters, of the whole method or of its backbone and projection alone."""
        with torch.device("meta"):
            base = arch.build(self.config, "causal-lm")
            settings = {**self.settings, **sizes}
            if self.is_ours:
                shadow = None if self.shadow is None else arch.build(self.shadow, "causal-lm")
                model: Any = attach(base, ShadowConfig.from_dict(settings), shadow)
            else:
                model = peft_model(base, peft_config(self.method, settings, classifies=False))
        trained = trained_parameters(model)
        if not backbone_alone:
            return sum(parameter.numel() for _, parameter in trained)
        return sum(
            parameter.numel() for name, parameter in trained if any(mark in name for mark in _BACKBONE)
        )


def size_costs(counter: Counter) -> budget.Costs:
    """Return what each size of a shadow costs, from counts at two values of each."""
    names = _names(counter)
    given = {
        size: counter.settings[name] for size, name in names.items() if counter.settings.get(name) is not None
    }
    defaults = _defaults(counter, names)
    start = {names[size]: value for size, value in {"r": 1, **defaults, **given}.items()}
    total = counter.count(start)

    def per_unit(size: str) -> int:
        if size not in names:
            return 0
        return counter.count({**start, names[size]: start[names[size]] + 1}) - total

    backbones = tuple(_backbones(counter, start, names))
    per_rank, per_update = per_unit("r"), per_unit("update")
    updates = per_update * start.get("update_width", 0)
    rest = total - counter.count(start, backbone_alone=True) - per_rank * start["r"] - updates
    return budget.Costs(
        names=names,
        given=given,
        defaults=defaults,
        backbones=backbones,
        per_rank=per_rank,
        per_update=per_update,
        rest=rest,
    )


def _names(counter: Counter) -> dict[str, str]:
    """Return the sizes that the method and the base's family have, with the method's names for them."""
    names, width = {"r": "r"}, counter.family.mlp
    is_copy = counter.shadow is None
    if is_copy and width is not None and (counter.is_ours or width in _PEFT_WIDTHS):
        names["mlp"] = "shadow_intermediate_size"
    if counter.is_ours:
        names["update"] = "update_width"  # in PEFT it follows r
    return names


def _defaults(counter: Counter, names: Mapping[str, str]) -> budget.Sizes:
    """Return the sizes of the backbone and the updates that the method has unless they must shrink."""
    own = ShadowConfig(variant="peft")
    if counter.is_ours:
        own = ShadowConfig.from_dict({name: v for name, v in counter.settings.items() if name != "r"})
    defaults = {}
    if "mlp" in names:
        width = settle(counter.config, own).shadow_intermediate_size or arch.mlp_width(counter.config)
        assert width is not None, "a family with an MLP has a width for it"
        defaults["mlp"] = width
    if "update" in names:
        defaults["update"] = own.resolved().update_width
    return defaults


def _backbones(counter: Counter, start: budget.Sizes, names: Mapping[str, str]) -> Iterator[budget.Backbone]:
    """Count the backbone of each choice of attention, without those that are refused or save nothing."""
    least = None
    for attention in _attentions(counter):
        sizes = {**start, **attention}
        try:
            whole = counter.count(sizes, backbone_alone=True)
        except ConfigError:
            if not attention:
                raise
            continue
        fixed, per_mlp = whole, 0
        if "mlp" in names:
            width = sizes[names["mlp"]]
            wider = counter.count({**sizes, names["mlp"]: width + 8}, backbone_alone=True)
            per_mlp = (wider - whole) // 8
            fixed = whole - per_mlp * width
        if least is None or fixed < least:
            least = fixed
            yield budget.Backbone(attention, fixed, per_mlp)


def _attentions(counter: Counter) -> Iterator[budget.Sizes]:
    """Yield ever smaller attentions, beginning with the base's own.

    All methods take fewer heads. Ours take also fewer key-value heads, and then a single narrower head.
    """
    yield {}
    if counter.shadow is not None:
        return
    if any(name.startswith("shadow_") and "head" in name for name in counter.settings):
        return
    heads, values = counter.config.num_attention_heads, counter.config.to_dict()
    shared = values.get(str(counter.family.kv_heads)) or heads
    if not counter.is_ours:
        yield from _fewer_heads_of_peft(heads, shared, counter.family)
    elif counter.family.head_dim is None:
        # Without a width of its own a head is a fixed part of the hidden size: only key-value heads can go.
        if counter.family.kv_heads is not None:
            yield from _fewer_shared_heads(heads, shared)
    else:
        yield from _fewer_heads(heads, shared)
        yield from _narrower_heads(values.get(counter.family.head_dim) or counter.config.hidden_size // heads)


def _fewer_heads_of_peft(heads: int, shared: int, family: arch.Family) -> Iterator[budget.Sizes]:
    """Halve the heads, as long as there are as many as key-value heads, which PEFT's Shadow keeps."""
    while heads % 2 == 0 and heads // 2 >= shared and family.head_dim is not None:
        heads //= 2
        if heads % shared == 0:
            yield {"shadow_num_attention_heads": heads}


def _fewer_shared_heads(heads: int, shared: int) -> Iterator[budget.Sizes]:
    while shared > 1:
        shared = _largest_divisor(heads, shared - 1)
        yield {"shadow_key_value_heads": shared}


def _fewer_heads(heads: int, shared: int) -> Iterator[budget.Sizes]:
    while heads > 1:
        heads = heads // 2
        shared = _largest_divisor(heads, min(shared, heads))
        yield {"shadow_attention_heads": heads, "shadow_key_value_heads": shared}


def _narrower_heads(width: int) -> Iterator[budget.Sizes]:
    # Rotary embeddings rotate pairs of dimensions, so that half a width must be even, too.
    while width % 4 == 0 and width > 16:
        width //= 2
        yield {"shadow_attention_heads": 1, "shadow_key_value_heads": 1, "shadow_head_dim": width}


def _largest_divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(most, 0, -1) if number % divisor == 0)
