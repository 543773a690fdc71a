"""Run the demo from the embedded model to the table: base, LoRA, and two shadows, random and pretrained, attached and detached."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.data.encode import encode_all
from shadowpeft.data.rows import Row, read_rows
from shadowpeft.demo.labels import calibrated_scores, label_scores
from shadowpeft.demo.methods import Fit, fit, with_lora, with_shadow
from shadowpeft.demo.settings import LORA, PRETRAINED_SHADOW, SHADOW, Settings
from shadowpeft.embedded import CLINC150, MODEL
from shadowpeft.embedded import SHADOW as PRETRAINED

MAX_LENGTH = 128
EMPTY = "Request: \nIntent:"


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
    fits: dict[str, Fit]
    examples: list[dict[str, str]]
    test_rows: int
    labels: int
    seconds: float


def run(settings: Settings, ui: Any) -> DemoResult:
    """Adapt the embedded model both ways and compare on the test split, which is read once, at the end.

    Args:
        settings: epochs, batch and sizes.
        ui: `ui.task(text, total)` gives a context whose value moves a progress bar when called with (done, total).
    """
    began = time.perf_counter()
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    train = encode_all(read_rows(str(CLINC150 / "train.jsonl")), tokenizer, MAX_LENGTH)
    adapted = {
        "LoRA": (with_lora(load_base()), LORA.learning_rate),
        "shadow": (with_shadow(load_base()), SHADOW.learning_rate),
        "pretrained shadow": (
            with_shadow(load_base(), PRETRAINED_SHADOW, PRETRAINED),
            PRETRAINED_SHADOW.learning_rate,
        ),
    }
    trainable = {name: count(model) for name, (model, _) in adapted.items()}
    fits = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, rate) in adapted.items():
            with ui.task(f"training {name} ({trainable[name]:,} parameters)", len(train)) as progress:
                fits[name] = fit(model, train, tokenizer.pad_token_id, settings, rate, folder, progress)
    models = {"base": load_base().to(adapted["LoRA"][0].device), "LoRA": adapted["LoRA"][0]}
    for name in ("shadow", "pretrained shadow"):
        shadowed = adapted[name][0]
        models |= {f"{name} attached": shadowed, f"{name} detached": shadowed.detached()}
        trainable[f"{name} detached"] = count_shadow(shadowed)
    rows = read_rows(str(CLINC150 / "test.jsonl"))[: settings.test_rows]
    labels = json.loads((CLINC150 / "labels.json").read_text())
    chosen = {}
    for name, model in models.items():
        with ui.task(f"answering {len(rows)} held-out requests: {name}", len(rows)) as progress:
            scores = label_scores(
                model,
                tokenizer,
                [row.fields["prompt"] for row in rows],
                labels,
                progress=partial(progress, total=len(rows)),
            )
        if name == "base":
            scores = calibrated_scores(model, tokenizer, scores, labels, empty=EMPTY)
        chosen[name] = [labels[best] for best in scores.argmax(1).tolist()]
    with ui.task("timing single answers", settings.timed_answers) as progress:
        timings = time_answers(models, tokenizer, rows[: settings.timed_answers], progress)
    methods = []
    for name in models:
        right = sum(row.fields["completion"] == label for row, label in zip(rows, chosen[name], strict=True))
        fitted = name.removesuffix(" attached").removesuffix(" detached")
        methods.append(
            MethodResult(
                name,
                right / len(rows),
                len(rows),
                trainable.get(name, trainable.get(fitted, 0)),
                fits[fitted].seconds if fitted in fits else None,
                statistics.median(timings[name]),
                (quantile(timings[name], 0.25), quantile(timings[name], 0.75)),
            )
        )
    return DemoResult(
        methods, fits, examples(rows, chosen), len(rows), len(labels), time.perf_counter() - began
    )


def load_base() -> PreTrainedModel:
    """Load the embedded model in float32, which a CPU computes fastest."""
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def count(model: Any) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_shadow(model: Any) -> int:
    """Count the trained parameters that the detached model keeps: the shadow's, without the boundaries'."""
    return sum(parameter.numel() for parameter in model.adapter.shadow.parameters())


@torch.inference_mode()
def time_answers(
    models: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], progress: Any
) -> dict[str, list[float]]:
    """Time greedy generation of one answer at a time, the models taking turns, in milliseconds.

    Every model makes the same number of tokens, so that a talkative one is not called slow.
    """
    taken: dict[str, list[float]] = {name: [] for name in models}
    for number, row in enumerate([rows[0], *rows]):
        inputs = tokenizer(row.fields["prompt"], return_tensors="pt").to(models["base"].device)
        for name, model in models.items():
            start = time.perf_counter()
            model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
            taken[name].append(1000 * (time.perf_counter() - start))
        progress(number, len(rows))
    return {name: times[1:] for name, times in taken.items()}  # the first answer warms up


def quantile(values: list[float], share: float) -> float:
    """Return the value below which `share` of the values lie."""
    return sorted(values)[round(share * (len(values) - 1))]


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
