"""Measure plain decoding and decoding with the shadow's drafts, on a CPU.

    python recipes/draft_cpu/measure.py [--texts 12] [--tokens 64] [--threads 2] [--adapter FOLDER]
    python recipes/draft_cpu/measure.py --shadows RUN/shadow OTHER/shadow --drafts 2 4 8 auto

It writes a JSON line for each work, shadow and way: milliseconds a token by the clock and of the processor's
time (the median of the texts, and the quartiles), how many times faster than `plain` and than `base` that is
(the median of the texts, for `base` with the quartiles), tokens a pass of the base, and the share of first,
second, ... drafts that was taken.

**When drafts are said to be faster than a merged LoRA:** where on free text the median of the texts' ratios
to `base`, `of_base`, is above 1 and its lower quartile at least 1, token for token the same, by the
processor's time (`cpu_of_base`) where the machine is busy.

The model is the embedded one, with its pretrained shadow as the demo attaches it, or with those of --shadows,
which are folders and are named by their blocks. --draft-vocabulary N lets drafts be of the first N tokens,
and --draft-steps N teaches a head for drafts on the model's own answers, to the first 16 tokens of rows of
--prompts (`train.npz` of `recipes/pretrained_shadow`) or to requests of the demo. --accuracy N answers N
requests, attached and detached.

Works: `free text` goes on from the beginnings of sentences, for --tokens tokens, beside boundaries that are
untrained, so that the attached model is its base; `intents` answers requests of the demo's test split to
their end, after the demo's training (made here, or read from --adapter, or written there). Ways: `base` is
the model without a shadow, which is what a merged LoRA takes; `plain` is attached; a number or `auto` is
`draft_tokens`. Everything is greedy, and all ways of all shadows take turns on each text. A way that writes
other tokens than `plain` ends the run.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from shadowpeft import ShadowedModel
from shadowpeft.data.encode import encode_all
from shadowpeft.data.rows import read_rows
from shadowpeft.demo.labels import likeliest_labels
from shadowpeft.demo.methods import fit, with_shadow
from shadowpeft.demo.run import MAX_LENGTH, load_base, training_rows
from shadowpeft.demo.settings import PRETRAINED_SHADOW, Settings
from shadowpeft.demo.timing import quantile
from shadowpeft.embedded import CLINC150, MODEL, SHADOW
from shadowpeft.train.config import DraftConfig
from shadowpeft.train.draft import teach

DRAFTS = ("1", "2", "3", "4", "auto")
WORKS = ("free text", "intents")
PROMPTS, PROMPT_TOKENS = 256, 16
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


def attached(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the model with each shadow, by the number of its blocks."""
    models = {}
    for folder in folders:
        model = with_shadow(load_base(), PRETRAINED_SHADOW, folder).eval()
        blocks = model.adapter.shadow.backbone.config.num_hidden_layers
        name = "1 block" if blocks == 1 else f"{blocks} blocks"
        assert name not in models, f"two shadows of {name}"
        models[name] = model
    return models


def accuracy(model: Any, tokenizer: Any, rows: int) -> dict[str, float]:
    """Return how many requests of the demo's test split are answered rightly, as the demo counts them."""
    asked = read_rows(str(CLINC150 / "test.jsonl"))[:rows]
    labels = json.loads((CLINC150 / "labels.json").read_text(encoding="utf-8"))
    found = {}
    for role, answering in (("attached", model), ("detached", model.detached())):
        best = likeliest_labels(answering, tokenizer, [row.fields["prompt"] for row in asked], labels)
        right = [labels[label] == row.fields["completion"] for label, row in zip(best, asked, strict=True)]
        found[role] = round(statistics.mean(right), 3)
    return found


def beginnings(file: Path) -> list[list[int]]:
    """Return the first tokens of rows of a token file, evenly spread."""
    ids = np.load(file)["ids"]
    starts = np.linspace(0, len(ids) - PROMPT_TOKENS, PROMPTS, dtype=int)
    return [ids[start : start + PROMPT_TOKENS].astype(int).tolist() for start in starts]


def works(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], list[Tensor], dict]]:
    """Return each work with its models, the ids to continue, and the settings of generation."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    models = attached(arguments.shadows)
    texts = {
        "free text": list(BEGINNINGS),
        "intents": [row.fields["prompt"] for row in read_rows(str(CLINC150 / "test.jsonl"))],
    }
    for work in arguments.works:
        ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts[work][: arguments.texts]]
        settings: dict[str, Any] = {"max_new_tokens": arguments.tokens, "do_sample": False}
        if work == "intents":
            models = {name: learnt(name, model, tokenizer, arguments) for name, model in models.items()}
        else:
            # Not by `min_new_tokens`, whose processor would take time of its own.
            settings["eos_token_id"] = NO_END
        for name, model in models.items():
            prepare_drafts(work, name, model, tokenizer, arguments)
        yield work, models, ids, settings


def learnt(name: str, model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Any:
    """Train a model on the demo's task, or read its adapter; print how it answers if that is asked for."""
    folder = arguments.adapter
    if folder is not None and len(arguments.shadows) > 1:
        folder = folder / name.replace(" ", "_")
    model = trained(model, tokenizer, folder, arguments.epochs)
    if arguments.accuracy:
        told = {"work": "intents", "shadow": name, "way": "accuracy", "texts": arguments.accuracy}
        print(json.dumps({**told, **accuracy(model, tokenizer, arguments.accuracy)}), flush=True)
    return model


