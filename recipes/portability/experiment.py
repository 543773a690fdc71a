"""The pieces of the experiment: each trains or measures, and appends what it found to the file of rows."""

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import adapters
import torch
import upgrade
from adapters import Graded

from shadowpeft.compare.training import TrainingOutcome
from shadowpeft.data.encode import Example, encode_all
from shadowpeft.data.rows import Row, read_rows
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.reporting import provenance
from shadowpeft.storage import stock_models

SEARCHED, LONGEST_ROW = 1000, 256
# Added to a seed for the order of rows in refitting.
OTHER_ORDER = 100
PARTS = {"lora": ("everything",), "shadow": ("boundaries", "shadow", "everything")}
# What a part of the shadow that is frozen leaves as it is need not be measured again.
ATTACHED_ALONE = ("boundaries",)


class Task(NamedTuple):
    """Rows by split, and the prompts of the validation rows as plain text."""

    rows: dict[str, list[Example]]
    prompts: list[str]


class Adapter(NamedTuple):
    """A trained adapter, and what it cost."""

    state: adapters.State
    outcome: TrainingOutcome
    cpu_seconds: float


class OutOfTime(Exception):
    """The next piece of work would not end within the budget."""


def read_task(folder: Path, tokenizer: Any, args: argparse.Namespace) -> Task:
    """Read and encode the splits."""
    rows, prompts = {}, []
    limits = {"train": None, "validation": args.validation_rows, "test": args.test_rows}
    for split, limit in limits.items():
        some = read_rows(folder / f"{split}.jsonl")[:limit]
        pairs = [
            Row({name: row.fields[name] for name in ("prompt", "completion")}, row.where) for row in some
        ]
        rows[split] = encode_all(pairs, tokenizer, LONGEST_ROW)
        if split == "validation":
            prompts = [pair.fields["prompt"] for pair in pairs]
    return Task(rows, prompts)


