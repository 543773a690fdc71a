"""Generate thousands of times with one tiny model, and print what is in memory on the way.

    python recipes/generations/memory.py [--count 10000] [--device cpu]

The ways take turns: plain greedy, sampled, with drafts (`auto` and 3 tokens a pass), with a cache of the
caller's, a batch of two rows, and a stream that breaks off, each of --tokens tokens. At ten points it prints
a JSON line: the generations so far, the process's resident memory, the GPU's if there is one, and how many
tensors and how many objects of Python are alive. The last line says by how much each grew after the first
tenth, in which libraries fill their own caches.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.generation import BaseStreamer

from shadowpeft import ShadowConfig, ShadowedModel, attach

POINTS = 10


def tiny_model(device: str) -> ShadowedModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=64, eos_token_id=None, pad_token_id=0,
        )
    )  # fmt: skip
    return attach(base.to(device).eval(), ShadowConfig(r=2, update_width=2)).eval()


class Breaks(BaseStreamer):
    """A reader that goes away at its second token."""

    def __init__(self) -> None:
        self.left = 2

    def put(self, value: Tensor) -> None:
        """Take a token."""
        self.left -= 1
        if self.left == 0:
            raise BrokenPipeError

    def end(self) -> None:
        """Be told that nothing follows."""


def ways(model: ShadowedModel, tokens: int) -> list[Callable[[], Any]]:
    """Return what is generated in turns."""
    ids = torch.tensor([[5, 6, 7, 8]], device=model.device)
    mask = torch.ones_like(ids)
    greedy: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": tokens, "do_sample": False}

    def broken_off() -> None:
        cache = model.new_cache()
        try:
            model.generate(ids, draft="shadow", past_key_values=cache, streamer=Breaks(), **greedy)
        except BrokenPipeError:
            return
        raise AssertionError("the stream did not break")

    two = {**greedy, "attention_mask": mask.repeat(2, 1)}
    return [
        lambda: model.generate(ids, **greedy),
        lambda: model.generate(ids, **{**greedy, "do_sample": True}),
        lambda: model.generate(ids, draft="shadow", **greedy),
        lambda: model.generate(ids, draft="shadow", draft_tokens=3, return_dict_in_generate=True, **greedy),
        lambda: model.generate(ids, past_key_values=model.new_cache(), **greedy),
        lambda: model.generate(ids.repeat(2, 1), **two),
        broken_off,
    ]


def resident_mb() -> float:
    """Return the memory of this process that is in RAM, where Linux tells it, else 0."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def alive(device: str) -> dict[str, float]:
    gc.collect()
    objects = gc.get_objects()
    found: dict[str, float] = {"rss_mb": round(resident_mb(), 2)}
    if device != "cpu":
        found["gpu_mb"] = round(torch.cuda.memory_allocated() / 2**20, 3)
    # By its type: to ask `isinstance` of every object wakes those that warn.
    found["tensors"] = sum(issubclass(type(thing), Tensor) for thing in objects)
    found["objects"] = len(objects)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=3, help="new tokens of each")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    turns = ways(tiny_model(args.device), args.tokens)
    began, points = time.perf_counter(), []
    for number in range(1, args.count + 1):
        turns[number % len(turns)]()
        if number % max(1, args.count // POINTS) == 0:
            seconds = round(time.perf_counter() - began, 1)
            points.append({"generations": number, "seconds": seconds, **alive(args.device)})
            print(json.dumps(points[-1]), flush=True)
    first, last = points[0], points[-1]
    grown = {name: round(last[name] - first[name], 3) for name in first if name != "seconds"}
    print(json.dumps({"grown": grown}))


if __name__ == "__main__":
    main()
