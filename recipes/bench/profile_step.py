"""Print the kernels that a training step spends its time in, as JSON lines.

    python recipes/bench/profile_step.py [--shape 8b] [--batch 4] [--tokens 1024] [--steps 3]
        [--methods base-chunked,shadow] [--compiled base-chunked,shadow] [--adapter-dtype base] [--output
        FILE]

Each line is a method, eager or compiled, with the microseconds per step of each kernel. `span_us` is a step
from its first kernel to its last, `busy_us` the sum of its kernels: the difference is the time that the GPU
waited.
"""

import argparse
import gc
import json
import os
import sys
from typing import Any

import torch
from kernel_times import kernel_times
from torch.profiler import ProfilerActivity, profile

from shadowpeft.bench import measure, methods, shapes
from shadowpeft.bench.settings import TrainBench
from shadowpeft.bench.snapshot import BaseSnapshot
from shadowpeft.bench.specs import Spec


def kernels_of(
    runner: measure.Runner, snapshot: BaseSnapshot, ids_BT: torch.Tensor, settings: TrainBench, steps: int
) -> dict[str, Any]:
    """Profile warm steps."""
    settled = TrainBench(**{**vars(settings), "warmup": 2, "repeats": 1})
    measure.train(runner, snapshot.base, ids_BT, settled)
    timed = TrainBench(**{**vars(settings), "warmup": 0, "repeats": steps})
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        turn = measure.train(runner, snapshot.base, ids_BT, timed)
    return {"ms": turn.ms, **kernel_times(found, steps)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--methods", default="base-chunked,shadow")
    parser.add_argument("--compiled", default="base-chunked,shadow")
    parser.add_argument("--adapter-dtype", default="base")
    parser.add_argument("--output")
    options = parser.parse_args()
    settings = TrainBench(
        shape=options.shape, batch=options.batch, tokens=options.tokens, methods=options.methods,
        compiled=options.compiled, adapter_dtype=options.adapter_dtype, device="cuda",
    )  # fmt: skip
    device = torch.device("cuda")
    base = shapes.build(options.shape, device, settings.base_dtype(device), seed=settings.seed)
    snapshot = BaseSnapshot(base)
    ids_BT = torch.randint(3, base.config.vocab_size, (options.batch, options.tokens), device=device)
    facts = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "commit": os.environ.get("SHADOWPEFT_COMMIT"),
    }
    for spec in settings.specs():
        row = {
            "shape": options.shape,
            "batch": options.batch,
            "tokens": options.tokens,
            "method": spec.name,
            "trained_in": spec.trained_in,
            **facts,
        }
        row |= profiled(spec, snapshot, ids_BT, settings=settings, steps=options.steps)
        line = json.dumps(row)
        print(
            f"{spec.name}: {row['busy_us'] / 1000:.1f} ms busy of {row['span_us'] / 1000:.1f}",
            file=sys.stderr,
            flush=True,
        )
        print(line, flush=True)
        if options.output:
            with open(options.output, "a", encoding="utf-8") as file:
                print(line, file=file)


def profiled(
    spec: Spec, snapshot: BaseSnapshot, ids_BT: torch.Tensor, settings: TrainBench, steps: int
) -> dict[str, Any]:
    """Put a method on the base, profile it and take it off."""
    torch.manual_seed(settings.seed)
    applied = methods.apply(spec, snapshot.base, settings)
    runner = measure.Runner(applied, spec.compiled)
    measure.prepare(applied, settings)
    try:
        return kernels_of(runner, snapshot, ids_BT, settings=settings, steps=steps)
    finally:
        del runner, applied
        snapshot.restore()
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
