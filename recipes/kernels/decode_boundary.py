"""Time a boundary of one row or a few, as decoding has them: in one kernel, in strips, or as a batch.

    python recipes/kernels/decode_boundary.py [--rows 1,5,8] [--widths 1024,2560,4096] [--output FILE]

`one kernel` (`rows.cross`) has one program a row, which reads all weights of the boundary by itself. `strips`
(`strips.read`, `move`, `correct`) spreads the columns over the device, with `early` as it is: the second and
third kernel are launched before the one ahead of them has ended. `batch` is the three kernels of many rows
(`project`, `advance`, `inject`). Each is tried with several tiles. All take turns, each as a CUDA graph, and
each is compared with plain torch first: at most twice its own error against float32. A graph crosses so many
boundaries, one behind the other, that their weights do not fit the cache, as in a model. It writes JSON
lines; `best` marks the fastest of a shape.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from boundary import REPEATS, draw, forward, in_float32, turns, worst_error

from shadowpeft.ops import Rule, reference
from shadowpeft.ops.triton import launch, launch_few, op, parts

RULE = Rule("normed", 0.1)
ONE = [(1, cols, warps, 1) for cols in (512, 1024) for warps in (8, 16)]
STRIPS = [(1, cols, warps, 1) for cols in (64, 128, 256) for warps in (2, 4, 8)]
BATCH = [(16, cols, warps, 3) for cols in (64, 128) for warps in (2, 4)]
BATCHED = ("project", "advance", "inject")
# The default shadow's. With wider matrices `parts.tile_of` would make the tiles narrower.
R, U = 16, 10
# Bytes of weights that a graph crosses, and boundaries at most.
BEYOND_CACHE, MOST_SETS = 160 * 2**20, 400


class Way(NamedTuple):
    """A way with its tile, and what is changed to get it: tables, and functions of a module."""

    name: str
    tile: tuple[int, ...]
    kernels: tuple[str, ...]
    changed: dict[tuple[Any, str], Any]


def ways() -> Iterator[Way]:
    """Yield each way with each tile."""
    for tile in ONE:
        yield Way("one kernel", tile, ("cross",), {(launch_few, "is_captured"): lambda device: False})
    for early in (True, False):
        changed = {(launch_few, "is_captured"): lambda device: True}
        if not early:
            changed[launch_few, "begins_early"] = lambda device: False
        for tile in STRIPS:
            yield Way("strips, early" if early else "strips", tile, ("strips",), changed)
    for tile in BATCH:
        yield Way("batch", tile, BATCHED, {(op, "ROWS_ALONE"): 0, (launch_few, "ROWS_ALONE"): 0})


def graphed(sets: list[dict[str, Any]]) -> Callable[[], float]:
    """Return a function that crosses all boundaries and returns the microseconds of one."""

    def cross() -> None:
        for drawn in sets:
            forward(op.boundary, drawn, RULE)

    if sets[0]["states"][0].device.type != "cuda":

        def host_time() -> float:
            begun = time.perf_counter()
            cross()
            return (time.perf_counter() - begun) / len(sets) * 1e6

        return host_time
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cross()

    def graph_time() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(REPEATS):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / REPEATS / len(sets)

    return graph_time


def measured(rows: int, width: int, device: str) -> Iterator[dict[str, Any]]:
    """Time every way on one shape, the fastest first."""
    each = (4 * U + 2 * R) * width * torch.bfloat16.itemsize
    count = min(MOST_SETS, BEYOND_CACHE // each) if device == "cuda" else 2
    sets = [draw("normed", rows, width, R, U, torch.bfloat16, device) for _ in range(count)]
    truth = forward(reference.boundary, in_float32(sets[0]), RULE)
    allowed = 2 * worst_error(forward(reference.boundary, sets[0], RULE), truth) + 1e-5
    timers: dict[tuple[str, tuple[int, ...]], Callable[[], float]] = {}
    shape = {"rows": rows, "width": width, "r": R, "u": U, "dtype": "bfloat16"}
    for way in ways():
        with ExitStack() as stack:
            tables = dict.fromkeys(way.kernels, (parts.Tile(*way.tile),) * 3)
            stack.enter_context(mock.patch.dict(parts.TILES, tables))
            for (module, name), other in way.changed.items():
                stack.enter_context(mock.patch.object(module, name, other))
            launch.forget_plans()
            error = worst_error(forward(op.boundary, sets[0], RULE), truth)
            if not error <= allowed:
                failed = f"error {error:.1e} of {allowed:.1e}"
                yield {**shape, "way": way.name, "tile": way.tile, "failed": failed}
                continue
            # The graph is recorded here, with these tables.
            timers[way.name, way.tile] = graphed(sets)
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
