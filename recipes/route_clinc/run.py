"""Train the robot task's models and let each answer all rows, with the scores of its tokens.

    python recipes/route_clinc/run.py --data DATA --model BASE --small SMALLER --output OUT [flags]

`DATA` is what `prepare.py` writes. SMALLER is the folder of a model with BASE's tokens, or of a shadow that
was pretrained beside BASE. Each training is made from several learning rates:

- `shadow`: SMALLER becomes the shadow of BASE; the projection of a model is fitted first. One training gives
  `attached.jsonl` and `detached.jsonl`. The rates are those of the shadow's backbone and projection.
- `small`: LoRA on SMALLER alone (`small_lora.jsonl`), the small model that needs no large one. A pretrained
  shadow is detached for it, and so has BASE's embeddings and head.
- `small_full`, with --full-rates: all weights of SMALLER alone (`small_full.jsonl`).
- `cloud`: LoRA on BASE (`cloud_lora.jsonl`), merged, a cloud without a shadow.

After each training the dev rows say how many answers are right. What is better than the rate before answers
calibration, test and shifted rows, and some test rows again one at a time, for their seconds; the models of a
training take turns at each row. --clock processor counts what this process works, which other work on a CPU
does not touch, and wants one thread. Files are written after every step, so that what was computed is kept
wherever the run ends; a training that would not end within --budget seconds is left out. `run.json` holds
settings, times and accuracies. With --adapter the chosen adapter is kept, and the detached answers bear its
hash.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from trainings import Models, Trainings
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.data.rows import Row, read_rows
from shadowpeft.evaluation.roles import identity_of
from shadowpeft.evaluation.scored import scored_answers
from shadowpeft.reporting import provenance
from shadowpeft.route import answered
from shadowpeft.route.answered import Answered, Answerer
from shadowpeft.storage import stock_models

SETS = ("calibration", "test", "shifted")
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class Arm(NamedTuple):
    """A training.

    Attributes:
        name: what it is called.
        rates: learning rates to try, in their order.
        make: trains from a rate and returns the models that answer, by the name of their file.
    """

    name: str
    rates: list[float]
    make: Callable[[float], Models]


class Recipe:
    """One run: its settings, its rows and what is known so far."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args, self.began = args, time.perf_counter()
        self.on_gpu = torch.device(args.device).type == "cuda"
        self.tokenizer: PreTrainedTokenizerBase = stock_models.load_tokenizer(args.model)
        self.rows = {name: self._read(name) for name in ("train", "dev", *SETS)}
        self.best: dict[str, float] = {}
        self.record: dict[str, Any] = {
            "settings": {name: str(value) for name, value in vars(args).items()},
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "device": torch.cuda.get_device_name() if self.on_gpu else "cpu",
            "rows": {name: len(rows) for name, rows in self.rows.items()},
            "trainings": [],
        }
        self.trainings = Trainings(
            args, self.tokenizer, self.rows["train"], self.rows["dev"], scratch=scratch, say=self.say
        )

    def _read(self, name: str) -> list[Row]:
        rows = read_rows(str(self.args.data / f"{name}.jsonl"))[: self.args.rows]
        return [
            Row({field: row.fields[field] for field in ("prompt", "completion")}, f"{name}:{at}")
            for at, row in enumerate(rows, start=1)
        ]

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.began

    def say(self, text: str) -> None:
        """Say what happens, and keep what is known."""
        print(f"{self.seconds():6.0f} s  {text}", file=sys.stderr, flush=True)
        self.record["seconds"] = round(self.seconds(), 1)
        text = json.dumps(self.record, indent=1)
        (self.args.output / "run.json").write_text(text + "\n", encoding="utf-8")

    # Answers

    def answers(self, model: PreTrainedModel, rows: Sequence[Row], batch_size: int) -> Any:
        """Answer rows."""
        return scored_answers(
            model, self.tokenizer, rows, batch_size=batch_size, max_new_tokens=self.args.max_new_tokens,
            progress=False,
        )  # fmt: skip

    def dev_accuracy(self, model: PreTrainedModel) -> float:
        """Return the share of dev rows answered rightly."""
        found = self.answers(model, self.rows["dev"], self.args.eval_batch_size)
        return sum(each.right for each in found) / len(found)

    def write(self, models: Models) -> None:
        """Let models answer all sets, time some single answers, and write them."""
        seconds = self._single(models)
        for name, model in models.items():
            self._write(name, model, seconds[name])

    def _write(self, name: str, model: PreTrainedModel, seconds: dict[str, float]) -> None:
        found, by = [], self._answerer(name)
        for part in SETS:
            rows = self.rows[part]
            for row, each in zip(rows, self.answers(model, rows, self.args.eval_batch_size), strict=True):
                found.append(
                    Answered(
                        row.where,
                        each.answer,
                        each.expected,
                        each.right,
                        _rounded(each.tokens),
                        by,
                        None,
                        seconds.get(row.where),
                    )
                )
        answered.write(found, self.args.output / f"{name}.jsonl")
        shares = {
            part: sum(row.right for row in found if row.where.startswith(part)) / len(self.rows[part])
            for part in SETS
        }
        self.record.setdefault("answers", {})[name] = {
            "accuracy": shares,
            "ms_per_answer": 1000 * statistics.median(seconds.values()),
            "mean_ms_per_answer": 1000 * statistics.mean(seconds.values()),
            "parameters": sum(weight.numel() for weight in model.parameters()),
        }
        self.say(f"{name}: {', '.join(f'{part} {100 * share:.1f} %' for part, share in shares.items())}")

    def _answerer(self, name: str) -> Answerer:
        # Names without paths: a record says nothing of where it was made.
        if name == "detached" and self.args.adapter is not None:
            by = identity_of(self.args.name, str(self.args.adapter))
            return replace(by, adapter=self.args.adapter.name)
        return Answerer(f"{self.args.name}, {name}")

    def _single(self, models: Models) -> dict[str, dict[str, float]]:
        """Time answers to the first test rows, one at a time; one more runs before, so that all is warm."""
        rows, found = self.rows["test"][: self.args.timed], {name: {} for name in models}
        clock = CLOCKS[self.args.clock]
        for model in models.values():
            self.answers(model, rows[:1], 1)
        for row in rows:
            for name, model in models.items():
                began = clock()
                self.answers(model, [row], 1)
                found[name][row.where] = round(clock() - began, 5)
        return found


