"""What tells one boundary's kernels from another's: the weights there are, and the sizes and branches compiled for."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from shadowpeft.ops.triton.parts import STATS


class Weights(NamedTuple):
    """The tensors of a boundary beside h and s: T, G, W_down, W_up, and the norm that is read through."""

    tin: Tensor | None
    tin_b: Tensor | None
    tout: Tensor | None
    tout_b: Tensor | None
    gin: Tensor | None
    gin_b: Tensor | None
    gout: Tensor | None
    gout_b: Tensor | None
    down: Tensor | None
    up: Tensor | None
    norm_w: Tensor | None
    norm_b: Tensor | None

    def trained(self, variant: str) -> list[Tensor]:
        """Return those that get a gradient: all there are, but for a block's own norm."""
        return [weight for weight in (self if variant == "paper" else self[:10]) if weight is not None]

    def contiguous(self) -> "Weights":
        """Return them laid out as the kernels read them."""
        return Weights(*(None if weight is None else weight.contiguous() for weight in self))


class Numbers(NamedTuple):
    """What varies without a kernel being compiled anew."""

    alpha: float
    dropout: float
    gate_shift: float
    eps: float


class Case(NamedTuple):
    """What kernels are compiled for: sizes, padded sizes, and the branches taken."""

    D: int
    U: int
    R: int
    UP: int
    RP: int
    NORM: int
    OFFSET: float
    UNIT: bool
    UPDATE: bool
    INJECT: bool
    DOWN: bool
    GELU: bool
    BIAS: bool
    DROP: int
    FINE: int

    def pick(self, names: str) -> dict[str, Any]:
        """Return the named fields, as a kernel takes them."""
        fields = self._asdict()
        return {name: fields[name] for name in names.split()}


def power_of_2(size: int) -> int:
    """Return the least power of two that is at least `size`; Triton's own is slower, and a `Case` is made at every boundary."""
    return 1 << max(0, size - 1).bit_length()


_NORMS = {"none": 0, "rms": 1, "layer": 2}
_DROPS = {"normed": 1, "paper": 1, "peft": 2}


def case_of(
    h: Tensor, w: Weights, variant: str, norm: str, activation: str, dropout: float, offset: float
) -> Case:
    """Tell which kernels a boundary needs."""
    U, R = 0 if w.tin is None else w.tin.shape[0], 0 if w.down is None else w.down.shape[0]
    UP, RP = max(16, power_of_2(U)), max(16, power_of_2(R))
    drop = _DROPS[variant] if dropout > 0 else 0
    unit, update, inject, bias = (
        variant == "normed",
        w.tin is not None,
        w.down is not None,
        w.tin_b is not None,
    )
    down = (
        inject and drop != 2
    )  # else the difference h - s is dropped out before W_down, and cannot be multiplied by it in parts
    # Where T and G meet h as it is, a large row's gate opens by a sum of numbers in the hundreds, of which a bfloat16 keeps no digit behind
    # the point, and such rows are most of G's gradient: so there G's hidden values are two bfloat16 each. Weights that are rounded, too,
    # on their way to a product (float32 beside a bfloat16 stream) cost as many digits again; then it would gain nothing.
    exact = (
        w.gin is not None and w.gout is not None and w.gin.dtype == w.gout.dtype == h.dtype == torch.bfloat16
    )
    fine = int(exact and not unit and norm == "none")
    return Case(
        h.shape[-1],
        U,
        R,
        UP,
        RP,
        _NORMS[norm],
        offset,
        unit,
        update,
        inject,
        down,
        activation == "gelu",
        bias,
        drop,
        fine,
    )


def kept_widths(tin: Tensor | None, down: Tensor | None) -> tuple[int, int]:
    """How many numbers are kept for each row, and how many for all rows together under a LayerNorm."""
    U, R = 0 if tin is None else tin.shape[0], 0 if down is None else down.shape[0]
    return 2 * R + STATS + 2 * U, 2 * R + 3 + 4 * U
