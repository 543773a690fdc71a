"""The changes of the variant `normed` that a search tries: other boundaries and other starts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from starts import copy_block, directions_read, start_as_mean, start_from_data
from torch import Tensor, nn

from shadowpeft import arch
from shadowpeft.compare.methods import Built
from shadowpeft.ops import read, update
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.shadow.boundary import Injection

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "none": lambda low_BTR: low_BTR,
}


@dataclass
class Change:
    """What differs from the variant `normed` at the boundary.

    Attributes:
        activation: of the bottleneck: silu, gelu, none, or glu: silu(delta W_down) * (delta W_gate), at two
            thirds of the rank.
        gate_shift: number that is subtracted from the gate's logit.
        updates: True if the shadow state moves on from s^(0).
        reads_shadow: True if delta is x - s; else it is x alone.
        scale: what the correction is proportional to: mean (of |h|), root (square of the mean of sqrt|h|,
            which a few large channels hardly change), rms (of h) or none.
        by_rank: divide the correction by the square root of r, so that alpha means the same at every rank.
        warm: start the shadow's first block from a slice of the base's own: its first heads and its strongest
            neurons.
        start: of W_down: normal; reads, the directions that the block's attention and MLP read most; pca, the
            directions in which delta varies most in the first batch, each scaled to unit variance; mirror,
            each row twice, with W_up = [A, -A] in place of zero.
        start_up: deviation of A in a mirrored start.
        diagonal: add v * delta + b to what is injected, with trained vectors v and b from zero.
        site: where corrections are made: block, before each block; both, between its attention and its MLP as
            well, each at half the rank.
        keeps: True if the stream keeps the correction; else only the block reads it.
        apart: read x and s through matrices of their own, at two thirds of the rank, in place of their
            difference.
        last: correct the output of the last block, too.
        down: factor of the deviation of a fresh W_down.
        shared: one W_down for all blocks, with a trained scale of each of its r values for each block; r
            grows by what is saved.
        strength: multiply alpha by a number that is trained for each block, from 1.
        whole: freeze the backbone, the projection and the updates, and give r all that they train; with
            `reads_shadow` off this is a plain nonlinear adapter.
        backbone: start of the shadow's attention: normal; mean, which looks at all tokens alike and puts out
            the projected mean of the normed embeddings.
    """

    activation: str = "silu"
    gate_shift: float = 1.0
    updates: bool = True
    reads_shadow: bool = True
    scale: str = "mean"
    by_rank: bool = False
    warm: bool = False
    start: str = "normal"
    start_up: float = 0.05
    diagonal: bool = False
    site: str = "block"
    keeps: bool = True
    apart: bool = False
    last: bool = False
    down: float = 1.0
    shared: bool = False
    strength: bool = False
    whole: bool = False
    backbone: str = "normal"


class Changed(Adapter):
    """An adapter of the variant `normed` with another boundary; made from a plain one by `change_adapter`."""

    change: Change

    def enter(
        self, block: int, h_BTD: Tensor, s_BTD: Tensor, norm: Any, boundary: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Cross the boundary as `Adapter.enter` does."""
        i, how = block - self.settings.inject_from, self.change
        if i < 0:
            return h_BTD, s_BTD
        x_BTD = read(h_BTD, norm)
        if block > 1 and how.updates:
            s_BTD = update(
                x_BTD, s_BTD, self._update(block - 2).weights(None)._replace(gate_shift=how.gate_shift)
            )
        self.state_BTD = s_BTD
        return (h_BTD + self.correction(self._injection(i), h_BTD, x_BTD, s_BTD)).to(h_BTD.dtype), s_BTD

    def correction(self, injection: Any, h_BTD: Tensor, x_BTD: Tensor, s_BTD: Tensor) -> Tensor:
        """Compute what is added to h."""
        how = self.change
        delta_BTD = x_BTD
        if how.reads_shadow:
            delta_BTD = x_BTD - s_BTD
        if how.start == "pca" and not injection.started:
            start_from_data(injection, delta_BTD)
        weights = injection.weights()
        low_BTR = self.bottleneck(injection, x_BTD, s_BTD, delta_BTD=delta_BTD)
        alpha = self.settings.alpha
        if how.by_rank:
            alpha = alpha / self.settings.r**0.5
        if how.strength:
            alpha = alpha * injection.strength.exp()
        out_BTD = F.linear(low_BTR, weights.up_DR)
        if how.diagonal:
            out_BTD = out_BTD + injection.scale_D * delta_BTD + injection.bias_D
        return alpha * size_of(h_BTD, how.scale) * out_BTD

    def bottleneck(self, injection: Any, x_BTD: Tensor, s_BTD: Tensor, *, delta_BTD: Tensor) -> Tensor:
        """Compute the activations of the bottleneck, (B, T, r)."""
        how, down_RD = self.change, injection.weights().down_RD
        low_BTR = F.linear(delta_BTD, down_RD)
        if how.shared:
            low_BTR = low_BTR * injection.scale_R
        if how.apart:
            low_BTR = F.linear(x_BTD, down_RD) + F.linear(s_BTD, injection.gate.weight)
        if how.activation == "glu":
            low_BTR = F.silu(low_BTR) * F.linear(delta_BTD, injection.gate.weight)
        else:
            low_BTR = ACTIVATIONS[how.activation](low_BTR)
        return F.dropout(low_BTR, self.settings.dropout, self.training)


