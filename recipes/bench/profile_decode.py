"""Print the kernels that a token spends its time in, in a CUDA graph, as JSON lines.

    python recipes/bench/profile_decode.py [--shape 0.6b] [--context 256] [--steps 20]
        [--methods base,shadow:triton]

Each line is a method with the microseconds a token of each kernel. `span_us` is a token from its first kernel
to its last, `busy_us` the sum of its kernels: the difference is the time that the GPU waited between kernels.
`ms` is a token without the profiler.
"""

import argparse
import json
import os
from typing import Any

import torch
from kernel_times import kernel_times
from torch.profiler import ProfilerActivity, profile

from shadowpeft.bench.decode.graph import WARM, Step, captured, on_side_stream
from shadowpeft.bench.decode.methods import Loader, Writer
from shadowpeft.bench.decode.prompts import random_prompt
from shadowpeft.bench.decode.specs import specs_of
from shadowpeft.bench.decode.subject import Subject
from shadowpeft.bench.decode.ways import timed
from shadowpeft.bench.decode.weights import SharedWeights

TIMED = 100


def profiled(writer: Writer, ids_BT: torch.Tensor, steps: int) -> dict[str, Any]:
    """Capture a step behind the prompt, time it and profile it."""
    step = Step(writer, ids_BT, ids_BT.shape[1] + WARM + TIMED + steps + 8)
    with on_side_stream(ids_BT.device):
        for _ in range(WARM):
            step()
    replay = captured(step)
    replay()
    spent_ms, _ = timed(lambda: [replay() for _ in range(TIMED)], ids_BT.device)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            replay()
        torch.cuda.synchronize()
    return {"ms": round(spent_ms / TIMED, 4), **kernel_times(found, steps)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="0.6b")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", default="base,shadow:triton")
    options = parser.parse_args()
    device, subject = torch.device("cuda"), Subject(shape=options.shape)
    base = subject.base(device, torch.bfloat16, seed=0)
    loader = Loader(SharedWeights(base), subject, variant=None, seed=0)
    prompt = random_prompt(
        base.config.vocab_size, 1, options.context, new_tokens=TIMED, seed=0, device=device
    )
    for spec in specs_of(options.methods, "4"):
        row = {
            "shape": options.shape, "context": options.context, "method": spec.name,
            "device": torch.cuda.get_device_name(), "torch": torch.__version__,
            "commit": os.environ.get("SHADOWPEFT_COMMIT"),
        }  # fmt: skip
        print(json.dumps(row | profiled(loader.load(spec), prompt.ids_BT, options.steps)), flush=True)


if __name__ == "__main__":
    main()
