"""What a boundary's kernels are given, and what they are compiled for.

Shape legend: N tokens, D width of the base, R rank of the injection, U width of the update's two networks.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shadowpeft import arch
from shadowpeft.ops.reference import InjectionWeights, UpdateWeights
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
    norm_w: Tensor | None = None
    norm_b: Tensor | None = None

    @classmethod
    def of(cls, w: UpdateWeights, inject_w: InjectionWeights | None, norm: arch.NormParts) -> "Weights":
        """Collect them from a boundary."""
        t_in, t_in_b, t_out, t_out_b, g_in, g_in_b, g_out, g_out_b, *_ = w
        down, up = inject_w or (None, None)
        return cls(
            t_in, t_in_b, t_out, t_out_b, g_in, g_in_b, g_out, g_out_b, down, up, norm.weight, norm.bias
        )  # fmt: skip

    def trainable(self, trains_norm: bool) -> "Weights":
        """Return the weights that get a gradient, with `None` in the places of a frozen norm."""
        if trains_norm:
            return self
        return Weights(*self[:_FIRST_OF_NORM])

    def present(self) -> list[Tensor]:
        """Return the weights that there are, in order."""
        return [weight for weight in self if weight is not None]

    def placed(self, found: Sequence[Tensor]) -> list[Tensor | None]:
        """Put one tensor for each of `present()` in that weight's place."""
        remaining = iter(found)
        return [None if weight is None else next(remaining) for weight in self]

    def contiguous(self) -> "Weights":
        """Return the weights laid out as the kernels read them."""
        return Weights(*(None if weight is None else weight.contiguous() for weight in self))

    def sizes(self) -> tuple[int, int]:
        """Return U and R, each 0 where its half of the boundary is missing."""
        U = 0 if self.tin is None else self.tin.shape[0]
        R = 0 if self.down is None else self.down.shape[0]
        return U, R


_FIRST_OF_NORM = Weights._fields.index("norm_w")


class Attributes(NamedTuple):
    """What of a boundary is no tensor: which equations, and the numbers in them."""

    variant: str
    norm: str
    activation: str
    alpha: float
    dropout: float
    gate_shift: float
    eps: float
    offset: float

    @property
    def trains_norm(self) -> bool:
        """The norm is the adapter's own LayerNorm; in `normed` it is the base's, and frozen."""
        return self.norm == "layer" and self.variant != "normed"


_SEED = len(Weights._fields)


class Arguments(NamedTuple):
    """The arguments of the forward pass."""

    h: Tensor
    s: Tensor
    weights: Weights
    seed: Tensor | None
    attributes: Attributes

    @classmethod
    def grouped(cls, flat: Sequence[Any]) -> "Arguments":
        """Group the arguments of `op.forward_op`; they are flat, as a custom operation takes no tuples."""
        h, s, *rest = flat
        return cls(h, s, Weights(*rest[:_SEED]), rest[_SEED], Attributes(*rest[_SEED + 1 :]))


class BackwardArguments(NamedTuple):
    """The arguments of the backward pass.

    `dout` and `dnext` are the gradients of h' and s', `kept` and `shared` what the forward pass kept for each
    token and for all tokens together. `wanted` says that h gets a gradient.
    """

    dout: Tensor | None
    dnext: Tensor | None
    forward: Arguments
    kept: Tensor
    shared: Tensor
    wanted: bool

    @classmethod
    def grouped(cls, flat: Sequence[Any]) -> "BackwardArguments":
        """Group the arguments of `op.backward_op`."""
        dout, dnext, h, s, kept, shared, *rest, wanted = flat
        return cls(dout, dnext, Arguments.grouped((h, s, *rest)), kept, shared, wanted)

    def flat(self) -> tuple[Any, ...]:
        """Return them as `op.backward_op` takes them."""
        h, s, weights, seed, attributes = self.forward
        return (self.dout, self.dnext, h, s, self.kept, self.shared, *weights, seed, *attributes, self.wanted)


class Case(NamedTuple):
    """What kernels are compiled for: sizes, padded sizes, and the branches taken.

    NORM is 0 for none, 1 for an RMSNorm, 2 for a LayerNorm. DROP is 0 for none, 1 for dropout of narrow
    values (the bottleneck, and T's hidden values in `paper`), 2 for dropout of h - s. DOWN says that h is
    multiplied by W_down. FINE says that G's hidden values are two bfloat16 each.
    """

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

    @property
    def trains_norm(self) -> bool:
        """The norm is the adapter's own LayerNorm, as in `Attributes`."""
        return self.NORM == 2 and not self.UNIT

    def pick(self, names: str) -> dict[str, Any]:
        """Return the named fields, as a kernel takes them."""
        fields = self._asdict()
        return {name: fields[name] for name in names.split()}


def power_of_2(size: int) -> int:
    """Return the least power of two that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()


_NORMS = {"none": 0, "rms": 1, "layer": 2}
_DROPS = {"normed": 1, "paper": 1, "peft": 2}


def case_of(given: Arguments) -> Case:
    """Return what the kernels of a boundary are compiled for."""
    h, _, w, _, attributes = given
    variant, norm, activation, _, dropout, _, _, offset = attributes
    gin = None if w.gin is None else w.gin.dtype
    gout = None if w.gout is None else w.gout.dtype
    return case_of_kind(
        h.shape[-1], *w.sizes(), variant, norm, activation, offset, dropout > 0,
        w.tin is not None, w.down is not None, w.tin_b is not None, is_all_bfloat16(h.dtype, gin, gout),
    )  # fmt: skip


# Kept, as it is asked for twice at every boundary and a model has a few.
@functools.cache
def case_of_kind(
    D: int,
    U: int,
    R: int,
    variant: str,
    norm: str,
    activation: str,
    offset: float,
    drops: bool,
    update: bool,
    inject: bool,
    bias: bool,
    all_bfloat16: bool,
) -> Case:
    """Return the case of boundaries of one kind, as `case_of` reads it from their tensors."""
    drop = _DROPS[variant] if drops else 0
    unit = variant == "normed"
    return Case(
        D=D,
        U=U,
        R=R,
        UP=max(16, power_of_2(U)),
        RP=max(16, power_of_2(R)),
        NORM=_NORMS[norm],
        OFFSET=offset,
        UNIT=unit,
        UPDATE=update,
        INJECT=inject,
        # Where h - s is dropped out before W_down, it cannot be multiplied by W_down in parts.
        DOWN=inject and drop != 2,
        GELU=activation == "gelu",
        BIAS=bias,
        DROP=drop,
        # Where T and G meet h as it is, the gate's logit of a large token is a sum of numbers in the
        # hundreds, of which a bfloat16 keeps no digit behind the point, and such tokens are most of G's
        # gradient.
        FINE=int(not unit and norm == "none" and all_bfloat16),
    )


def is_all_bfloat16(h: torch.dtype, gin: torch.dtype | None, gout: torch.dtype | None) -> bool:
    """Return whether G's weights are no wider than a stream of bfloat16; types, `None` for no weight."""
    # Weights that are rounded, too, on their way to a product (float32 beside a bfloat16 stream) cost as many
    # digits as `Case.FINE` would save.
    return gin == gout == h == torch.bfloat16


def kept_widths(w: Weights, norm_is_layer: bool) -> tuple[int, int]:
    """Return how many numbers are kept for each token, and for all tokens together."""
    U, R = w.sizes()
    each = 2 * R + STATS + 2 * U
    if not norm_is_layer:
        return each, 0
    return each, 2 * R + 3 + 4 * U