def prepare_drafts(work: str, name: str, model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Give a model its draft vocabulary, and teach it a head for drafts; print how that went."""
    if arguments.draft_vocabulary is not None:
        # The tokenizer's first tokens are its special ones, bytes, and what it merged first.
        model.set_draft_vocabulary(range(arguments.draft_vocabulary))
    if not arguments.draft_steps:
        return
    if work == "intents":
        prompts = [tokenizer(row.fields["prompt"])["input_ids"] for row in training_rows()][:PROMPTS]
    else:
        prompts = beginnings(arguments.prompts)
    config = DraftConfig(steps=arguments.draft_steps, max_new_tokens=arguments.tokens)
    found = vars(teach(model, tokenizer, prompts, config))
    print(json.dumps({"work": work, "shadow": name, "way": "taught", **found}), flush=True)


def timed(model: Any, ids: Tensor, settings: dict[str, Any]) -> tuple[dict[str, float], Any]:
    """Generate once; return milliseconds a token and the output."""
    began, worked = time.perf_counter(), time.process_time()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **settings)
    taken, used = time.perf_counter() - began, time.process_time() - worked
    tokens = out.sequences.shape[1] - ids.shape[1]
    return {"ms": 1000 * taken / tokens, "cpu_ms": 1000 * used / tokens, "tokens": tokens}, out


def measure(
    models: Mapping[str, Any], texts: list[Tensor], settings: dict[str, Any], drafts: Sequence[str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Generate each text in each way of each shadow; return what each took."""
    base = load_base()
    ways: dict[str, dict[str, Any]] = {"plain": {}, "base": {}}
    for tokens in drafts:
        ways[tokens] = {"draft": "shadow", "draft_tokens": int(tokens) if tokens.isdigit() else tokens}
    taken: dict[str, dict[str, list[dict[str, Any]]]] = {name: {way: [] for way in ways} for name in models}
    # The first text is written twice: the first time only warms up.
    for ids in [texts[0], *texts]:
        for name, model in models.items():
            written: dict[str, Tensor] = {}
            for way, draft in ways.items():
                if way == "base":
                    # It may end elsewhere, and is to write as many tokens.
                    as_many = written["plain"].shape[1] - ids.shape[1]
                    draft = {"max_new_tokens": as_many, "eos_token_id": NO_END}
                found, out = timed(base if way == "base" else model, ids, {**settings, **draft})
                written[way] = out.sequences
                if "draft" in draft:
                    assert torch.equal(out.sequences, written["plain"]), f"{name}, {way}: other tokens"
                    found["report"] = out.draft_report
                taken[name][way].append(found)
    return {name: {way: found[1:] for way, found in each.items()} for name, each in taken.items()}


def acceptance(reports: Sequence[Any]) -> list[float]:
    """Return the share of first, second, ... drafts that was taken in all texts."""
    put, accepted = (
        [sum(counts) for counts in zip_longest(*each, fillvalue=0)]
        for each in ([report.drafted for report in reports], [report.accepted for report in reports])
    )
    return [round(taken / drafted, 2) for taken, drafted in zip(accepted, put, strict=True)]


def rows_of(work: str, taken: dict[str, list[dict[str, Any]]], made_with: dict[str, Any]) -> Iterator[dict]:
    """Return a row for each way."""
    for way, found in taken.items():
        row: dict[str, Any] = {"work": work, "way": way, "texts": len(found)}
        row["tokens"] = sum(int(each["tokens"]) for each in found)
        for name in ("ms", "cpu_ms"):
            clock = name.removesuffix("ms")
            times = [each[name] for each in found]
            ratios, of_base = (
                [other[name] / each for other, each in zip(taken[other_way], times, strict=True)]
                for other_way in ("plain", "base")
            )
            row[name] = round(statistics.median(times), 2)
            row[f"{name}_quartiles"] = [round(quantile(times, share), 2) for share in (0.25, 0.75)]
            row[f"{clock}speedup"] = round(statistics.median(ratios), 2)
            row[f"{clock}of_base"] = round(statistics.median(of_base), 2)
            row[f"{clock}of_base_quartiles"] = [round(quantile(of_base, share), 2) for share in (0.25, 0.75)]
        if "report" in found[0]:
            reports = [each["report"] for each in found]
            row["tokens_per_round"] = round(statistics.mean(each.tokens_per_round for each in reports), 2)
            row["acceptance"] = acceptance(reports)
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
    parser.add_argument("--adapter", type=Path, help="folder of the demo's trained adapter, or of several")
    parser.add_argument("--epochs", type=float, default=Settings().epochs, help="of the demo's training")
    parser.add_argument("--accuracy", type=int, default=0, help="test rows of the demo to be answered, too")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--shadows", type=Path, nargs="+", default=[SHADOW], help="shadow folders")
    parser.add_argument("--drafts", nargs="+", default=DRAFTS, help="`draft_tokens` to measure")
    parser.add_argument("--draft-vocabulary", type=int, help="tokens that drafts are of")
    parser.add_argument("--draft-steps", type=int, default=0, help="steps of teaching a head for drafts")
    parser.add_argument("--prompts", type=Path, help="token file whose text that head is taught with")
    arguments = parser.parse_args()
    if arguments.draft_steps and "free text" in arguments.works and arguments.prompts is None:
        parser.error("--draft-steps needs --prompts for free text")
    torch.set_num_threads(arguments.threads)
    versions = {
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    made_with = {"threads": arguments.threads, "device": cpu(), "versions": versions}
    for work, models, texts, settings in works(arguments):
        for name, taken in measure(models, texts, settings, arguments.drafts).items():
            for row in rows_of(work, taken, {"shadow": name, **made_with}):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
