"""Each method's trainable model at a budget: what `run_cell` trains and measures."""

import dataclasses
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft import ShadowConfig as PeftShadowConfig
from transformers import AutoModelForSequenceClassification, GenerationConfig, PreTrainedModel, logging

from shadowpeft import arch
from shadowpeft.compare import budget
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import METHODS, OURS, Study
from shadowpeft.compare.tasks.base import Task
from shadowpeft.config import ShadowConfig
from shadowpeft.errors import ConfigError
from shadowpeft.model import attach, sources
from shadowpeft.settings import nearest
from shadowpeft.shadow.open_settings import settle
from shadowpeft.storage import stock_models

_HEADS = re.compile(r"(^|\.)(score|shadow_score|shadow_head)\.")
# Settings of PEFT that say where a saved adapter came from, or that serve what a study does not do: other runtimes, passes over data first.
_PROVENANCE = ("base_model_name_or_path", "revision")
_ELSEWHERE = (
    "runtime_config",
    "megatron_config",
    "megatron_core",
    "arrow_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
)
MATCHED = ("lora", "dora", "peft-shadow", "shadow", "shadow-paper")


@dataclass
class Built:
    """One method's model, ready to train.

    Attributes:
        model: what is trained and answers.
        stock: the stock model inside, whose head and embeddings it reads.
        config: the method's full settings.
        detach: gives the model that answers alone after training; `None` where there is none.
    """

    model: Any
    stock: PreTrainedModel
    config: dict[str, Any] = field(default_factory=dict)
    detach: Callable[[], Any] | None = None

    def trainable(self, heads: bool = False) -> int:
        """Count the trainable parameters, with or without the heads of a classifier."""
        return sum(p.numel() for name, p in _trained(self.model) if heads or not _HEADS.search(name))

    def adapter_bytes(self) -> int:
        """Count the bytes of what is trained, which is what must be kept beside the base."""
        return sum(p.numel() * p.element_size() for _, p in _trained(self.model))


def build(cell: Cell, study: Study, task: Task, pad_token_id: int, device: torch.device) -> Built:
    """Load the base afresh and put the cell's method on it, at the budget of the cell's rank.

    Args:
        cell: says which model, method and rank; `alpha` goes to the shadows.
        study: gives the overrides, the precision and the pretrained shadow.
        task: says which kind of head and how many classes.
        pad_token_id: what a classifier takes for padding.
        device: where the model goes.

    Raises:
        ConfigError: a setting is unknown, or the method cannot be matched.
    """
    if cell.method not in METHODS:
        raise ConfigError(
            f"unknown method {cell.method!r}{nearest(cell.method, METHODS)}; there are: {', '.join(METHODS)}"
        )
    settings = _settings(cell, study)  # a mistake is told before weights are loaded
    dtype = torch.bfloat16 if study.bf16 and cell.method != "full" else torch.float32
    base = _load(cell.model, task, dtype, pad_token_id).to(device)  # type: ignore[arg-type]
    with torch.device(device):
        built = _wrap(cell, study, base, task.kind == "classification", settings)
    for _, parameter in _trained(built.model):
        parameter.data = parameter.data.float()
    return built


def _wrap(
    cell: Cell, study: Study, base: PreTrainedModel, classifies: bool, settings: dict[str, Any]
) -> Built:
    method = cell.method
    if method in ("base", "full"):
        base.requires_grad_(method == "full")
        if classifies:
            arch.head_of(base).requires_grad_(True)
        return Built(
            base,
            base,
            {"head": "trained" if classifies else "none"} if method == "base" else {"trained": "everything"},
        )
    if method in ("lora", "dora", "peft-shadow"):
        config = _peft_config(method, settings, classifies)
        model = _adapted(base, config)
        shown = {"target_modules": "all-linear", **settings} if method != "peft-shadow" else settings
        detach = model.base_model.unload_shadow if method == "peft-shadow" else None
        return Built(model, base, shown, detach)
    pretrained = None
    if method == "shadow-explicit":
        if study.shadow_model is None:
            raise ConfigError(
                "shadow-explicit needs a pretrained shadow; set shadow_model to a folder or hub id"
            )
        pretrained = sources.open_source(study.shadow_model, torch.float32)
    ours = ShadowConfig.from_dict(settings)
    shadowed = attach(base, ours, pretrained, dtype=torch.float32)
    extra = {} if pretrained is None else {"shadow_model": study.shadow_model, "matched": False}
    # Of the adapter: what a pretrained shadow settles is not in the settings that were asked for.
    return Built(shadowed, base, {**shadowed.adapter.settings.to_dict(), **extra}, shadowed.detached)


