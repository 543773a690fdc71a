"""The demo from the embedded model to its table: the base, LoRA, and two shadows, attached and detached."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.data.encode import Example, encode_all
from shadowpeft.data.rows import Row, read_rows
from shadowpeft.demo.labels import label_scores, likeliest_labels
from shadowpeft.demo.methods import Curve, fit, with_lora, with_shadow
from shadowpeft.demo.settings import LORA, PRETRAINED_SHADOW, SHADOW, Lora, Settings, Shadow
from shadowpeft.demo.timing import quantile, time_answers
from shadowpeft.embedded import CLINC150, MODEL
from shadowpeft.embedded import SHADOW as PRETRAINED

MAX_LENGTH = 128
EMPTY = "Request: \nIntent:"
# Shares of the whole time, by which the rest is forecast: of one of the three trainings, of one of the six
# rounds of answers, and of the timing.
TRAINING, ANSWERING, TIMING = 0.27, 0.025, 0.04


@dataclass
class MethodResult:
    """One row of the table."""

    name: str
    accuracy: float
    answered: int
    trainable: int
    train_seconds: float | None
    ms_per_answer: float
    ms_spread: tuple[float, float]


@dataclass
class DemoResult:
    """All that the table and the report show."""

    methods: list[MethodResult]
    fits: dict[str, Curve]
    examples: list[dict[str, str]]
    test_rows: int
    labels: int
    seconds: float


class Adapted(NamedTuple):
    """The base with a method of adapting it, the method's learning rate, and how many weights it trains."""

    model: Any
    learning_rate: float
    trainable: int


def run(settings: Settings, ui: Any) -> DemoResult:
    """Adapt the embedded model in each way and compare on the test split, which is read once, at the end.

    Args:
        settings: epochs, batch and sizes.
        ui: `ui.task(text, total, share)` gives a context whose value moves a progress bar when called with
            (done, total); `share` is the part of the whole time that the task takes.
    """
    began = time.perf_counter()
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    train = encode_all(training_rows(), tokenizer, MAX_LENGTH)
    adapted = _adapted()
    curves = _train(adapted, train, tokenizer, settings=settings, ui=ui)
    models = _models(adapted)
    rows = read_rows(str(CLINC150 / "test.jsonl"))[: settings.test_rows]
    labels = json.loads((CLINC150 / "labels.json").read_text(encoding="utf-8"))
    chosen = _answers(models, tokenizer, rows, labels=labels, ui=ui)
    with ui.task("timing single answers", settings.timed_answers, TIMING) as progress:
        timings = time_answers(models, tokenizer, rows[: settings.timed_answers], progress=progress)
    methods = [
        _result(name, rows, chosen[name], adapted=adapted, curves=curves, timings=timings[name])
        for name in models
    ]
    return DemoResult(
        methods=methods,
        fits=curves,
        examples=examples(rows, chosen),
        test_rows=len(rows),
        labels=len(labels),
        seconds=time.perf_counter() - began,
    )


def _adapted() -> dict[str, Adapted]:
    methods: dict[str, tuple[Any, Lora | Shadow]] = {
        "LoRA": (with_lora(load_base()), LORA),
        "shadow": (with_shadow(load_base()), SHADOW),
        "pretrained shadow": (with_shadow(load_base(), PRETRAINED_SHADOW, PRETRAINED), PRETRAINED_SHADOW),
    }
    return {
        name: Adapted(model, method.learning_rate, count(model)) for name, (model, method) in methods.items()
    }


def _train(
    adapted: dict[str, Adapted],
    rows: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    ui: Any,
) -> dict[str, Curve]:
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, learning_rate, trainable) in adapted.items():
            with ui.task(f"training {name} ({trainable:,} parameters)", len(rows), TRAINING) as progress:
                curves[name] = fit(
                    model,
                    rows,
                    tokenizer.pad_token_id,
                    settings=settings,
                    learning_rate=learning_rate,
                    folder=folder,
                    progress=progress,
                )
    return curves


def _models(adapted: dict[str, Adapted]) -> dict[str, Any]:
    """Name the models that answer: the base, LoRA, and each shadow attached and detached."""
    lora = adapted["LoRA"].model
    models = {"base": load_base().to(lora.device), "LoRA": lora}
    for name in ("shadow", "pretrained shadow"):
        shadowed = adapted[name].model
        models |= {f"{name} attached": shadowed, f"{name} detached": shadowed.detached()}
    return models


def _answers(
    models: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    labels: list[str],
    ui: Any,
) -> dict[str, list[str]]:
    """Return the label that each model finds likeliest, for every row."""
    prompts, chosen = [row.fields["prompt"] for row in rows], {}
    for name, model in models.items():
        with ui.task(f"answering {len(rows)} held-out requests: {name}", len(rows), ANSWERING) as progress:
            # The base was never taught the format; what is taught needs no calibration.
            worth_L: Tensor | float = 0.0
            if name == "base":
                worth_L = label_scores(model, tokenizer, [EMPTY], labels)[0]
            moved = partial(progress, total=len(rows))
            found = likeliest_labels(model, tokenizer, prompts, labels, worth_L=worth_L, progress=moved)
        chosen[name] = [labels[best] for best in found]
    return chosen


def _result(
    name: str,
    rows: Sequence[Row],
    answers: list[str],
    adapted: dict[str, Adapted],
    curves: dict[str, Curve],
    timings: list[float],
) -> MethodResult:
    right = sum(row.fields["completion"] == answer for row, answer in zip(rows, answers, strict=True))
    method = name.removesuffix(" attached").removesuffix(" detached")
    trainable, seconds = 0, None
    if method in adapted:
        trainable, seconds = adapted[method].trainable, curves[method].seconds
    if name.endswith(" detached"):
        trainable = count_shadow(adapted[method].model)
    return MethodResult(
        name=name,
        accuracy=right / len(rows),
        answered=len(rows),
        trainable=trainable,
        train_seconds=seconds,
        ms_per_answer=statistics.median(timings),
        ms_spread=(quantile(timings, 0.25), quantile(timings, 0.75)),
    )


def load_base() -> PreTrainedModel:
    """Load the embedded model in float32, which a CPU computes fastest."""
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def training_rows() -> list[Row]:
    """Read the rows to train on, without the column that training does not use."""
    rows = read_rows(str(CLINC150 / "train.jsonl"))
    return [Row({name: row.fields[name] for name in ("prompt", "completion")}, row.where) for row in rows]


def count(model: Any) -> int:
    """Count the trainable parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_shadow(model: Any) -> int:
    """Count the trained parameters that the detached model keeps: the shadow's, without the boundaries'."""
    return sum(parameter.numel() for parameter in model.adapter.shadow.parameters())


def examples(rows: Sequence[Row], chosen: dict[str, list[str]], most: int = 8) -> list[dict[str, str]]:
    """Pick the first requests in and out of scope, with every model's answer."""
    remote = [i for i, row in enumerate(rows) if row.fields["intent"] == "oos"][: most // 4]
    local = [i for i, row in enumerate(rows) if row.fields["intent"] != "oos"][: most - len(remote)]
    picked = []
    for i in local + remote:
        request = rows[i].fields["prompt"].removeprefix("Request: ").removesuffix("\nIntent:")
        answers = {name: labels[i].strip() for name, labels in chosen.items()}
        picked.append({"request": request, "right": rows[i].fields["completion"].strip(), **answers})
    return picked
