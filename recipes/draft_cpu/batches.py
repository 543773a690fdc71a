"""Measure answering rows in batches beside answering them one at a time, plainly and with drafts, on a CPU.

    python recipes/draft_cpu/batches.py [--tokens 64] [--threads 1] [--repeats 3]

The model is the embedded one with its pretrained shadow, the texts are the twelve beginnings of `measure.py`,
each continued greedily by --tokens tokens. It prints a JSON line for each way: seconds by the clock and of
the processor's time for all twelve, the medians of the repeats. The ways take turns, and the first turn only
warms up.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import BEGINNINGS, NO_END, cpu
from transformers import AutoTokenizer

from shadowpeft.demo.methods import with_shadow
from shadowpeft.demo.run import load_base
from shadowpeft.demo.settings import PRETRAINED_SHADOW
from shadowpeft.embedded import MODEL, SHADOW
from shadowpeft.evaluation.batches import padded


def ways(tokens: int) -> dict[str, Callable[[], Any]]:
    model, tokenizer = (
        with_shadow(load_base(), PRETRAINED_SHADOW, SHADOW).eval(),
        AutoTokenizer.from_pretrained(MODEL),
    )
    prompts = sorted((tokenizer(text)["input_ids"] for text in BEGINNINGS), key=len)

    def generate(batch_size: int, **drafts: Any) -> None:
        for start in range(0, len(prompts), batch_size):
            ids_BT, mask_BT = padded(prompts[start : start + batch_size], tokenizer.pad_token_id, "left")
            model.generate(
                ids_BT,
                attention_mask=mask_BT,
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=NO_END,
                **drafts,
            )

    return {
        "batches of 12": lambda: generate(12),
        "batches of 4": lambda: generate(4),
        "one at a time": lambda: generate(1),
        "one at a time, auto": lambda: generate(1, draft="shadow"),
        "one at a time, draft_tokens=4": lambda: generate(1, draft="shadow", draft_tokens=4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    turns = ways(args.tokens)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(1 + args.repeats):
        for name, run in turns.items():
            began, worked = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - began, time.process_time() - worked))
    for name, times in taken.items():
        seconds, cpu_seconds = (statistics.median(part) for part in zip(*times[1:], strict=True))
        row = {"way": name, "seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}
        print(
            json.dumps(
                {**row, "tokens": args.tokens * len(BEGINNINGS), "threads": args.threads, "device": cpu()}
            )
        )


if __name__ == "__main__":
    main()