def check(study: Study) -> None:
    """Refuse overrides that a method does not know and methods that cannot be matched; no weights are loaded.

    Raises:
        ConfigError: a setting of a method is unknown or cannot be used, or a method cannot be matched at a rank on a model.
    """
    for method in study.overrides:
        _refuse_unknown(method, study.overrides[method])
    for model, method, rank in product(study.names("model"), study.names("methods"), study.budgets):
        try:
            _settings(Cell("search", model, "", method, rank, 0, *study.candidates(method)[0]), study)
        except ConfigError as error:
            raise ConfigError(f"{model}: {error}") from error
        except (TypeError, ValueError) as error:  # PEFT's words for a setting that it cannot use
            given = ", ".join(f"{name}={value!r}" for name, value in study.overrides.get(method, {}).items())
            raise ConfigError(
                f"{model}: overrides of {method} ({given}) cannot be used: {' '.join(str(error).split())}"
            ) from error


def _settings(cell: Cell, study: Study) -> dict[str, Any]:
    """Put together what a method is built with: what the study sets, the sizes that meet the budget, and the cell's alpha."""
    given, searched = _overrides(cell, study)
    if cell.method in OURS:
        ShadowConfig.from_dict({**given, **searched})
    if cell.method in MATCHED:
        given = matched(cell.model, cell.method, cell.rank, tuple(given.items()))
    return {**given, **searched}


def matched(model: str, method: str, rank: int, given: tuple[tuple[str, Any], ...] = ()) -> dict[str, Any]:
    """Return a method's settings with sizes that meet LoRA's number of trainable parameters at a rank.

    Args:
        model: folder or hub id of the base.
        method: a method that can be matched.
        rank: the LoRA rank.
        given: settings that stay as they are, as pairs.

    Raises:
        ConfigError: no sizes come within 5 %.
    """
    settings = dict(given)
    best = _best(model, method, json.dumps(settings, sort_keys=True))
    found = budget.refuse_unmatched(method, rank, lambda r: lora_parameters(model) * r, best)
    sized = {**settings, **found.settings}
    if method in ("lora", "dora"):
        sized = {"lora_alpha": 2 * sized["r"], "lora_dropout": 0.0, **sized}
    return sized


@cache
def _best(model: str, method: str, given: str) -> Callable[[int], budget.Match]:
    """Count what a method's sizes cost, once for all ranks and trials; gives the match for a budget."""
    settings = json.loads(given)
    if method in ("lora", "dora"):
        return _match_low_rank(model, method, settings)
    costs = _costs(_Counter(model, method, settings))
    return lambda wanted: budget.match(wanted, costs)


@cache
def lora_parameters(model: str) -> int:
    """Count what LoRA on all linear layers but the head trains for each unit of its rank."""
    return _Counter(model, "lora", {}).count({"r": 1})


def _match_low_rank(model: str, method: str, settings: dict[str, Any]) -> Callable[[int], budget.Match]:
    counter = _Counter(model, method, settings)
    if "r" in settings:
        only = budget.Match({}, counter.count({}))
        return lambda wanted: only
    one, two = counter.count({"r": 1}), counter.count({"r": 2})
    return budget.nearest_rank(2 * one - two, two - one)