def _rounded(tokens: Any) -> Any:
    """Return scores of five digits behind the point, which halves the files."""
    return replace(
        tokens,
        **{
            name: tuple(round(value, 5) for value in tokens.values(name))
            for name in ("logprobs", "margins", "entropies")
        },
    )


def arms_of(recipe: Recipe) -> Iterator[tuple[Arm, float]]:
    """Yield each training with a rate: the first rate of all, then the second."""
    args = recipe.args
    make = recipe.trainings
    arms = [
        Arm("shadow", args.shadow_rates, make.shadow),
        Arm("small", args.lora_rates, lambda rate: make.lora(make.small(), "small_lora", rate)),
        Arm("small_full", args.full_rates, lambda rate: make.full(make.small(), "small_full", rate)),
        Arm("cloud", args.lora_rates, lambda rate: make.lora(make.base(), "cloud_lora", rate)),
    ]
    for at in range(max(len(arm.rates) for arm in arms)):
        yield from ((arm, arm.rates[at]) for arm in arms if at < len(arm.rates))


def run(recipe: Recipe) -> None:
    """Train and answer, as long as the budget lasts."""
    took: dict[str, float] = {}
    for arm, rate in arms_of(recipe):
        # The first time of an arm is not known; it is let through.
        if recipe.seconds() + took.get(arm.name, 0.0) > recipe.args.budget:
            recipe.say(f"{arm.name} from {rate:g} is left out: it would not end within the budget")
            continue
        began = recipe.seconds()
        recipe.say(f"{arm.name} from {rate:g}")
        torch.manual_seed(recipe.args.seed)
        models = arm.make(rate)
        shares = {name: recipe.dev_accuracy(model) for name, model in models.items()}
        mean = statistics.mean(shares.values())
        recipe.record["trainings"].append({"arm": arm.name, "rate": rate, "dev": shares})
        recipe.say(f"{arm.name} from {rate:g}: dev {shares}")
        if mean > recipe.best.get(arm.name, -1.0):
            recipe.best[arm.name] = mean
            recipe.record.setdefault("chosen", {})[arm.name] = rate
            if arm.name == "shadow" and recipe.args.adapter is not None:
                shutil.copytree(recipe.trainings.folder(rate), recipe.args.adapter, dirs_exist_ok=True)
            recipe.write(models)
        del models
        if recipe.on_gpu:
            torch.cuda.empty_cache()
        took[arm.name] = recipe.seconds() - began
    recipe.say("done")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--small", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="folder that keeps the chosen adapter")
    parser.add_argument("--name", help="what the records call BASE; the name of its folder by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--eval-batch-size", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--max-new-tokens", type=int, default=12)
    parser.add_argument("--shadow-rate", type=float, default=1e-3)
    parser.add_argument("--shadow-rates", type=float, nargs="*", default=[2e-5, 5e-5])
    parser.add_argument("--shadow-rank", type=int, default=32)
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--shadow-loss-weight", type=float, default=1.0)
    parser.add_argument("--lora-rates", type=float, nargs="*", default=[2e-4, 5e-4])
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--full-rates", type=float, nargs="*", default=[])
    parser.add_argument("--timed", type=int, default=40)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--budget", type=float, default=420.0)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.name = args.name or Path(args.model).name
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        run(Recipe(args, Path(scratch)))


if __name__ == "__main__":
    main()
