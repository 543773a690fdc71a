"""Time one boundary, forward and with its backward pass, in each implementation; and try tiles for the
kernels.

    python recipes/kernels/boundary.py [--variants normed,paper] [--impls reference,compile,triton]
                                       [--rows 4096] [--width 4096] [--sweep project,advance,...]
                                       [--profile] [--output FILE]

It writes JSON lines. Implementations take turns (A B C A B C). On a GPU each is a CUDA graph for each of
several input sets, which together do not fit the cache, so neither launches nor the cache count. `gb_per_s`
counts the fewest bytes there are: h, s, h', s' once forward, and h, s and the four gradients once backward.
`issue_us` is the time that the host takes to launch it without a graph. An implementation whose error is more
than twice the reference's own is not timed.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from shadowpeft.ops import Crossing, InjectionWeights, Rule, UpdateWeights, choice, reference

SETS, TURNS, REPEATS = 4, 7, 5  # input sets; turns of each implementation; replays of each set in a turn
# Rows, columns, warps, stages, most registers.
STRIPS = [
    (32, 128, 8, 2, 128), (32, 128, 8, 3), (32, 128, 8, 3, 128), (16, 128, 4, 2, 168), (16, 64, 4, 2),
    (32, 64, 4, 2), (32, 64, 4, 2, 128), (64, 64, 8, 2, 128), (64, 64, 4, 2), (32, 64, 4, 3, 168),
    (64, 128, 8, 2), (32, 128, 4, 2), (32, 256, 8, 2),
]  # fmt: skip
CANDIDATES = {
    "project": [
        (64, 128, 8, 3),
        (64, 64, 4, 3),
        (32, 128, 4, 3),
        (64, 128, 8, 4),
        (64, 64, 4, 4),
        (128, 64, 8, 3),
    ],
    "advance": [
        (32, 64, 4, 3),
        (32, 128, 8, 3),
        (64, 64, 8, 3),
        (64, 64, 4, 3),
        (16, 128, 4, 3),
        (32, 64, 4, 2),
    ],
    "inject": [
        (32, 128, 4, 3),
        (64, 128, 8, 3),
        (64, 64, 4, 3),
        (32, 256, 8, 3),
        (32, 128, 4, 2),
        (16, 256, 4, 3),
    ],
    "pull": [(64, 128, 4, 3), (64, 128, 8, 3), (32, 128, 4, 3), (64, 64, 4, 4), (128, 128, 8, 3)],
    "retreat": STRIPS,
    "finish": STRIPS,
    "settle": [(16, 16, 4, 1), (32, 16, 4, 1), (16, 16, 2, 1), (16, 16, 8, 1)],
}


def draw(
    variant: str, rows: int, width: int, r: int, u: int, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """Draw a boundary and the gradients of its results."""

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, device=device) * shape[-1] ** -0.5).to(dtype).requires_grad_()

    bias = variant == "peft"
    ones = torch.ones(width, device=device, dtype=dtype)
    zeros = torch.zeros(width, device=device, dtype=dtype)
    norm = LlamaRMSNorm(width).to(device, dtype).requires_grad_(False)
    sizes = ((u, width), (u,), (width, u), (width,)) * 2
    weights = [normal(*size) if len(size) == 2 or bias else None for size in sizes]
    last: dict[str, Any] = {
        "normed": {"norm": None, "activation": "silu", "gate_shift": 3.0},
        "paper": {"norm": (ones.requires_grad_(), zeros.requires_grad_(), 1e-5), "activation": "silu"},
        "peft": {"norm": None, "activation": "gelu"},
    }[variant]
    update = UpdateWeights(*weights, **last)
    states = [torch.randn(1, rows, width, device=device).to(dtype) for _ in range(4)]
    return {
        "states": states,
        "update": update,
        "inject": InjectionWeights(normal(r, width), normal(width, r)),
        "norm": norm,
    }


def both(boundary: choice.Boundary, drawn: dict[str, Any], rule: Rule) -> list[Tensor]:
    """Cross the boundary and go back; return results and gradients."""
    h, s, dh, ds = drawn["states"]
    h, s = h.detach().requires_grad_(), s.detach().requires_grad_()
    update, inject = drawn["update"], drawn["inject"]
    outputs = boundary(h, s, Crossing(update, inject, rule, drawn["norm"]))
    flat = [*update[:8], *(update.norm[:2] if update.norm else ()), *inject]
    inputs = [h, s, *(weight for weight in flat if weight is not None)]
    return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, inputs, [dh, ds])]


@torch.no_grad()
def forward(boundary: choice.Boundary, drawn: dict[str, Any], rule: Rule) -> list[Tensor]:
    """Cross the boundary without keeping anything."""
    h, s, *_ = drawn["states"]
    return list(boundary(h, s, Crossing(drawn["update"], drawn["inject"], rule, drawn["norm"])))


def in_float32(drawn: dict[str, Any]) -> dict[str, Any]:
    """Return the same boundary in float32."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().float().requires_grad_(value.requires_grad)
        return tuple(map(cast, value)) if isinstance(value, tuple) else value

    norm = LlamaRMSNorm(drawn["norm"].weight.numel()).to(drawn["norm"].weight.device)
    update, inject = (type(group)(*map(cast, group)) for group in (drawn["update"], drawn["inject"]))
    return {
        "states": [cast(state) for state in drawn["states"]],
        "update": update,
        "inject": inject,
        "norm": norm,
    }