class _Counter:
    """Count what a method trains at given sizes, on a copy of the base without weights."""

    def __init__(self, model: str, method: str, settings: Mapping[str, Any]) -> None:
        self.method, self.settings = method, settings
        self.config = stock_models.load_config(model)
        self.family = arch.family_of_config(self.config)

    def count(self, sizes: budget.Sizes, backbone_alone: bool = False) -> int:
        with torch.device("meta"):
            base = arch.build(self.config, "causal-lm")
            settings = {**self.settings, **sizes}
            if self.method in ("shadow", "shadow-paper"):
                model: Any = attach(base, ShadowConfig.from_dict(settings))
            else:
                model = _adapted(base, _peft_config(self.method, settings, classifies=False))
        marks = (".shadow.", ".shadow_backbone.", ".shadow_projection.") if backbone_alone else ("",)
        return sum(p.numel() for name, p in _trained(model) if any(mark in name for mark in marks))


def _costs(counter: _Counter) -> budget.Costs:
    """Find what each size of a shadow costs, from counts at two values of each."""
    ours = counter.method != "peft-shadow"
    names = _names(counter.family, ours)
    given = {
        size: counter.settings[name] for size, name in names.items() if counter.settings.get(name) is not None
    }
    defaults = {}
    own = (
        ShadowConfig.from_dict({k: v for k, v in counter.settings.items() if k != "r"})
        if ours
        else ShadowConfig(variant="peft")
    )
    if "mlp" in names:
        width = settle(counter.config, own).shadow_intermediate_size or arch.mlp_width(counter.config)
        assert width is not None  # the family names it
        defaults["mlp"] = width
    if "update" in names:
        defaults["update"] = own.resolved().update_width
    start = {names[size]: value for size, value in {"r": 1, **defaults, **given}.items()}
    backbones = tuple(_backbones(counter, start, names, list(_attentions(counter, ours))))
    total = counter.count(start)
    per_rank = counter.count({**start, names["r"]: start[names["r"]] + 1}) - total
    per_update = (
        counter.count({**start, names["update"]: start[names["update"]] + 1}) - total
        if "update" in names
        else 0
    )
    update = per_update * start[names["update"]] if "update" in names else 0
    rest = total - counter.count(start, backbone_alone=True) - per_rank * start[names["r"]] - update
    return budget.Costs(names, given, defaults, backbones, per_rank, per_update, rest)


def _names(family: arch.Family, ours: bool) -> dict[str, str]:
    names = {"r": "r"}
    if family.mlp is not None and (ours or family.mlp in ("intermediate_size", "ffn_dim", "n_inner")):
        names["mlp"] = "shadow_intermediate_size"
    if ours:
        names["update"] = "update_width"  # in PEFT it follows r
    return names


def _backbones(
    counter: _Counter, start: budget.Sizes, names: Mapping[str, str], attentions: list[budget.Sizes]
) -> Iterator[budget.Backbone]:
    """Count the backbone of each choice of attention; leave out those that the family refuses or that save nothing."""
    least = None
    for attention in attentions:
        sizes = {**start, **attention}
        try:
            whole = counter.count(sizes, backbone_alone=True)
        except ConfigError:
            if not attention:
                raise
            continue
        per_mlp = 0
        if "mlp" in names:
            per_mlp = (
                counter.count({**sizes, names["mlp"]: sizes[names["mlp"]] + 8}, backbone_alone=True) - whole
            )
            per_mlp //= 8
        fixed = whole - per_mlp * sizes.get(names.get("mlp", ""), 0)
        if least is None or fixed < least:
            least = fixed
            yield budget.Backbone(attention, fixed, per_mlp)


