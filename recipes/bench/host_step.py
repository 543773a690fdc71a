"""Measure what an eager step of decoding takes the host, base and attached, in one version of ours or two.

    python recipes/bench/host_step.py [--beside OTHER/src] [--rounds 60] [--blocks 28] [--width 64]

It prints a JSON line for each way: microseconds of a step that reads one token behind eight others, by the
time of the thread (the least of five steps of a turn; median and quartiles of the turns). With `--beside`
another checkout's code takes turns with this one in a process of its own, and a line has the ratio of this
code's time to the other's (of turns side by side).

The model has many narrow blocks, random weights and float32, on one thread of the CPU, so that the host's
work around the arithmetic is most of it. Ways: `base`, the bare model; `attached`, boundaries in plain torch;
`crossed`, attached with boundaries that compute nothing: what is around them, which is the same on a GPU;
`launched`, attached with fused boundaries up to the launch of a compiled kernel, in whose place a function
does nothing; `shadow`, the shadow alone. The others follow from these, turn by turn: `boundary` and
`crossing` are what a block takes in `attached` and in `crossed` beyond `base` and `shadow`, `launch` is what
it takes in `launched` beyond `crossed`, and there are two ratios to `base`.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from shadowpeft import attach
from shadowpeft.arch import versions
from shadowpeft.demo.timing import quantile
from shadowpeft.ops.triton import rows

WAYS = ("base", "attached", "crossed", "launched", "shadow")
TOKENS, STEPS = 8, 5


def model_of(blocks: int, width: int) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=256, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=blocks,
        num_attention_heads=4, num_key_value_heads=2, head_dim=max(2, width // 4),
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


class Nothing:
    """Stands in for a kernel, and for what Triton compiles of it."""

    def __init__(self, kernel: Any) -> None:
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., "Nothing"]:
        return lambda *arguments, **options: self


def steps_of(blocks: int, width: int) -> dict[str, Callable[[], None]]:
    """Return for each way a step that leaves its cache as it was."""
    base = model_of(blocks, width)
    models = {"base": base}
    rows.cross = Nothing(rows.cross)
    for way in ("attached", "crossed", "launched"):
        impl = "triton" if way == "launched" else "reference"
        models[way] = attach(model_of(blocks, width), impl=impl).eval()
    models["crossed"]._boundary = lambda h_BTD, s_BTD, crossing: (h_BTD, s_BTD)
    ids_1T = torch.arange(TOKENS)[None]
    last = {
        "attention_mask": torch.ones(1, TOKENS + 1, dtype=torch.long),
        "position_ids": torch.tensor([[TOKENS]]),
    }

    def step_of(way: str) -> Callable[[], None]:
        model = models["attached" if way == "shadow" else way]
        cache: Any = DynamicCache(config=model.config) if way == "base" else model.new_cache()
        if way == "shadow":
            model, cache = model.adapter.shadow, cache.shadow
            model(ids_1T, None, None, None, cache)
            return lambda: (model(ids_1T[:, :1], None, **last, shadow_cache=cache), cache.crop(-1))[1]
        model(ids_1T, **{versions.CACHE: cache})

        def step() -> None:
            model(ids_1T[:, :1], **last, **{versions.CACHE: cache}, use_cache=True, logits_to_keep=1)
            cache.crop(-1)

        return step

    return {way: step_of(way) for way in WAYS}


@torch.inference_mode()
def serve(blocks: int, width: int) -> None:
    """Take a turn for each line that comes, and answer with the microseconds of each way."""
    torch.set_num_threads(1)
    steps = steps_of(blocks, width)
    for _ in itertools.chain([None], sys.stdin):
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(STEPS):
            for way, step in steps.items():
                began = time.thread_time()
                step()
                taken[way].append(1e6 * (time.thread_time() - began))
        print(json.dumps({way: min(found) for way, found in taken.items()}), flush=True)


class Server:
    """The code of a folder, in a process of its own."""

    def __init__(self, source: Path, options: argparse.Namespace) -> None:
        words = ["--serve", f"--blocks={options.blocks}", f"--width={options.width}"]
        # Interpreted, Triton takes tensors on the CPU.
        environment = {**os.environ, "PYTHONPATH": str(source), "TRITON_INTERPRET": "1"}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words], env=environment, encoding="utf-8", **pipes
        )
        self._answer()

    def turn(self) -> dict[str, float]:
        """Return the microseconds of each way."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def with_differences(turns: list[dict[str, float]], blocks: int) -> list[dict[str, float]]:
    """Add what follows from the times of a turn."""
    for turn in turns:
        beside = turn["base"] + turn["shadow"]
        turn["boundary"] = (turn["attached"] - beside) / blocks
        turn["crossing"] = (turn["crossed"] - beside) / blocks
        turn["launch"] = (turn["launched"] - turn["crossed"]) / blocks
        for way in ("attached", "launched"):
            turn[f"{way} / base"] = turn[way] / turn["base"]
    return turns


def spread(values: list[float], digits: int) -> tuple[float, list[float]]:
    """Return median and quartiles."""
    quartiles = [round(quantile(values, share), digits) for share in (0.25, 0.75)]
    return round(statistics.median(values), digits), quartiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--beside", type=Path, help="the folder src of another checkout")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--blocks", type=int, default=28)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.blocks, options.width)
    servers = {"this": Server(Path(__file__).parents[2] / "src", options)}
    if options.beside is not None:
        servers["beside"] = Server(options.beside, options)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for number in range(options.rounds):
        # Who is first changes from round to round.
        for name in list(servers)[:: -1 if number % 2 else 1]:
            turns[name].append(servers[name].turn())
    for server in servers.values():
        server.end()
    turns = {name: with_differences(found, options.blocks) for name, found in turns.items()}
    made_with = {"blocks": options.blocks, "width": options.width, "rounds": options.rounds,
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__}  # fmt: skip
    for way in turns["this"][0]:
        row: dict[str, Any] = {"way": way}
        for name, found in turns.items():
            digits = 3 if "/" in way else 1
            row[name], row[f"{name}_quartiles"] = spread([turn[way] for turn in found], digits)
        if "beside" in turns:
            pairs = zip(turns["this"], turns["beside"], strict=True)
            row["ratio"], row["ratio_quartiles"] = spread([new[way] / old[way] for new, old in pairs], 3)
        print(json.dumps({**row, **made_with}), flush=True)


if __name__ == "__main__":
    main()
