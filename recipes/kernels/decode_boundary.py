"""Time a boundary of one row or a few, as decoding has them: in one kernel, or in three.

    python recipes/kernels/decode_boundary.py [--rows 1,5,8] [--widths 1024,2560,4096] [--output FILE]

One kernel (`rows.cross`) has one program a row, which reads all weights of the boundary by itself; the
three (`project`, `advance`, `inject`) spread the columns over the device and are launched three times. Each
is tried with several tiles. All take turns, each as a CUDA graph, and each is compared with plain torch
first: at most twice its own error against float32. It writes JSON lines; `best` marks the fastest of a shape.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from boundary import draw, forward, in_float32, ready, turns, worst_error

from shadowpeft.ops import Rule, reference
from shadowpeft.ops.triton import launch, op, parts

RULE = Rule("normed", 0.1)
ONE = [(1, cols, warps, 1) for cols in (256, 512, 1024, 2048) for warps in (8, 16, 32)]
THREE = [(16, cols, warps, 3) for cols in (64, 128, 256) for warps in (2, 4)]
# The default shadow's. With wider matrices `parts.tile_of` would make the tiles narrower.
R, U = 16, 10


def ways() -> Iterator[tuple[str, tuple[int, ...], dict[str, Any]]]:
    """Yield the name, the tile and the changed tables of each way."""
    for tile in ONE:
        yield "one kernel", tile, {"cross": (parts.Tile(*tile),) * 3}
    for tile in THREE:
        yield "three kernels", tile, dict.fromkeys(("project", "advance", "inject"), (parts.Tile(*tile),) * 3)


def measured(rows: int, width: int, device: str) -> Iterator[dict[str, Any]]:
    """Time every way on one shape, the fastest first."""
    sets = [draw("normed", rows, width, R, U, torch.bfloat16, device) for _ in range(4)]
    truth = forward(reference.boundary, in_float32(sets[0]), RULE)
    allowed = 2 * worst_error(forward(reference.boundary, sets[0], RULE), truth) + 1e-5
    timers: dict[tuple[str, tuple[int, ...]], Callable[[], float]] = {}
    shape = {"rows": rows, "width": width, "r": R, "u": U, "dtype": "bfloat16"}
    for name, tile, tables in ways():
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(parts.TILES, tables))
            stack.enter_context(mock.patch.object(op, "ROWS_ALONE", 64 if name == "one kernel" else 0))
            launch.forget_plans()
            error = worst_error(forward(op.boundary, sets[0], RULE), truth)
            if not error <= allowed:
                yield {**shape, "way": name, "tile": tile, "failed": f"error {error:.1e} of {allowed:.1e}"}
                continue
            # The graph is recorded here, with these tables.
            timers[name, tile] = ready(lambda drawn: forward(op.boundary, drawn, RULE), sets)
    launch.forget_plans()
    times = turns(timers)
    for place, ((name, tile), (us, spread)) in enumerate(sorted(times.items(), key=lambda each: each[1])):
        times_of = {"us": round(us, 2), "us_spread": round(spread, 2), "best": place == 0}
        yield {**shape, "way": name, "tile": tile, **times_of}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1,5,8")
    parser.add_argument("--widths", default="1024,2560,4096")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else device
    for width in map(int, args.widths.split(",")):
        for rows in map(int, args.rows.split(",")):
            for row in measured(rows, width, device):
                line = json.dumps({**row, "device": name, "torch": torch.__version__})
                print(line, flush=True)
                if args.output is not None:
                    with args.output.open("a", encoding="utf-8") as file:
                        file.write(f"{line}\n")


if __name__ == "__main__":
    main()