def size_of(h_BTD: Tensor, scale: str) -> Any:
    """Return the size of each token's hidden state, (B, T, 1), or 1 if nothing scales with it."""
    if scale == "mean":
        return h_BTD.float().abs().mean(-1, keepdim=True).to(h_BTD.dtype)
    if scale == "root":
        return h_BTD.float().abs().add(1e-6).sqrt().mean(-1, keepdim=True).square().to(h_BTD.dtype)
    if scale == "rms":
        return h_BTD.float().square().mean(-1, keepdim=True).sqrt().to(h_BTD.dtype)
    return 1.0


def rank_of(adapter: Adapter, how: Change) -> int:
    """Return the rank at which the changed boundary has about as many weights as the plain one."""
    rank, blocks = adapter.settings.r, len(adapter.injections)
    if how.activation == "glu" or how.apart:
        rank = round(2 * rank / 3)
    if how.site == "both":
        rank = max(1, rank // 2)
    if how.shared:
        rank = round(2 * rank * blocks / (blocks + 1))
    if how.whole:
        kept = count_trained(adapter.injections)
        rank = round(rank * (kept + count_trained(adapter.shadow, adapter.updates)) / kept)
    return rank


def count_trained(*parts: nn.Module) -> int:
    """Count the trainable weights of some parts."""
    return sum(weight.numel() for part in parts for weight in part.parameters() if weight.requires_grad)


def change_adapter(built: Built, how: Change) -> Built:
    """Give a fresh shadowed model the changed boundary."""
    adapter = built.model.adapters["default"]
    assert adapter.settings.variant == "normed", (
        "changes are made to the variant normed; set it in the job's config"
    )
    adapter.__class__, adapter.change = Changed, how
    rank = rank_of(adapter, how)
    adapter.settings = replace(adapter.settings, r=rank)
    width, device = built.stock.config.hidden_size, built.stock.device
    with torch.device(device):
        if rank != len(adapter.injections[0].down.weight):
            adapter.injections = nn.ModuleList(
                [Injection(width, adapter.settings, plain.gains_D) for plain in adapter.injections]
            )
        middles = nn.ModuleList()
        if how.site == "both":
            middles.extend(Injection(width, adapter.settings) for _ in adapter.injections)
            adapter.middles = middles
            correct_in_the_middle(adapter, built.stock)
        blocks = arch.blocks_of(built.stock)[adapter.settings.inject_from :]
        for i, injection in enumerate([*adapter.injections, *middles]):
            start(injection, how, blocks[i % len(adapter.injections)])
    if how.shared:
        for injection in adapter.injections[1:]:
            injection.down.weight = adapter.injections[0].down.weight
    if how.last:
        correct_after_the_last(adapter, built.stock)
    if how.whole or not how.updates:
        adapter.updates.requires_grad_(False)
    if how.whole:
        adapter.shadow.requires_grad_(False)
    if how.warm:
        copy_block(adapter.shadow.backbone, built.stock)
    if how.backbone == "mean":
        start_as_mean(adapter.shadow.backbone)
    if not how.keeps:
        drop_after_reading(adapter)
    return built


@torch.no_grad()
def start(injection: Any, how: Change, block: nn.Module) -> None:
    """Give one injection its start and what it has besides W_down and W_up."""
    rank, width = injection.down.weight.shape
    injection.started = False
    injection.down.weight.mul_(how.down)
    if how.shared:
        injection.scale_R = nn.Parameter(torch.ones(rank))
    if how.strength:
        injection.strength = nn.Parameter(torch.zeros(()))
    if how.activation == "glu" or how.apart:
        injection.gate = nn.Linear(width, rank, bias=False)
        nn.init.normal_(injection.gate.weight, std=width**-0.5)
    if how.diagonal:
        injection.scale_D, injection.bias_D = (nn.Parameter(torch.zeros(width)) for _ in range(2))
    if how.start == "reads":
        injection.down.weight.copy_(directions_read(block)[:rank])
    elif how.start == "mirror":
        half = rank // 2
        injection.down.weight[half : 2 * half] = injection.down.weight[:half]
        injection.up.weight[:, :half].normal_(std=how.start_up)
        injection.up.weight[:, half : 2 * half] = -injection.up.weight[:, :half]


def correct_in_the_middle(adapter: Any, base: Any) -> None:
    """Correct the stream between attention and MLP, too (families with the norms of Llama or of Gemma)."""
    for i, injection in enumerate(adapter.middles):
        block = arch.blocks_of(base)[i + adapter.settings.inject_from]
        norm, last = block.post_attention_layernorm, block.mlp
        # Gemma has norms on both sides of the MLP.
        if "pre_feedforward_layernorm" in dict(block.named_children()):
            norm, last = block.pre_feedforward_layernorm, block.post_feedforward_layernorm
        added: list[Tensor] = []

        def before(
            norm: Any, given: tuple[Tensor, ...], injection: Any = injection, added: list[Tensor] = added
        ) -> tuple[Tensor]:
            (h_BTD,) = given
            # Not norm(h), which would call this hook again.
            x_BTD = read(h_BTD, lambda h: type(norm).forward(norm, h))
            added[:] = [adapter.correction(injection, h_BTD, x_BTD, adapter.state_BTD).to(h_BTD.dtype)]
            return (h_BTD + added[0],)

        def after(_: Any, __: Any, out_BTD: Tensor, added: list[Tensor] = added) -> Tensor:
            return out_BTD + added.pop()

        norm.register_forward_pre_hook(before)
        last.register_forward_hook(after)


def correct_after_the_last(adapter: Any, base: Any) -> None:
    """Correct what the base's final norm reads (families that call it `norm`)."""
    with torch.device(base.device):
        adapter.final = Injection(base.config.hidden_size, adapter.settings)
        start(adapter.final, adapter.change, arch.blocks_of(base)[-1])

    def before(norm: Any, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        (h_BTD,) = given
        x_BTD = read(h_BTD, lambda h: type(norm).forward(norm, h))
        added_BTD = adapter.correction(adapter.final, h_BTD, x_BTD, adapter.state_BTD)
        return ((h_BTD + added_BTD).to(h_BTD.dtype),)

    arch.decoder_of(base).get_submodule("norm").register_forward_pre_hook(before)


def drop_after_reading(adapter: Any) -> None:
    """Let each block read the corrected input, and subtract the correction from its output."""
    plain = type(adapter).enter
    kept: list[Tensor] = []

    def enter(
        block: int, h_BTD: Tensor, s_BTD: Tensor, norm: Any, boundary: Any = None
    ) -> tuple[Tensor, Tensor]:
        if block == 0:
            kept.clear()
        if kept:
            h_BTD = h_BTD - kept.pop()
        new_BTD, s_BTD = plain(adapter, block, h_BTD, s_BTD=s_BTD, norm=norm, boundary=boundary)
        kept[:] = [new_BTD - h_BTD]
        return new_BTD, s_BTD

    adapter.enter = enter