class Experiment:
    """What all pieces of work share.

    Attributes:
        base: the stock model, whose copies get the weights of a stage.
        stages: v1 and v2 after each number of steps.
        rates: each method's rate, once chosen.
        factors: the factor of each method and part for refitting, once chosen.
        trained: the adapters that were trained on v1, by method and seed.
        texts: what v2 is trained on, and what is held out.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.began, self.longest = args, time.perf_counter(), {}
        self.tokenizer = stock_models.load_tokenizer(args.model)
        self.pad = padding_id(self.tokenizer)
        self.task = read_task(args.task, self.tokenizer, args)
        self.base = stock_models.load_model(args.model, torch.float32).to(args.device)
        self.settings = {
            method: adapters.settings_of(args.model, method, args.rank) for method in adapters.METHODS
        }
        self.stages = {0: upgrade.Stage(0, upgrade.state_of(self.base), 0.0, 0.0)}
        self.rates: dict[str, float] = {}
        self.factors: dict[tuple[str, str], float] = {}
        self.trained: dict[tuple[str, int], Adapter] = {}
        self.texts = upgrade.read_texts(args.data, args.held_out)
        say(f"{len(self.texts.train)} texts for v2, {len(self.task.rows['train'])} rows to train on")

    @property
    def last(self) -> int:
        """The number of steps of the last stage."""
        return max(self.args.stages)

    def copy(self, steps: int) -> Any:
        """Return the base of a stage, in the type in which adapters are trained."""
        gc.collect()  # the Trainer of the last training is a reference cycle that holds its model
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        return upgrade.at(self.base, self.stages[steps].state, dtype)

    def begin(self, kind: str) -> None:
        """Refuse a piece of work that would not end in time, by the longest of its kind so far."""
        if time.perf_counter() - self.began + self.longest.get(kind, 0.0) > self.args.budget:
            raise OutOfTime(f"no time is left for another {kind}")

    def end(self, kind: str, began: float) -> None:
        """Note how long a piece of work took."""
        self.longest[kind] = max(self.longest.get(kind, 0.0), time.perf_counter() - began)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row to the file and say so."""
        facts = {"model": Path(self.args.model).name, "device": self.args.device_name}
        with self.args.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, **facts}) + "\n")
        shown = {
            name: value for name, value in row.items() if name not in ("correct", "settings", "versions")
        }
        say(json.dumps(shown))

    def flags_row(self) -> None:
        """Write what is run, and with what."""
        flags = {name: str(value) for name, value in vars(self.args).items()}
        facts = {"versions": provenance.versions(), "commit": provenance.commit()}
        self.write({"what": "run", "settings": self.settings, **facts, "flags": flags})

    def upgrade(self) -> None:
        """Measure v1, make v2, and measure it at each stage."""
        self.text_row(0)
        base = upgrade.at(self.base, self.stages[0].state, torch.float32)
        stages = sorted(self.args.stages)
        for stage in upgrade.upgraded(base, self.texts.train, self.tokenizer, self.pad, stages, self.args):
            self.stages[stage.steps] = stage
            self.text_row(stage.steps)

    def text_row(self, steps: int) -> None:
        """Write how a stage differs from v1: its losses, its weights, and its answers without an adapter."""
        stage, v1 = self.stages[steps], self.stages[0]
        base = self.copy(steps)
        texts = {**self.texts.held_out, "prompts": self.task.prompts[: self.args.held_out]}
        found = upgrade.losses(base, texts, self.tokenizer, self.pad, self.args)
        answers = adapters.graded(base, self.task.rows["validation"], self.pad, self.args)
        self.write({
            "what": "base", "stage": steps, "losses": found,
            "moved": upgrade.moved(base, v1.state, stage.state), **shown(answers), "split": "validation",
            "train_seconds": stage.seconds, "train_cpu_seconds": stage.cpu_seconds,
        })  # fmt: skip

    def train(self, method: str, stage: int, seed: int, rate: float) -> tuple[Any, Adapter]:
        """Train a fresh adapter on a stage."""
        self.begin("training")
        began = time.perf_counter()
        model = adapters.put(self.copy(stage), method, self.settings[method], seed)
        made = self.fitted(model, self.args.steps, rate, seed)
        self.end("training", began)
        return model, made

    def fitted(self, model: Any, steps: int, rate: float, seed: int) -> Adapter:
        """Train what is trainable of a model."""
        cpu = time.process_time()
        outcome = adapters.fit(
            model, self.task.rows["train"], self.pad, steps=steps, rate=rate, seed=seed, args=self.args
        )
        spent = time.process_time() - cpu
        return Adapter(adapters.state_of(model), outcome, spent)

    def carried(self, method: str, stage: int, seed: int) -> Any:
        """Return v1's adapter on a later stage."""
        state = self.trained[method, seed].state
        return adapters.carried(self.copy(stage), method, self.settings[method], state)

    def refitted(self, method: str, stage: int, seed: int, part: str, factor: float) -> tuple[Any, Adapter]:
        """Carry an adapter over and refit a part of it; rows come in another order than on v1."""
        self.begin("refitting")
        began = time.perf_counter()
        model = self.carried(method, stage, seed)
        adapters.train_only(model, part)
        made = self.fitted(model, self.args.refit_steps, factor * self.rates[method], seed + OTHER_ORDER)
        self.end("refitting", began)
        return model, made

    def validated(self, model: Any) -> Graded:
        """Measure a model on the validation rows."""
        return adapters.graded(model, self.task.rows["validation"], self.pad, self.args)

    def report(self, model: Any, method: str, stage: int, seed: int, arm: str, **cost: Any) -> None:
        """Measure a model on the test rows, attached and detached, and write its rows."""
        modes = [("attached", model)]
        if method == "shadow" and arm not in ATTACHED_ALONE:
            modes.append(("detached", model.detached()))
        for mode, one in modes:
            found = adapters.graded(one, self.task.rows["test"], self.pad, self.args)
            self.write({
                "what": "adapter", "method": method, "mode": mode, "stage": stage, "seed": seed, "arm": arm,
                **shown(found), "split": "test", **cost,
            })  # fmt: skip

    def search(self) -> None:
        """Choose each method's rate on v1."""
        for method in adapters.METHODS:
            found = {}
            for rate in self.args.rates:
                model, made = self.train(method, 0, SEARCHED, rate)
                graded = self.validated(model)
                found[rate] = graded.nll
                self.write({"what": "search", "method": method, "rate": rate, **shown(graded), **costs(made)})
                if found[rate] == min(found.values()):
                    self.trained[method, SEARCHED], self.rates[method] = made, rate

    def search_refit(self) -> None:
        """Choose the factor of each refitting arm on the last stage."""
        for method, parts in PARTS.items():
            for part in parts:
                found = {}
                for factor in self.args.refit_factors:
                    model, made = self.refitted(method, self.last, SEARCHED, part, factor)
                    graded = self.validated(model)
                    found[factor] = graded.nll
                    self.write({
                        "what": "search refit", "method": method, "arm": part, "factor": factor,
                        **shown(graded), **costs(made),
                    })  # fmt: skip
                self.factors[method, part] = min(found, key=lambda factor: found[factor])

    def on_v1(self, seed: int) -> None:
        """Train and report both adapters on v1."""
        for method in adapters.METHODS:
            model, made = self.train(method, 0, seed, self.rates[method])
            self.trained[method, seed] = made
            self.report(model, method, 0, seed, "v1", rate=self.rates[method], **costs(made))

    def untouched(self, stage: int, seed: int) -> None:
        """Report v1's adapters on a later stage, as they are."""
        for method in adapters.METHODS:
            self.report(self.carried(method, stage, seed), method, stage, seed, "untouched")

    def refit(self, stage: int, seed: int) -> None:
        """Report v1's adapters on a later stage, refitted part by part."""
        for method, parts in PARTS.items():
            for part in parts:
                factor = self.factors[method, part]
                model, made = self.refitted(method, stage, seed, part, factor)
                rate = factor * self.rates[method]
                self.report(model, method, stage, seed, part, rate=rate, **costs(made))

    def anew(self, seed: int) -> None:
        """Train and report fresh adapters on the last stage."""
        for method in adapters.METHODS:
            model, made = self.train(method, self.last, seed, self.rates[method])
            self.report(model, method, self.last, seed, "anew", rate=self.rates[method], **costs(made))


def shown(found: Graded) -> dict[str, Any]:
    """Return the fields of a row that say how good answers are."""
    right = found.correct.count("1") / len(found.correct)
    return {"accuracy": right, "nll": found.nll, "correct": found.correct}


def costs(made: Adapter) -> dict[str, Any]:
    """Return the fields of a row that say what a training cost."""
    trainable = sum(weight.numel() for weight in made.state.values())
    return {
        "trainable": trainable, "steps": made.outcome.steps, "train_seconds": made.outcome.seconds,
        "train_cpu_seconds": made.cpu_seconds,
    }  # fmt: skip


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
