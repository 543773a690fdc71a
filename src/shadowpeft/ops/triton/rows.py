"""The fused boundary for a few rows, as decoding has them: one kernel, in which a program takes one row.

With few rows the three kernels of `forward` take as long as three launches take, on the device and on the
host. Here a program goes over a row's columns three times: for the norm, for what T and G read, and for the
rest; then it corrects the stream. Nothing is kept for a backward pass. A row's result does not depend on how
many rows there are, so a token gets the same correction alone as among drafts.
"""

import triton
import triton.language as tl

from shadowpeft.ops.triton.parts import activate, weight_tile


@triton.jit
def row_scales(
    h_D, w_D, b_D, eps,
    D: tl.constexpr, NORM: tl.constexpr, OFFSET: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return a row's mean|h| and the mu, ka and kb of its reading x = ka (h - mu) w + kb b."""
    cols = tl.arange(0, WIDE)
    inside = cols < D
    h = tl.load(h_D + cols, mask=inside, other=0.0).to(tl.float32)
    size, mu, ka, kb = 0.0, 0.0, 1.0, 1.0
    if UNIT:
        size = tl.sum(tl.abs(h)) / D
    if NORM > 0:
        w = tl.where(inside, tl.load(w_D + cols, mask=inside, other=0.0).to(tl.float32) + OFFSET, 0.0)
    if UNIT and NORM == 0:
        ka = tl.rsqrt(tl.sum(h * h) / D + 1e-6)
    if NORM == 1:
        # h w / rms(h) over its own rms: rms(h) cancels but for the two epsilons.
        v = h * w
        ka = tl.rsqrt(tl.sum(v * v) / D + 1e-6 * (tl.sum(h * h) / D + eps))
    if NORM == 2:
        mu = tl.sum(h) / D
        c = tl.where(inside, h - mu, 0.0)
        ka = tl.rsqrt(tl.sum(c * c) / D + eps)
        if UNIT:
            b = tl.load(b_D + cols, mask=inside, other=0.0).to(tl.float32)
            y = ka * c * w + b
            kb = tl.rsqrt(tl.sum(y * y) / D + 1e-6)
            ka *= kb
    return size, mu, ka, kb


@triton.jit
def reading(
    h, cols, w_D, b_D, mu, ka, kb,
    D: tl.constexpr, NORM: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Return some columns of x; zero outside of D."""
    x = ka * (h - mu)
    if NORM > 0:
        x *= tl.load(w_D + cols, mask=cols < D, other=0.0).to(tl.float32) + OFFSET
    if NORM == 2:
        x += kb * tl.load(b_D + cols, mask=cols < D, other=0.0).to(tl.float32)
    return tl.where(cols < D, x, 0.0)


@triton.jit
def cross(
    h_ND, s_ND, w_D, b_D, tin_UD, tin_b, tout_DU, tout_b, gin_UD, gin_b, gout_DU, gout_b, down_RD, up_DR,
    next_ND, out_ND, eps, gate_shift, alpha,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr, UP: tl.constexpr, RP: tl.constexpr,
    NORM: tl.constexpr, OFFSET: tl.constexpr, UNIT: tl.constexpr, UPDATE: tl.constexpr, INJECT: tl.constexpr,
    GELU: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Cross one boundary with one row: move the state, then correct the stream."""
    start = tl.program_id(0).to(tl.int64) * D
    h_D, s_D, next_D, out_D = h_ND + start, s_ND + start, next_ND + start, out_ND + start
    u, r = tl.arange(0, UP), tl.arange(0, RP)
    size, mu, ka, kb = row_scales(h_D, w_D, b_D, eps, D, NORM, OFFSET, UNIT, WIDE)

    if UPDATE:
        t_UD, g_UD = tl.zeros((UP, BD), tl.float32), tl.zeros((UP, BD), tl.float32)
        for d in tl.range(0, D, BD):
            cols = d + tl.arange(0, BD)
            h = tl.load(h_D + cols, mask=cols < D, other=0.0).to(tl.float32)
            x = reading(h, cols, w_D, b_D, mu, ka, kb, D, NORM, OFFSET)[None, :]
            t_UD += weight_tile(tin_UD, u, cols, U, D, D, 1).to(tl.float32) * x
            g_UD += weight_tile(gin_UD, u, cols, U, D, D, 1).to(tl.float32) * x
        t_U, g_U = tl.sum(t_UD, 1), tl.sum(g_UD, 1)
        if BIAS:
            t_U += tl.load(tin_b + u, mask=u < U, other=0.0).to(tl.float32)
            g_U += tl.load(gin_b + u, mask=u < U, other=0.0).to(tl.float32)
        t_U, g_U = activate(t_U, GELU), activate(g_U, GELU)

    q_RD = tl.zeros((RP, BD), tl.float32)
    for d in tl.range(0, D, BD):
        cols = d + tl.arange(0, BD)
        s = tl.load(s_D + cols, mask=cols < D, other=0.0).to(tl.float32)
        if UPDATE:
            target = tl.sum(weight_tile(tout_DU, u, cols, U, D, 1, U).to(tl.float32) * t_U[:, None], 0)
            gate = tl.sum(weight_tile(gout_DU, u, cols, U, D, 1, U).to(tl.float32) * g_U[:, None], 0)
            if BIAS:
                target += tl.load(tout_b + cols, mask=cols < D, other=0.0).to(tl.float32)
                gate += tl.load(gout_b + cols, mask=cols < D, other=0.0).to(tl.float32)
            moved = (s + tl.sigmoid(gate - gate_shift) * (target - s)).to(next_ND.dtype.element_ty)
            tl.store(next_D + cols, moved, mask=cols < D)
            s = moved.to(tl.float32)
        if INJECT:
            x = tl.load(h_D + cols, mask=cols < D, other=0.0).to(tl.float32)
            if UNIT:
                x = reading(x, cols, w_D, b_D, mu, ka, kb, D, NORM, OFFSET)
            q_RD += weight_tile(down_RD, r, cols, R, D, D, 1).to(tl.float32) * (x - s)[None, :]

    if INJECT:
        q_R = tl.sum(q_RD, 1)
        strength = alpha
        if UNIT:
            q_R = activate(q_R, False)
            strength = alpha * size
        for d in tl.range(0, D, BD):
            cols = d + tl.arange(0, BD)
            h = tl.load(h_D + cols, mask=cols < D, other=0.0).to(tl.float32)
            up = weight_tile(up_DR, r, cols, R, D, 1, R).to(tl.float32)
            h += strength * tl.sum(up * q_R[:, None], 0)
            tl.store(out_D + cols, h.to(out_ND.dtype.element_ty), mask=cols < D)
