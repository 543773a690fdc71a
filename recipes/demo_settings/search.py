"""Choose the demo's settings on the validation split.

    python recipes/demo_settings/search.py --output DIR --epochs 1 2 3 [--part K N]

Trains and scores each candidate, and writes a line and a JSON record for it. The test split is not opened.
One candidate takes seconds on a GPU; the script also runs on a CPU.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shadowpeft.data.encode import Example, encode_all
from shadowpeft.data.rows import read_rows
from shadowpeft.demo.labels import likeliest_labels
from shadowpeft.demo.methods import Curve, fit, with_lora, with_shadow
from shadowpeft.demo.run import MAX_LENGTH, count, load_base
from shadowpeft.demo.settings import Lora, Settings, Shadow
from shadowpeft.embedded import CLINC150, MODEL


def candidates(epochs: list[float]) -> list[tuple[float, Lora | Shadow]]:
    """List the candidates: a grid over the settings that matter most."""
    loras = [Lora(rank, rate) for rank in (8, 32) for rate in (1e-3, 2e-3, 4e-3)]
    shadows = [
        Shadow(rank=64, alpha=alpha, loss_weight=weight, dropout=0.05, learning_rate=rate)
        for alpha, weight, rate in itertools.product((1.0, 4.0), (0.5, 1.0), (1e-3, 2e-3, 3e-3))
    ]
    shadows += [
        Shadow(rank=16, alpha=4.0, loss_weight=0.5, dropout=0.05, learning_rate=rate) for rate in (1e-3, 3e-3)
    ]
    return [(epoch, method) for epoch in epochs for method in [*loras, *shadows]]


def accuracy(model: torch.nn.Module, tokenizer: object, rows: list, labels: list[str]) -> float:
    """Score by the most likely label, as the demo does."""
    chosen = likeliest_labels(model, tokenizer, [row.fields["prompt"] for row in rows], labels)
    right = sum(labels[best] == row.fields["completion"] for best, row in zip(chosen, rows, strict=True))
    return right / len(rows)


def trained(
    method: Lora | Shadow, settings: Settings, rows: list[Example], *, tokenizer: PreTrainedTokenizerBase
) -> tuple[Any, Curve]:
    """Train one candidate, and return the model and the course of its run."""
    torch.manual_seed(settings.seed)
    wrap = {Lora: with_lora, Shadow: with_shadow}[type(method)]
    model = wrap(load_base(), method)
    with tempfile.TemporaryDirectory() as folder:
        curve = fit(
            model,
            rows,
            tokenizer.pad_token_id,
            settings=settings,
            learning_rate=method.learning_rate,
            folder=folder,
            progress=lambda done, total: None,
        )
    return model, curve


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", choices=["lora", "shadow"])
    parser.add_argument("--epochs", type=float, nargs="+", default=[2.0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, default=10**6)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--minutes", type=float, default=1000)
    parser.add_argument(
        "--part",
        type=int,
        nargs=2,
        default=[0, 1],
        metavar=("K", "N"),
        help="take every N-th candidate from the K-th",
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    train = encode_all(read_rows(str(CLINC150 / "train.jsonl"))[: args.rows], tokenizer, MAX_LENGTH)
    held = read_rows(str(CLINC150 / "validation.jsonl"))[: args.rows]
    labels = json.loads((CLINC150 / "labels.json").read_text(encoding="utf-8"))
    wanted = {"lora": Lora, "shadow": Shadow, None: object}[args.only]
    chosen = [(epochs, method) for epochs, method in candidates(args.epochs) if isinstance(method, wanted)]
    first, every = args.part
    for epochs, method in chosen[first::every][: args.limit]:
        if time.monotonic() - began > 60 * args.minutes:
            break
        model, run = trained(method, Settings(epochs=epochs, batch=args.batch), train, tokenizer=tokenizer)
        record = {
            "method": type(method).__name__,
            "epochs": epochs,
            "batch": args.batch,
            **vars(method),
            "trainable": count(model),
            "seconds": round(run.seconds, 1),
            "loss": (run.losses or [None])[-1],
            "accuracy": round(accuracy(model, tokenizer, held, labels), 4),
        }
        if isinstance(method, Shadow):
            record["detached"] = round(accuracy(model.detached(), tokenizer, held, labels), 4)
        print(json.dumps(record), flush=True)
        with open(args.output / f"search-{first}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
