"""Measure ways to compute the training loss of two hidden states through one frozen head.

    python recipes/linear_ce/measure.py [--ways plain,swept,swept-compiled] [--tokens 4096] [--width 4096]
                                        [--vocab 151936]

It writes time, memory and error as JSON lines.

Ways: `plain` holds the logits, `swept` is `losses.frozen_head_losses`, `swept-compiled` the same under
torch.compile, `liger` and `liger-<n>` are liger-kernel's (which must be installed; n is its
`chunk_mem_const`, 1 by default). All in bf16, forward and backward, in an order that repeats. The errors are
those of the loss and both gradients of the first tokens against float32; beyond 1.5 times those of the plain
way (the swept one rounds its gradients once more, which is a factor of 1.4 at the most) nothing is reported.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadowpeft.losses.frozen_head import Head
from shadowpeft.losses.normalised import frozen_head_losses, next_token_loss

WEIGHT, CHECKED = 0.5, 256  # lambda of eq. 9; tokens that are compared with float32
Loss = Callable[[Tensor, Tensor, nn.Linear, Tensor], Tensor]


def plain(h: Tensor, s: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    return next_token_loss(head(h), labels, None, None) + WEIGHT * next_token_loss(
        head(s), labels, None, None
    )


def swept(h: Tensor, s: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    own, shadow = frozen_head_losses((h, s), Head(head.weight), labels, None, None)
    return own + WEIGHT * shadow


def liger(h: Tensor, s: Tensor, head: nn.Linear, labels: Tensor, chunk_mem_const: int = 1) -> Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    targets = F.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
    # Its autograd function takes no keywords.
    options = {
        "bias": None,
        "class weights": None,
        "ignored index": -100,
        "z-loss": 0.0,
        "smoothing": 0.0,
        "reduction": "mean",
        "soft cap": None,
        "z-loss wanted": False,
        "accumulator": None,
        "token scaling": False,
        "accuracy wanted": False,
        "tokens wanted": False,
        "implementation": None,
        "its mode": None,
        "chunk_mem_const": chunk_mem_const,
    }
    rest = (head.weight, targets, *options.values())
    own, shadow = (
        LigerFusedLinearCrossEntropyFunction.apply(state.flatten(0, 1), *rest)[0] for state in (h, s)
    )
    return own + WEIGHT * shadow


def way(name: str) -> Loss:
    fixed: dict[str, Loss] = {"plain": plain, "swept": swept, "liger": liger}
    if name in fixed:
        return fixed[name]
    if name == "swept-compiled":
        return torch.compile(swept, fullgraph=True)
    if name.startswith("liger-"):
        return partial(liger, chunk_mem_const=int(name.removeprefix("liger-")))
    raise SystemExit(f"unknown way {name!r}; there are plain, swept, swept-compiled, liger and liger-<n>")


def step(
    loss_of: Loss, h: Tensor, s: Tensor, head: nn.Linear, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one forward and backward pass; return the loss and both gradients."""
    h, s = h.detach().requires_grad_(), s.detach().requires_grad_()
    loss = loss_of(h, s, head, labels)
    loss.backward()
    assert h.grad is not None
    assert s.grad is not None
    return loss.detach(), h.grad, s.grad


def errors(loss_of: Loss, truth: tuple, h: Tensor, s: Tensor, head: nn.Linear, labels: Tensor) -> list[float]:
    """Return the relative errors of the loss and of both gradients."""
    found = step(loss_of, h, s, head, labels)
    return [
        ((got.float() - exact).norm() / exact.norm()).item() for got, exact in zip(found, truth, strict=True)
    ]


def timed(loss_of: Loss, device: torch.device, *given: object) -> tuple[float, float | None]:
    """Return milliseconds and, on a GPU, the peak of memory over what was held before, in 10^9 bytes."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before, began = torch.cuda.memory_allocated() if cuda else 0, time.perf_counter()
    step(loss_of, *given)  # type: ignore[arg-type]
    if cuda:
        torch.cuda.synchronize()
    ms = 1000 * (time.perf_counter() - began)
    return ms, (torch.cuda.max_memory_allocated() - before) / 1e9 if cuda else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", default="plain,swept,swept-compiled")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--labelled", type=float, default=1.0, help="share of the tokens that have a label")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    head = nn.Linear(args.width, args.vocab, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(
        False
    )
    head.weight.normal_(std=2 * args.width**-0.5)
    h, s = (torch.randn(1, args.tokens, args.width, device=device, dtype=torch.bfloat16) for _ in range(2))
    labels = torch.randint(args.vocab, (1, args.tokens), device=device)
    labels[torch.rand(labels.shape, device=device) >= args.labelled] = -100
    ways = {name: way(name) for name in args.ways.split(",")}

    first = (h[:, :CHECKED], s[:, :CHECKED])
    wide = nn.Linear(args.width, args.vocab, bias=False, device="meta").requires_grad_(False)
    wide.weight = nn.Parameter(head.weight.float(), requires_grad=False)
    truth = step(plain, *(state.float() for state in first), wide, labels[:, :CHECKED])
    del wide
    bounds = [1.5 * error + 1e-6 for error in errors(plain, truth, *first, head, labels[:, :CHECKED])]
    found = {
        name: errors(loss_of, truth, *first, head, labels[:, :CHECKED]) for name, loss_of in ways.items()
    }
    wrong = [
        name
        for name, each in found.items()
        if not all(e <= bound for e, bound in zip(each, bounds, strict=True))
    ]
    if wrong:
        reasons = ", ".join(f"{name} {found[name]} beyond {bounds}" for name in wrong)
        sys.exit(f"numerically wrong, nothing reported: {reasons}")

    given = (h, s, head, labels)
    for loss_of in ways.values():
        timed(loss_of, device, *given)  # compiled, kernels chosen, memory reserved
    taken: dict[str, list[tuple[float, float | None]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, loss_of in ways.items():
            taken[name].append(timed(loss_of, device, *given))
    shape = {
        "tokens": args.tokens,
        "width": args.width,
        "vocab": args.vocab,
        "labelled": args.labelled,
        "rounds": args.rounds,
    }
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    )
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name, each in taken.items():
        low, middle, high = statistics.quantiles([ms for ms, _ in each], n=4)
        peak = max((gb for _, gb in each if gb is not None), default=None)
        row = {
            "way": name,
            "ms": round(middle, 2),
            "ms_quartiles": [round(low, 2), round(high, 2)],
            "peak_gb": peak and round(peak, 3),
        }
        row["errors"] = [float(f"{error:.3g}") for error in found[name]]
        print(json.dumps({**row, **shape, "device": where, "versions": versions}))


if __name__ == "__main__":
    main()
