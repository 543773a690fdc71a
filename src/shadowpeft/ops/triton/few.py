"""The short way to the kernel for a few rows: a token is decoded no faster than the host gets through Python.

Without gradients, dropout, or anybody who looks at operations, a boundary of a few rows is one launch. Which
one follows from shapes and types, by which it is looked up. Every tensor is asked again at every boundary,
and nothing is kept of any, so weights may be replaced, moved, cast and laid out anew at any time. Whatever is
out of the ordinary goes the long way (`op`), which says what is wrong if something is.
"""

import torch
from torch import Tensor

from shadowpeft import arch
from shadowpeft.ops.reference import Crossing, UpdateWeights
from shadowpeft.ops.triton import launch_few
from shadowpeft.ops.triton.call import ALIGNED
from shadowpeft.ops.triton.parts import INTERPRETED

NO_UPDATE = UpdateWeights(*(None,) * 8, None, "silu")  # type: ignore[arg-type]


def cross(
    h_BTD: Tensor, s_BTD: Tensor, crossing: Crossing, norm: arch.NormParts
) -> tuple[Tensor, Tensor] | None:
    """Compute `reference.boundary` of a few rows with one launch; `None`, and nothing done, if it takes more.

    Args:
        h_BTD: as there.
        s_BTD: as there.
        crossing: as there.
        norm: what the kernel applies.
    """
    update_w, inject_w, rule, _ = crossing
    if torch.is_grad_enabled() or rule.dropout > 0:
        return None
    w = NO_UPDATE if update_w is None else update_w
    down_RD, up_DR = (None, None) if inject_w is None else inject_w
    kind, norm_w, norm_b, eps, offset = norm
    # In the kernel's order.
    tensors: list[Tensor | None] = [
        h_BTD, s_BTD, norm_w, norm_b, w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], down_RD, up_DR
    ]  # fmt: skip
    found = _asked(tensors, h_BTD.device)
    if found is None or not _is_current(h_BTD):
        return None
    places, types = found
    sizes = None if update_w is None else w[0].shape, None if down_RD is None else down_RD.shape
    call = launch_few.plan_few(
        h_BTD.shape, *sizes, rule.variant, kind, w.activation, offset, h_BTD.device, *types
    )
    # The first time goes the long way, which also loads the kernels that a graph will need.
    if call is None or (h_BTD.is_cuda and not call.is_ready):
        return None
    # The kernel wants a place for a half that is missing, too, and writes nothing there.
    next_BTD = h_BTD.new_empty(0) if update_w is None else torch.empty_like(s_BTD)
    out_BTD = h_BTD.new_empty(0) if down_RD is None else torch.empty_like(h_BTD)
    tensors += next_BTD, out_BTD
    places += next_BTD.data_ptr(), out_BTD.data_ptr()
    call.at(places, tensors, float(eps), float(w.gate_shift), float(rule.alpha))
    return h_BTD if down_RD is None else out_BTD, s_BTD if update_w is None else next_BTD


def _asked(
    tensors: list[Tensor | None], device: torch.device
) -> tuple[list[int | None], list[torch.dtype | None]] | None:
    """Return place and type of each tensor; `None` if one is elsewhere, or lies as no kernel reads it."""
    places: list[int | None] = []
    types: list[torch.dtype | None] = []
    bits = 0
    for tensor in tensors:
        if tensor is None:
            places.append(None)
            types.append(None)
            continue
        if tensor.device != device or not tensor.is_contiguous():
            return None
        place = tensor.data_ptr()
        bits |= place
        places.append(place)
        types.append(tensor.dtype)
    return None if bits % ALIGNED else (places, types)


def _is_current(h_BTD: Tensor) -> bool:
    """Return whether a launch goes to the tensor's device by itself, and no graph is captured.

    A captured graph is replayed without the host, so its launches are chosen for the device alone.
    """
    if launch_few.is_captured(h_BTD.device):
        return False
    if h_BTD.is_cuda:
        return h_BTD.get_device() == torch.cuda.current_device()
    return INTERPRETED.value
