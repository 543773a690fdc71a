"""The numerical test before anything is timed: every implementation against the reference.

B rows, T tokens, V words.
"""

import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft import ShadowedModel
from shadowpeft.bench.measure import Runner
from shadowpeft.bench.methods import AppliedMethod, config_of, ours, precision
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.bench.snapshot import BaseSnapshot
from shadowpeft.errors import UserError
from shadowpeft.reporting.devices import synchronise

ROWS, TOKENS = 2, 128
# A result may be so many times as far from the truth as the reference in the same type, and a rounding step
# more.
SLACK = 3.0


class NumericalTestFailed(UserError):
    """The numerical test failed: the run reports nothing."""


def check(
    snapshot: BaseSnapshot, impls: Iterable[str], ids_BT: Tensor, settings: Bench, trained_in: str
) -> float:
    """Compare the tokens' losses and the gradients of each implementation with the truth.

    The truth is the reference on the same weights at higher precision. The mean loss itself is not compared:
    errors of its tokens cancel in it by chance, so the reference's own may be near zero.

    Args:
        snapshot: the base.
        impls: the implementations that will be timed.
        ids_BT: token ids; the first rows and tokens are used.
        settings: the measurement, for its variant and seed.
        trained_in: the type of what is trained (`specs.TRAINED_IN`).

    Returns:
        The reference's worst error, relative to the size of what it is the error of.

    Raises:
        NumericalTestFailed: an implementation is further from the truth than it may be; the message names it.
    """
    base, ids_BT = snapshot.base, ids_BT[:ROWS, :TOKENS]
    narrow, wide = base.dtype, torch.float32
    if narrow == torch.float32:
        wide = torch.float64
    torch.manual_seed(settings.seed)
    with torch.device(base.device):
        model = ours(base, settings.variant, "reference", trained_in, dropout=0.0).train()
        _perturb(model)
    try:
        found = {name: _by(model, name, ids_BT) for name in dict.fromkeys(("reference", *impls))}
        # Widened in place and narrowed again, which restores the same weights and needs no second base.
        _cast(model, wide)
        truth = _by(model, "reference", ids_BT)
    finally:
        _cast(model, narrow)
        snapshot.restore()
    noise = {name: error(found["reference"][name], truth[name]) for name in truth}
    for impl, results in found.items():
        for name in truth:
            what = f"{name} of the implementation {impl!r}"
            refuse_beyond(SLACK * noise[name], results[name], truth[name], what=what)
    return max(noise.values())


def check_compiled(
    runner: Runner, base: PreTrainedModel, ids_BT: Tensor, settings: Bench, noise: float | None
) -> float:
    """Let a compiled method compile, and compare its first step with the same step uncompiled.

    With dropout, gradients are not compared: the random numbers are not the same.

    Args:
        runner: the method; nothing of it has run.
        base: the base.
        ids_BT: token ids.
        settings: the measurement.
        noise: what `check` returned; `None` to skip the comparison.

    Returns:
        Seconds of the compiled step, compiling included.

    Raises:
        NumericalTestFailed: they differ by more than the errors that `check` found explain.
    """
    began = time.perf_counter()
    compiled = _first_step(runner, runner.applied, base=base, ids_BT=ids_BT, settings=settings)
    synchronise(base.device)
    seconds = time.perf_counter() - began
    if noise is None:
        return seconds
    eager = _first_step(runner.applied, runner.applied, base=base, ids_BT=ids_BT, settings=settings)
    names = set(eager)
    if config_of(settings.variant).resolved().dropout:
        names &= {"loss", "logits"}
    for name in names:
        # Each of the two may be as far from the truth as the other.
        refuse_beyond(
            (1 + SLACK) * noise,
            compiled[name],
            eager[name],
            what=f"{name} of the compiled model against the uncompiled one",
        )
    return seconds


def refuse_beyond(allowed: float, value: Tensor, truth: Tensor, what: str) -> None:
    """Refuse a result whose error is larger than allowed and a rounding step of its type together.

    Raises:
        NumericalTestFailed: it is.
    """
    allowed += torch.finfo(value.dtype).eps
    found = error(value, truth)
    if not found <= allowed:
        raise NumericalTestFailed(
            f"nothing is reported, since the numerical test is red: {what} is off by {found:.1e} of its size "
            f"in {value.dtype}, where the reference's own error allows {allowed:.1e}; "
            "leave it out of methods to time the others"
        )


def error(value: Tensor, truth: Tensor) -> float:
    """Return ||value - truth|| / ||truth||; the distance alone if the truth is zero."""
    distance = (value.to(truth.dtype) - truth).norm()
    if truth.any():
        distance = distance / truth.norm()
    return float(distance)


def _first_step(
    runner: Runner | AppliedMethod,
    applied: AppliedMethod,
    base: PreTrainedModel,
    ids_BT: Tensor,
    settings: Bench,
) -> dict[str, Tensor]:
    """Run one step, compiled or not, without changing the weights."""
    if not isinstance(settings, TrainBench):
        with torch.no_grad(), precision(base, applied):
            return {"logits": runner.prefill(ids_BT)}
    with precision(base, applied):
        loss = runner.loss(*applied.inputs(ids_BT))
        return {"loss": loss.detach(), **_gradients(loss, applied.model)}


@torch.no_grad()
def _perturb(model: ShadowedModel) -> None:
    """Move every trained weight from its start, where W_up is zero and hides what a boundary computes."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.02 * torch.randn_like(parameter))


def _by(model: ShadowedModel, impl: str, ids_BT: Tensor) -> dict[str, Tensor]:
    """Return the tokens' losses through both heads, and all gradients of the joint loss by name."""
    model.set_impl(impl)
    gradients = _gradients(model(input_ids=ids_BT, labels=ids_BT).loss, model)
    with torch.no_grad():
        out = model(input_ids=ids_BT, use_cache=False, output_shadow_logits=True)
    return {
        "the tokens' losses": _token_losses(out.logits, ids_BT),
        "the shadow's tokens' losses": _token_losses(out.shadow_logits, ids_BT),
        **gradients,
    }


def _token_losses(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Return the cross-entropy of each token that has one before it, in float32 or the logits' wider type."""
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)
    return F.cross_entropy(
        logits_BTV[:, :-1].to(wide).flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    )


def _gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Return all gradients by name; none is left on the model."""
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient, parameter.grad = parameter.grad, None
            found = torch.zeros_like(parameter) if gradient is None else gradient
            gradients[f"the gradient of {name}"] = found
    return gradients


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the type of the weights alone: a model's buffers (rotary frequencies) are always float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
