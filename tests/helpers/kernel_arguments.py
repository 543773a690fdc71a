"""A random boundary as the arguments of the fused kernels. Needs Triton."""

from helpers.boundary_cases import Drawn
from shadowpeft.ops.triton import few, op
from shadowpeft.ops.triton.case import Arguments, Attributes, Weights


def arguments_of(drawn: Drawn) -> Arguments:
    """Return what `op.forward_op` is given for a boundary without dropout."""
    w, norm = drawn.update or few.NO_UPDATE, op._norm_of(drawn.crossing)
    assert norm is not None
    attributes = Attributes(
        drawn.rule.variant,
        norm.kind,
        w.activation,
        alpha=drawn.rule.alpha,
        dropout=0.0,
        gate_shift=w.gate_shift,
        eps=norm.eps,
        offset=norm.offset,
    )
    return Arguments(drawn.h, drawn.s, Weights.of(w, drawn.inject, norm), seed=None, attributes=attributes)
