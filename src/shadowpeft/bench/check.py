"""The numerical test before any time is taken: every implementation against the reference on the base that will be timed."""

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft import ShadowedModel
from shadowpeft.bench.bare import Bare
from shadowpeft.bench.measure import Call
from shadowpeft.bench.methods import Fitted, config_of, ours, precision
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.errors import UserError
from shadowpeft.reporting.devices import synchronise

ROWS, TOKENS = 2, 128
# A result may be this many times as far from the truth as the reference in the same type is, and a rounding step more.
SLACK = 3.0


class Red(UserError):
    """The numerical test failed: the run reports nothing."""


def check(bare: Bare, impls: Iterable[str], ids_BT: Tensor, settings: Bench) -> float:
    """Compare loss and gradients of each implementation with the truth: the reference on the same weights at higher precision.

    The base is widened in place for the truth and narrowed again, which gives back its very weights and needs no second base.

    Args:
        bare: the base.
        impls: the implementations that will be timed.
        ids_BT: token ids; the first rows and tokens are used.
        settings: give the variant.

    Returns:
        How far the reference's worst gradient is from the truth, relative to its size.

    Raises:
        Red: an implementation is further from the truth than it may be; the message names it.
    """
    base, ids_BT = bare.base, ids_BT[:ROWS, :TOKENS]
    narrow, wide = base.dtype, torch.float64 if base.dtype == torch.float32 else torch.float32
    torch.manual_seed(settings.seed)
    with torch.device(base.device):
        model = ours(base, settings.variant, "reference", dropout=0.0).train()
        _jolt(model)
    try:
        found = {name: _by(model, name, ids_BT) for name in dict.fromkeys(("reference", *impls))}
        _cast(model, wide)
        truth = _by(model, "reference", ids_BT)
    finally:
        _cast(model, narrow)
        bare.take_off()
    noise = {name: error(found["reference"][name], truth[name]) for name in truth}
    for impl, results in found.items():
        for name in truth:
            refuse_beyond(
                SLACK * noise[name], results[name], truth[name], f"{name} of the implementation {impl!r}"
            )
    return max(noise.values())


def check_compiled(
    call: Call, base: PreTrainedModel, ids_BT: Tensor, settings: Bench, noise: float | None
) -> float:
    """Let a compiled method compile, and compare its first step with the same step uncompiled where that is to be.

    Gradients are compared where there is no dropout: its random numbers are not the same.

    Args:
        call: the method; nothing of it has run.
        base: the base.
        ids_BT: token ids.
        settings: the measurement.
        noise: what `check` returned; `None` not to compare.

    Returns:
        Seconds of the compiled step, compiling included.

    Raises:
        Red: they differ by more than the test before allows for.
    """
    began = time.perf_counter()
    compiled = _first(call, call.fitted, base, ids_BT, settings)
    synchronise(base.device)
    seconds = time.perf_counter() - began
    if noise is not None:
        eager = _first(call.fitted, call.fitted, base, ids_BT, settings)
        dropout = config_of(settings.variant).resolved().dropout
        for name in eager if not dropout else {"loss", "logits"} & eager.keys():
            # Each is as far from the truth as the other may be.
            refuse_beyond(
                (1 + SLACK) * noise,
                compiled[name],
                eager[name],
                f"{name} of the compiled model against the uncompiled one",
            )
    return seconds


def refuse_beyond(allowed: float, value: Tensor, truth: Tensor, what: str) -> None:
    """Refuse a result that is further off than is allowed, a rounding step of its type apart.

    Raises:
        Red: it is.
    """
    allowed += torch.finfo(value.dtype).eps
    found = error(value, truth)
    if not found <= allowed:
        raise Red(
            f"nothing is reported, since the numerical test is red: {what} is off by {found:.1e} of its size in {value.dtype}, where the "
            f"reference's own error allows {allowed:.1e}; leave it out of methods to time the others"
        )


def error(value: Tensor, truth: Tensor) -> float:
    """Return ||a - b|| / ||b||."""
    distance = (value.to(truth.dtype) - truth).norm()
    return float(distance / truth.norm()) if truth.any() else float(distance)


def _first(
    way: Call | Fitted, fitted: Fitted, base: PreTrainedModel, ids_BT: Tensor, settings: Bench
) -> dict[str, Tensor]:
    """Run one step, compiled or not, without touching the weights."""
    if not isinstance(settings, TrainBench):
        with torch.no_grad(), precision(base, settings):
            return {"logits": way.prefill(ids_BT)}
    with precision(base, settings):
        return _results(way.loss(*fitted.inputs(ids_BT)), fitted.model)


@torch.no_grad()
def _jolt(model: ShadowedModel) -> None:
    """Move every trained weight off its start, where W_up is zero and hides what a boundary computes."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.02 * torch.randn_like(parameter))


def _by(model: ShadowedModel, impl: str, ids_BT: Tensor) -> dict[str, Tensor]:
    model.set_impl(impl)
    return _results(model(input_ids=ids_BT, labels=ids_BT).loss, model)


def _results(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Give the loss and all gradients by name, and leave none behind."""
    loss.backward()
    results = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            results[f"the gradient of {name}"] = (
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
            parameter.grad = None
    return results


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the type of the weights alone: a model's buffers (rotary frequencies) are float32 in every type."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
