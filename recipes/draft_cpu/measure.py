"""Measure plain decoding and decoding with the shadow's drafts, on a CPU.

    python recipes/draft_cpu/measure.py [--texts 12] [--tokens 64] [--threads 2] [--adapter FOLDER]

It writes a JSON line for each work and way: milliseconds a token by the clock and of the processor's time
(the median of the texts, and the quartiles), how many times faster than `plain` that is (the median of the
texts), and tokens a pass of the base.

The model is the embedded one, with its pretrained shadow as the demo attaches it. Works: `free text` goes on
from the beginnings of sentences, for --tokens tokens, beside boundaries that are untrained, so that the
attached model is its base; `intents` answers requests of the demo's test split to their end, after the demo's
training (made here, or read from --adapter, or written there). Ways: `base` is the model without a shadow,
which is what a merged LoRA takes; `plain` is attached; a number or `auto` is `draft_tokens`. Everything is
greedy, and the ways take turns on each text. A way that writes other tokens than `plain` ends the run.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from shadowpeft import ShadowedModel
from shadowpeft.data.encode import encode_all
from shadowpeft.data.rows import read_rows
from shadowpeft.demo.methods import fit, with_shadow
from shadowpeft.demo.run import MAX_LENGTH, load_base, training_rows
from shadowpeft.demo.settings import PRETRAINED_SHADOW, Settings
from shadowpeft.demo.timing import quantile
from shadowpeft.embedded import CLINC150, MODEL, SHADOW

DRAFTS = (1, 2, 3, 4, "auto")
# No token of the embedded model.
NO_END = 6144
BEGINNINGS = (
    "The river runs past the old town, and",
    '"Where are you going?" asked Ann.',
    "In 1891 the company built",
    "He was the first man who",
    "What is the capital of France?",
    "The school is",
    "A good way to learn a language is",
    "When the king heard of it, he",
    "The book was published in",
    "To make bread, you",
    "It was a cold morning, and the",
    "The island lies",
)


def trained(model: Any, tokenizer: Any, folder: Path | None, epochs: float) -> Any:
    """Return the model with the demo's training, which is kept in a folder if there is one."""
    if folder is not None and folder.exists():
        return ShadowedModel.from_pretrained(load_base(), folder)
    settings = Settings(epochs=epochs)
    torch.manual_seed(settings.seed)
    rows = encode_all(training_rows(), tokenizer, MAX_LENGTH)
    with tempfile.TemporaryDirectory() as scratch:
        fit(
            model, rows, tokenizer.pad_token_id, settings=settings,
            learning_rate=PRETRAINED_SHADOW.learning_rate, folder=scratch, progress=lambda *_: None,
        )  # fmt: skip
    if folder is not None:
        model.save_pretrained(folder)
    return model


def works(arguments: argparse.Namespace) -> Iterator[tuple[str, Any, list[Tensor], dict[str, Any]]]:
    """Return each work with its model, the ids to continue, and the settings of generation."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = with_shadow(load_base(), PRETRAINED_SHADOW, SHADOW).eval()
    prompts = [
        ("free text", list(BEGINNINGS)),
        ("intents", [row.fields["prompt"] for row in read_rows(str(CLINC150 / "test.jsonl"))]),
    ]
    for name, texts in prompts:
        ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts[: arguments.texts]]
        settings: dict[str, Any] = {"max_new_tokens": arguments.tokens, "do_sample": False}
        if name == "intents":
            model = trained(model, tokenizer, arguments.adapter, arguments.epochs)
        else:
            # Not by `min_new_tokens`, whose processor would take time of its own.
            settings["eos_token_id"] = NO_END
        yield name, model, ids, settings


def timed(model: Any, ids: Tensor, settings: dict[str, Any]) -> tuple[dict[str, float], Any]:
    """Generate once; return milliseconds a token and the output."""
    began, worked = time.perf_counter(), time.process_time()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **settings)
    taken, used = time.perf_counter() - began, time.process_time() - worked
    tokens = out.sequences.shape[1] - ids.shape[1]
    return {"ms": 1000 * taken / tokens, "cpu_ms": 1000 * used / tokens, "tokens": tokens}, out


def measure(model: Any, texts: list[Tensor], settings: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Generate each text in each way; return what each took."""
    base = load_base()
    ways: dict[str, dict[str, Any]] = {"plain": {}, "base": {}}
    ways |= {str(tokens): {"draft": "shadow", "draft_tokens": tokens} for tokens in DRAFTS}
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    # The first text is written twice: the first time only warms up.
    for ids in [texts[0], *texts]:
        written: dict[str, Tensor] = {}
        for way, draft in ways.items():
            if way == "base":
                # It may end elsewhere, and is to write as many tokens.
                as_many = written["plain"].shape[1] - ids.shape[1]
                draft = {"max_new_tokens": as_many, "eos_token_id": NO_END}
            found, out = timed(base if way == "base" else model, ids, {**settings, **draft})
            written[way] = out.sequences
            if "draft" in draft:
                assert torch.equal(out.sequences, written["plain"]), f"{way} writes other tokens"
                found["per_round"] = out.draft_report.tokens_per_round
            taken[way].append(found)
    return {way: found[1:] for way, found in taken.items()}


def rows_of(work: str, taken: dict[str, list[dict[str, float]]], made_with: dict[str, Any]) -> Iterator[dict]:
    """Return a row for each way."""
    for way, found in taken.items():
        row: dict[str, Any] = {"work": work, "way": way, "texts": len(found)}
        row["tokens"] = sum(int(each["tokens"]) for each in found)
        for name in ("ms", "cpu_ms"):
            times = [each[name] for each in found]
            ratios = [plain[name] / each for plain, each in zip(taken["plain"], times, strict=True)]
            row[name] = round(statistics.median(times), 2)
            row[f"{name}_quartiles"] = [round(quantile(times, share), 2) for share in (0.25, 0.75)]
            row["speedup" if name == "ms" else "cpu_speedup"] = round(statistics.median(ratios), 2)
        if "per_round" in found[0]:
            row["tokens_per_round"] = round(statistics.mean(each["per_round"] for each in found), 2)
        yield {**row, **made_with}


def cpu() -> str:
    """Return the processor's name, where Linux tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--texts", type=int, default=12, help="texts of each work")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of a text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--adapter", type=Path, help="folder of the demo's trained adapter")
    parser.add_argument("--epochs", type=float, default=Settings().epochs, help="of the demo's training")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    versions = {
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    made_with = {"threads": arguments.threads, "device": cpu(), "versions": versions}
    for work, model, texts, settings in works(arguments):
        for row in rows_of(work, measure(model, texts, settings), made_with):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