def worst_error(found: list[Tensor], truth: list[Tensor]) -> float:
    """Return the largest ||a - b|| / ||b||; infinite if anything is not finite."""
    pairs = list(zip(found, truth, strict=True))
    if not all(a.isfinite().all() for a, _ in pairs):
        return float("inf")
    return max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)


def ready(run: Callable[[dict[str, Any]], Any], sets: list[dict[str, Any]]) -> Callable[[], float]:
    """Return a function that runs every input set and returns the mean time of one in microseconds."""
    if not torch.cuda.is_available():

        def host_time() -> float:
            start = time.perf_counter()
            for drawn in sets:
                run(drawn)
            return (time.perf_counter() - start) / len(sets) * 1e6

        return host_time
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for drawn in (sets[0], *sets):
            run(drawn)
    torch.cuda.current_stream().wait_stream(side)
    graphs = []
    for drawn in sets:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(drawn)
        graphs.append(graph)

    def graph_time() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(REPEATS):
            for graph in graphs:
                graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / REPEATS / len(graphs)

    return graph_time


def issue_time(run: Callable[[dict[str, Any]], Any], drawn: dict[str, Any]) -> float:
    """Return the host's time to launch it once, in microseconds, without waiting for the device."""
    run(drawn)
    sync()
    start = time.perf_counter()
    for _ in range(10):
        run(drawn)
    spent = time.perf_counter() - start
    sync()
    return spent / 10 * 1e6


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def turns(timers: dict[str, Callable[[], float]]) -> dict[str, tuple[float, float]]:
    """Let the timers take turns; return median and spread (half the range between the quartiles)."""
    found: dict[str, list[float]] = {name: [] for name in timers}
    for timer in timers.values():
        timer()
    for _ in range(TURNS):
        for name, timer in timers.items():
            found[name].append(timer())
    return {
        name: (statistics.median(times), (sorted(times)[-2] - sorted(times)[1]) / 2)
        for name, times in found.items()
    }