def _attentions(counter: _Counter, ours: bool) -> Iterator[budget.Sizes]:
    """List ever smaller attentions: the base's own, fewer heads, and for ours then fewer shared and narrower ones."""
    yield {}
    heads = counter.config.num_attention_heads
    settings = [name for name in counter.settings if name.startswith("shadow_") and ("head" in name)]
    if settings:
        return
    values = counter.config.to_dict()
    shared = values.get(str(counter.family.kv_heads)) or heads
    if not ours:
        while heads % 2 == 0 and heads // 2 >= shared and counter.family.head_dim is not None:
            heads //= 2
            if heads % shared == 0:
                yield {"shadow_num_attention_heads": heads}
        return
    if counter.family.head_dim is None:
        while counter.family.kv_heads is not None and shared > 1:
            shared = next(less for less in range(shared - 1, 0, -1) if heads % less == 0)
            yield {"shadow_key_value_heads": shared}
        return
    while heads > 1:
        heads = heads // 2
        shared = next(less for less in range(min(shared, heads), 0, -1) if heads % less == 0)
        yield {"shadow_attention_heads": heads, "shadow_key_value_heads": shared}
    width = (
        values.get(counter.family.head_dim)
        or counter.config.hidden_size // counter.config.num_attention_heads
    )
    while width % 4 == 0 and width > 16:
        width //= 2
        yield {"shadow_attention_heads": 1, "shadow_key_value_heads": 1, "shadow_head_dim": width}


def _peft_config(method: str, settings: Mapping[str, Any], classifies: bool) -> LoraConfig | PeftShadowConfig:
    task_type = "SEQ_CLS" if classifies else "CAUSAL_LM"
    if method == "peft-shadow":
        return PeftShadowConfig(task_type=task_type, **settings)
    return LoraConfig(
        **{"task_type": task_type, "target_modules": "all-linear", "use_dora": method == "dora", **settings}
    )


def _adapted(base: PreTrainedModel, config: LoraConfig | PeftShadowConfig) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "fan_in_fan_out", UserWarning
        )  # PEFT sees itself how GPT-2 lays its weights out
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing`", FutureWarning
        )  # PEFT asks by a deprecated name
        return get_peft_model(base, config)


def _overrides(cell: Cell, study: Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what the study sets for the method, and apart from it the cell's alpha, which no size depends on."""
    given = {name: _whole(value) for name, value in study.overrides.get(cell.method, {}).items()}
    _refuse_unknown(cell.method, given)
    alpha = {"peft-shadow": "shadow_alpha"}.get(cell.method, "alpha")
    searched = {} if cell.alpha is None or alpha not in _known(cell.method) else {alpha: cell.alpha}
    if searched and alpha in given:
        raise ConfigError(
            f"overrides of {cell.method} set {alpha}, which is searched for; set it under search instead"
        )
    variant = {"variant": "paper"} if cell.method == "shadow-paper" else {}
    return {**variant, **given}, searched


def _refuse_unknown(method: str, given: Iterable[str]) -> None:
    known = _known(method)
    for name in given:
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "it has none"
            raise ConfigError(
                f"overrides of {method}: unknown setting {name!r}{nearest(name, known)}; {there}"
            )


def _known(method: str) -> list[str]:
    """List the settings of a method that a study may set."""
    kinds: dict[str, Any] = {
        "lora": LoraConfig,
        "dora": LoraConfig,
        "peft-shadow": PeftShadowConfig,
        **dict.fromkeys(OURS, ShadowConfig),
    }
    fixed = (
        "task_type",
        "peft_type",
        "use_dora",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        *_PROVENANCE,
        *_ELSEWHERE,
    )
    return (
        [name for name in (entry.name for entry in dataclasses.fields(kinds[method])) if name not in fixed]
        if method in kinds
        else []
    )


def _whole(value: Any) -> Any:
    """Make 8.0, as a study file may hold it, the 8 it means."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _load(source: str, task: Task, dtype: torch.dtype, pad_token_id: int) -> PreTrainedModel:
    if task.kind != "classification":
        base = stock_models.load_model(source, dtype)
        base.generation_config = _greedy(base)
        return base
    config = stock_models.load_config(source)
    arch.family_of_config(config)
    with _quiet():  # transformers warns that the head is new
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=dtype, num_labels=len(task.labels)
        )
    model.config.pad_token_id = pad_token_id
    return model


def _greedy(base: PreTrainedModel) -> GenerationConfig:
    """Keep of a base's generation settings the ids alone: others, such as a penalty, do not reach every method's model alike."""
    given = base.generation_config
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return (
        GenerationConfig()
        if given is None
        else GenerationConfig(**{name: vars(given).get(name) for name in names})
    )


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
