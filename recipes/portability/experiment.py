"""The pieces of the experiment: each trains or measures, and appends what it found to the file of rows."""

import argparse
import gc
import time
from pathlib import Path
from typing import Any, NamedTuple

import adapters
import torch
import upgrade
from adapters import Graded
from resume import Adapter, Row, Rows, Work, say

from shadowpeft.data.encode import Example, encode_all
from shadowpeft.data.rows import Row as Pair
from shadowpeft.data.rows import read_rows
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.reporting import provenance
from shadowpeft.storage import stock_models

SEARCHED, LONGEST_ROW = 1000, 256
# Added to a seed for the order of rows in refitting.
OTHER_ORDER = 100
REFITTED = (
    ("lora", "everything"), ("shadow", "boundaries"), ("shadow", "shadow"), ("shadow", "everything"),
)  # fmt: skip
BOTH = ("attached", "detached")


class Task(NamedTuple):
    """Rows by split, and the prompts of the validation rows as plain text."""

    rows: dict[str, list[Example]]
    prompts: list[str]


class OutOfTime(Exception):
    """The next piece of work would not end within the budget."""


def read_task(folder: Path, tokenizer: Any, args: argparse.Namespace) -> Task:
    """Read and encode the splits."""
    rows, prompts = {}, []
    limits = {"train": None, "validation": args.validation_rows, "test": args.test_rows}
    for split, limit in limits.items():
        some = read_rows(folder / f"{split}.jsonl")[:limit]
        pairs = [
            Pair({name: row.fields[name] for name in ("prompt", "completion")}, row.where) for row in some
        ]
        rows[split] = encode_all(pairs, tokenizer, LONGEST_ROW)
        if split == "validation":
            prompts = [pair.fields["prompt"] for pair in pairs]
    return Task(rows, prompts)