def compared(args: argparse.Namespace, variant: str, rows: int, width: int) -> Iterator[dict[str, Any]]:
    """Time every implementation on one shape."""
    device, dtype = ("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, args.dtype)
    rule = Rule(variant, 0.1, args.dropout)
    sets = [
        draw(variant, rows, width, args.r, args.update_width, dtype, device)
        for _ in range(SETS if rows * width > 2**20 else 2)
    ]
    boundaries = {impl: choice.boundary_of(impl) for impl in args.impls.split(",")}
    clean = rule._replace(dropout=0.0)
    truth = both(reference.boundary, in_float32(sets[0]), clean)
    allowed = 2 * worst_error(both(reference.boundary, sets[0], clean), truth) + 1e-5
    for impl in list(boundaries):
        error = worst_error(both(boundaries[impl], sets[0], clean), truth)
        if not error <= allowed:
            print(
                f"{impl} is wrong for {variant}: error {error:.1e}, allowed {allowed:.1e}; it is not timed",
                file=sys.stderr,
            )
            del boundaries[impl]
    for name, passes, moved in (("forward", forward, 4), ("forward and backward", both, 10)):
        runs = {
            impl: lambda drawn, b=boundary, p=passes: p(b, drawn, rule)
            for impl, boundary in boundaries.items()
        }
        times = turns({impl: ready(run, sets) for impl, run in runs.items()})
        for impl, (us, spread) in times.items():
            sizes = {
                "rows": rows,
                "width": width,
                "r": args.r,
                "u": args.update_width,
                "dtype": args.dtype,
                "dropout": args.dropout,
            }
            figures = {
                "us": us,
                "us_spread": spread,
                "gb_per_s": moved * rows * width * dtype.itemsize / us / 1e3,
            }
            figures["issue_us"] = issue_time(runs[impl], sets[0])
            rounded = {figure: round(value, 1) for figure, value in figures.items()}
            yield {"what": name, "variant": variant, "impl": impl, **sizes, **rounded}


def swept(args: argparse.Namespace, kernel: str) -> Iterator[dict[str, Any]]:
    """Time the whole boundary with each tile of one kernel in turn, and leave the best in place."""
    from shadowpeft.ops.triton import launch, op, parts

    sets = [
        draw("normed", args.rows, args.width, args.r, args.update_width, torch.bfloat16, "cuda")
        for _ in range(SETS)
    ]
    passes = forward if kernel in ("project", "advance", "inject") else both
    usual, timers = parts.TILES[kernel], {}
    for tile in CANDIDATES[kernel]:
        parts.TILES[kernel] = (parts.Tile(*tile), *usual[1:])
        launch.forget_plans()
        try:
            timers[str(tile)] = ready(lambda drawn: passes(op.boundary, drawn, Rule("normed", 0.1)), sets)
        except Exception as problem:  # such as a tile that does not fit shared memory
            yield {
                "what": "tile",
                "kernel": kernel,
                "tile": tile,
                "failed": f"{type(problem).__name__}: {problem}"[:200],
            }
    times = turns(timers)
    best = min(times, key=lambda tile: times[tile][0])
    parts.TILES[kernel] = (parts.Tile(*json.loads(best.replace("(", "[").replace(")", "]"))), *usual[1:])
    launch.forget_plans()
    for tile, (us, spread) in sorted(times.items(), key=lambda entry: entry[1]):
        yield {
            "what": "tile",
            "kernel": kernel,
            "tile": tile,
            "us": round(us, 1),
            "us_spread": round(spread, 1),
            "best": tile == best,
        }


def profiled(args: argparse.Namespace, variant: str) -> Iterator[dict[str, Any]]:
    """Measure the mean time of each kernel of the Triton implementation."""
    from torch.profiler import ProfilerActivity, profile

    from shadowpeft.ops.triton import op

    sets = [
        draw(variant, args.rows, args.width, args.r, args.update_width, torch.bfloat16, "cuda")
        for _ in range(SETS)
    ]
    both(op.boundary, sets[0], Rule(variant, 0.1))
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for drawn in sets * 3:
            both(op.boundary, drawn, Rule(variant, 0.1))
        sync()
    for event in sorted(seen.key_averages(), key=lambda event: -event.device_time_total):
        each = event.device_time_total / (3 * SETS)
        if each > 0.5:
            yield {"what": "kernel", "variant": variant, "kernel": event.key[:60], "us": round(each, 1)}


def copy_bandwidth() -> dict[str, Any]:
    """Measure a large copy on the device, in GB/s read and written together: the most that can be reached."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    us = turns({"copy": ready(lambda drawn: target.copy_(source), [{}])})["copy"][0]
    return {"what": "copy", "gb_per_s": round(2 * source.numel() * 4 / us / 1e3, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", default="normed")
    parser.add_argument("--impls", default="reference,compile,triton")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--update-width", type=int, default=10)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--decode", action="store_true", help="time one row of width 1024, too")
    parser.add_argument("--sweep", default="", help="kernels to try tiles for, or all")
    parser.add_argument("--profile", action="store_true", help="time each Triton kernel, too")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    stamp = {"device": device, "torch": torch.__version__, "run": time.strftime("%Y-%m-%dT%H:%M:%S")}
    kernels = list(CANDIDATES) if args.sweep == "all" else [name for name in args.sweep.split(",") if name]
    shapes = [(args.rows, args.width), (1, 1024)] if args.decode else [(args.rows, args.width)]
    variants = args.variants.split(",")
    parts = [swept(args, kernel) for kernel in kernels]
    parts += [compared(args, variant, rows, width) for rows, width in shapes for variant in variants]
    parts += [profiled(args, variant) for variant in variants if args.profile]
    first = [copy_bandwidth()] if torch.cuda.is_available() else []
    with (
        args.output.open("a", encoding="utf-8")
        if args.output
        else open(os.devnull, "w", encoding="utf-8") as file
    ):
        for row in itertools.chain(first, *parts):
            print(json.dumps(row), flush=True)
            file.write(json.dumps({**row, **stamp}) + "\n")


if __name__ == "__main__":
    main()
