"""Measure training steps with float32 adapters, eager and compiled, where the command line is not installed.

python recipes/bench/equal_types.py SHAPE OUTPUT SECONDS
"""

import sys
from pathlib import Path

import torch

from shadowpeft.bench.run import bench
from shadowpeft.bench.settings import TrainBench


def main() -> None:
    shape, output, seconds = sys.argv[1:]
    methods = "base-chunked,lora,shadow"
    settings = TrainBench(
        shape=shape, methods=methods, compiled=methods, adapter_dtype="float32", rounds=3, repeats=3,
        limit_seconds=float(seconds), output=output,
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench(settings, device, f"python recipes/bench/equal_types.py {shape} {Path(output).name} {seconds}")


if __name__ == "__main__":
    main()