class Experiment:
    """What all pieces of work share.

    A command that is repeated goes on where it was stopped.

    Attributes:
        rows: what was measured.
        work: what was trained.
        base: the stock model, whose copies get the weights of a stage.
        stages: v1 and v2 after each number of steps.
        rates: each method's rate, once chosen.
        factors: the factor of each method and part for refitting, once chosen.
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
        facts = {"model": Path(args.model).name, "device": args.device_name}
        self.rows, self.work = Rows(args.output, facts), Work(args.work)
        self.stages = {0: upgrade.Stage(0, upgrade.state_of(self.base), 0.0, 0.0)}
        self.rates: dict[str, float] = {}
        self.factors: dict[tuple[str, str], float] = {}
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

    def flags_row(self) -> None:
        """Write what is run, and with what."""
        flags = {name: str(value) for name, value in vars(self.args).items()}
        self.rows.refuse_other(flags)
        facts = {"versions": provenance.versions(), "commit": provenance.commit()}
        self.rows.write({"what": "run", "settings": self.settings, **facts, "flags": flags})

    def upgrade(self) -> None:
        """Make v2, and measure it at each stage, beside v1."""
        for stage in self.work.made("v2", self.make_v2):
            self.stages[stage["steps"]] = upgrade.Stage(**stage)
        for steps in self.stages:
            if not self.rows.find(what="base", stage=steps):
                self.text_row(steps)

    def make_v2(self) -> list[dict[str, Any]]:
        """Train v2 and return its stages as plain values."""
        base = upgrade.at(self.base, self.stages[0].state, torch.float32)
        stages = sorted(self.args.stages)
        made = upgrade.upgraded(base, self.texts.train, self.tokenizer, self.pad, stages, self.args)
        return [stage._asdict() for stage in made]

    def text_row(self, steps: int) -> None:
        """Write how a stage differs from v1: its losses, its weights, and its answers without an adapter."""
        stage, v1 = self.stages[steps], self.stages[0]
        base = self.copy(steps)
        texts = {**self.texts.held_out, "prompts": self.task.prompts[: self.args.held_out]}
        found = upgrade.losses(base, texts, self.tokenizer, self.pad, self.args)
        answers = adapters.graded(base, self.task.rows["validation"], self.pad, self.args)
        self.rows.write({
            "what": "base", "stage": steps, "losses": found,
            "moved": upgrade.moved(base, v1.state, stage.state), **shown(answers), "split": "validation",
            "train_seconds": stage.seconds, "train_cpu_seconds": stage.cpu_seconds,
        })  # fmt: skip

    def train(self, method: str, stage: int, seed: int, rate: float) -> Adapter:
        """Train a fresh adapter on a stage."""
        self.begin("training")
        began = time.perf_counter()
        model = adapters.put(self.copy(stage), method, self.settings[method], seed)
        made = self.fitted(model, self.args.steps, rate, seed)
        self.end("training", began)
        return made

    def on_v1(self, method: str, seed: int, rate: float) -> Adapter:
        """Return the adapter trained on v1; it is trained once."""

        def make() -> dict[str, Any]:
            return self.train(method, 0, seed, rate)._asdict()

        return Adapter(**self.work.made(f"{method}-{seed}-{rate:g}", make))

    def fitted(self, model: Any, steps: int, rate: float, seed: int) -> Adapter:
        """Train what is trainable of a model."""
        cpu = time.process_time()
        outcome = adapters.fit(
            model, self.task.rows["train"], self.pad, steps=steps, rate=rate, seed=seed, args=self.args
        )
        spent = time.process_time() - cpu
        return Adapter(adapters.state_of(model), outcome.steps, outcome.seconds, spent)

    def carried(self, method: str, stage: int, made: Adapter) -> Any:
        """Return an adapter on a stage."""
        return adapters.carried(self.copy(stage), method, self.settings[method], made.state)

    def refitted(self, method: str, stage: int, seed: int, part: str, factor: float) -> tuple[Any, Adapter]:
        """Carry v1's adapter over and refit a part of it; rows come in another order than on v1."""
        rate = self.rates[method]
        trained = self.on_v1(method, seed, rate)
        self.begin("refitting")
        began = time.perf_counter()
        model = self.carried(method, stage, trained)
        adapters.train_only(model, part)
        made = self.fitted(model, self.args.refit_steps, factor * rate, seed + OTHER_ORDER)
        self.end("refitting", began)
        return model, made

    def validated(self, model: Any, **named: Any) -> Row:
        """Measure a model on the validation rows and write its row."""
        found = adapters.graded(model, self.task.rows["validation"], self.pad, self.args)
        return self.rows.write({**named, **shown(found)})

    def missing(self, method: str, stage: int, seed: int, arm: str) -> dict[str, Any] | None:
        """Return what names the rows of an arm, `None` if all of them are written.

        A frozen shadow answers detached as it did, so that it is not measured again.
        """
        named = {"what": "adapter", "method": method, "stage": stage, "seed": seed, "arm": arm}
        modes = BOTH if method == "shadow" and arm != "boundaries" else BOTH[:1]
        left = [mode for mode in modes if not self.rows.find(mode=mode, **named)]
        return {**named, "modes": left} if left else None

    def report(self, model: Any, named: dict[str, Any], **cost: Any) -> None:
        """Measure a model on the test rows, attached or detached, and write its rows."""
        fields = {name: value for name, value in named.items() if name != "modes"}
        for mode in named["modes"]:
            one = model if mode == "attached" else model.detached()
            found = adapters.graded(one, self.task.rows["test"], self.pad, self.args)
            self.rows.write({**fields, "mode": mode, **shown(found), "split": "test", **cost})

    def search(self) -> None:
        """Choose each method's rate on v1."""
        for method in adapters.METHODS:
            found = {}
            for rate in self.args.rates:
                named = {"what": "search", "method": method, "rate": rate}
                row = self.rows.find(**named)
                if row is None:
                    made = self.on_v1(method, SEARCHED, rate)
                    row = self.validated(self.carried(method, 0, made), **named, **costs(made))
                found[rate] = row["nll"]
            self.rates[method] = min(found, key=lambda rate: found[rate])

    def search_refit(self) -> None:
        """Choose the factor of each refitting arm on the last stage."""
        for method, part in REFITTED:
            found = {}
            for factor in self.args.refit_factors:
                named = {"what": "search refit", "method": method, "arm": part, "factor": factor}
                row = self.rows.find(**named)
                if row is None:
                    model, made = self.refitted(method, self.last, SEARCHED, part, factor)
                    row = self.validated(model, **named, **costs(made))
                found[factor] = row["nll"]
            self.factors[method, part] = min(found, key=lambda factor: found[factor])

    def as_trained(self, stage: int, seed: int) -> None:
        """Report v1's adapters as they are, on v1 or on a later stage."""
        for method in adapters.METHODS:
            named = self.missing(method, stage, seed, "untouched" if stage else "v1")
            if named:
                made = self.on_v1(method, seed, self.rates[method])
                cost = {} if stage else {"rate": self.rates[method], **costs(made)}
                self.report(self.carried(method, stage, made), named, **cost)

    def refit(self, stage: int, seed: int) -> None:
        """Report v1's adapters on a later stage, refitted part by part."""
        for method, part in REFITTED:
            named = self.missing(method, stage, seed, part)
            if named:
                factor = self.factors[method, part]
                model, made = self.refitted(method, stage, seed, part, factor)
                self.report(model, named, rate=factor * self.rates[method], **costs(made))

    def anew(self, seed: int) -> None:
        """Train and report fresh adapters on the last stage."""
        for method in adapters.METHODS:
            named = self.missing(method, self.last, seed, "anew")
            if named:
                made = self.train(method, self.last, seed, self.rates[method])
                model = self.carried(method, self.last, made)
                self.report(model, named, rate=self.rates[method], **costs(made))


def shown(found: Graded) -> dict[str, Any]:
    """Return the fields of a row that say how good answers are."""
    right = found.correct.count("1") / len(found.correct)
    return {"accuracy": right, "nll": found.nll, "correct": found.correct}


def costs(made: Adapter) -> dict[str, Any]:
    """Return the fields of a row that say what a training cost."""
    trainable = sum(weight.numel() for weight in made.state.values())
    return {
        "trainable": trainable, "steps": made.steps, "train_seconds": made.seconds,
        "train_cpu_seconds": made.cpu_seconds,
    }  # fmt: skip
