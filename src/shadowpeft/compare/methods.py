"""Each method's trainable model at a budget: what `run_cell` trains and measures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, logging

from shadowpeft import arch
from shadowpeft.checked_fields import nearest
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.matching import MATCHED, matched, trained_parameters
from shadowpeft.compare.overrides import overrides, refuse_unknown
from shadowpeft.compare.peft_methods import PEFT_METHODS, peft_config, peft_model
from shadowpeft.compare.search_space import EXPLICIT, METHODS, OURS
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks.base import Task
from shadowpeft.compare.training import HEADS
from shadowpeft.config import ShadowConfig, refuse_frozen
from shadowpeft.errors import ConfigError
from shadowpeft.model import attach, sources
from shadowpeft.storage import stock_models


@dataclass
class Built:
    """One method's model, ready to train.

    Attributes:
        model: what is trained and answers.
        stock: the stock model inside, whose head and embeddings it reads.
        config: the method's full settings.
        detach: returns the model that answers alone after training; `None` if there is none.
    """

    model: Any
    stock: PreTrainedModel
    config: dict[str, Any] = field(default_factory=dict)
    detach: Callable[[], Any] | None = None

    def trainable(self, heads: bool = False) -> int:
        """Count the trainable parameters, with or without the heads of a classifier."""
        return sum(p.numel() for name, p in trained_parameters(self.model) if heads or not HEADS.search(name))

    def adapter_bytes(self) -> int:
        """Count the bytes of what is trained, which must be stored beside the base."""
        return sum(p.numel() * p.element_size() for _, p in trained_parameters(self.model))


def build(cell: Cell, study: Study, task: Task, pad_token_id: int, device: torch.device) -> Built:
    """Load the base afresh and put the cell's method on it, at the budget of the cell's rank.

    Args:
        cell: model, method and rank; `alpha` is for the shadows.
        study: the overrides, the precision and the pretrained shadow.
        task: the kind of head, and how many classes.
        pad_token_id: what a classifier takes for padding.
        device: where the model goes.

    Raises:
        ConfigError: a setting is unknown, or the method cannot be matched.
    """
    if cell.method not in METHODS:
        raise ConfigError(
            f"unknown method {cell.method!r}{nearest(cell.method, METHODS)}; there are: {', '.join(METHODS)}"
        )
    settings = _settings(cell, study)  # first, so that a mistake is found before weights are loaded
    dtype = torch.bfloat16 if study.bf16 and cell.method != "full" else torch.float32
    base = _load(cell.model, task, dtype, pad_token_id=pad_token_id).to(device)  # type: ignore[arg-type]
    classifies = task.kind == "classification"
    with torch.device(device):
        if cell.method in ("base", "full"):
            built = _bare(cell.method, base, classifies)
        elif cell.method in PEFT_METHODS:
            built = _by_peft(cell.method, base, settings, classifies=classifies)
        else:
            built = _attached(cell.method, base, settings, shadow_model=study.shadow_model)
    # Adapters are trained in float32: in bfloat16 small steps would be lost.
    for _, parameter in trained_parameters(built.model):
        parameter.data = parameter.data.float()
    return built


def _bare(method: str, base: PreTrainedModel, classifies: bool) -> Built:
    """Train everything, or nothing; the new head of a classifier is trained either way."""
    base.requires_grad_(method == "full")
    if classifies:
        arch.head_of(base).requires_grad_(True)
    if method == "full":
        return Built(base, base, {"trained": "everything"})
    return Built(base, base, {"head": "trained" if classifies else "none"})


def _by_peft(method: str, base: PreTrainedModel, settings: dict[str, Any], classifies: bool) -> Built:
    model = peft_model(base, peft_config(method, settings, classifies))
    if method == "peft-shadow":
        return Built(model, base, settings, detach=model.base_model.unload_shadow)
    return Built(model, base, {"target_modules": "all-linear", **settings})


def _attached(
    method: str, base: PreTrainedModel, settings: dict[str, Any], shadow_model: str | None
) -> Built:
    pretrained, extra = None, {}
    if method in EXPLICIT:
        if shadow_model is None:
            raise ConfigError(f"{method} needs a pretrained shadow; set shadow_model to a folder or hub id")
        pretrained = sources.open_source(shadow_model, torch.float32)
        extra = {"shadow_model": shadow_model, "matched": method in MATCHED}
    shadowed = attach(base, ShadowConfig.from_dict(settings), pretrained)
    # What a pretrained shadow decides is in the adapter's settings, and not in those that were asked for.
    return Built(shadowed, base, {**shadowed.adapter.settings.to_dict(), **extra}, detach=shadowed.detached)


def check(study: Study) -> None:
    """Refuse overrides that a method does not know and methods that cannot be matched; no weights are loaded.

    Raises:
        ConfigError: a setting of a method is unknown or cannot be used, or a method cannot be matched at a
            rank on a model.
    """
    for method in study.overrides:
        refuse_unknown(method, study.overrides[method])
    for model, method, rank in product(study.names("model"), study.names("methods"), study.budgets):
        setting = study.candidates(method, study.names("tasks")[0])[0]
        try:
            _settings(Cell("search", model, "", method, rank=rank, seed=0, **setting._asdict()), study)
        except ConfigError as error:
            raise ConfigError(f"{model}: {error}") from error
        except (TypeError, ValueError) as error:  # PEFT's words for a setting that it cannot use
            given = ", ".join(f"{name}={value!r}" for name, value in study.overrides.get(method, {}).items())
            raise ConfigError(
                f"{model}: overrides of {method} ({given}) cannot be used: {' '.join(str(error).split())}"
            ) from error


def _settings(cell: Cell, study: Study) -> dict[str, Any]:
    """Return what a method is built with: the study's overrides, sizes that meet the budget, and alpha."""
    given, searched = overrides(cell, study)
    if cell.method in OURS:
        # Refuses what it cannot use, before anything is counted.
        wanted = ShadowConfig.from_dict({**given, **searched})
        is_explicit = cell.method in EXPLICIT and sources.is_explicit(study.shadow_model)
        refuse_frozen(wanted, is_explicit=is_explicit)
    if cell.method in MATCHED:
        shadow_model = study.shadow_model if cell.method in EXPLICIT else None
        given = matched(
            cell.model, cell.method, cell.rank, given=tuple(given.items()), shadow_model=shadow_model
        )
    return {**given, **searched}


def _load(source: str, task: Task, dtype: torch.dtype, pad_token_id: int) -> PreTrainedModel:
    if task.kind != "classification":
        base = stock_models.load_model(source, dtype)
        base.generation_config = _greedy(base)
        return base
    arch.family_of_config(stock_models.load_config(source))
    auto = arch.auto_class(stock_models.whole_config(source), "sequence-classification")
    with _quiet():  # transformers warns that the head is new
        model: Any = auto.from_pretrained(source, dtype=dtype, num_labels=len(task.labels))
    model = arch.text_model_of(model)
    model.config.pad_token_id = pad_token_id
    return model


def _greedy(base: PreTrainedModel) -> GenerationConfig:
    """Return the ids alone of a base's generation settings.

    Others, such as a penalty on repetition, would not reach the models of all methods alike.
    """
    given = base.generation_config
    if given is None:
        return GenerationConfig()
    return GenerationConfig(
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
    )


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
