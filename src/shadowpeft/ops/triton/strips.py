"""The fused boundary for a few rows in a CUDA graph: three kernels, with a program for each strip of a row.

In `rows.cross` one multiprocessor reads all weights of a boundary, which takes long where the model is wide.
A graph launches at little cost, so here the columns are spread over the device:

- `read` reads the stream through the norm, and sums what T and G read.
- `move` moves the state, and sums what the injection reads.
- `correct` corrects the stream.

`move` and `correct` are launched before the kernel ahead of them has ended (programmatic dependent launch).
They load their weights, and then wait for it. `read` is launched as kernels are, behind all that came before
the boundary. So weights that were computed or copied just then are there for all three; if `read` began
early, they would not be.

Shape legend: as in `parts`; S strips of a row.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from shadowpeft.ops.triton.parts import INTERPRETED, activate, weight_tile
from shadowpeft.ops.triton.rows import reading, row_scales

# Numbers a row that `read` leaves for the others: mean|h|, mu, ka and kb.
SCALES = tl.constexpr(4)


@triton.jit
def let_the_next_begin(EARLY: tl.constexpr):
    """Let the kernel behind this one begin, up to where it waits."""
    if EARLY and not INTERPRETED:
        gdc_launch_dependents()


@triton.jit
def wait_for_the_last(EARLY: tl.constexpr):
    """Wait until the kernel ahead of this one has ended and what it wrote can be read."""
    if EARLY and not INTERPRETED:
        gdc_wait()


@triton.jit
def read(
    h_ND, w_D, b_D, tin_UD, gin_UD, scales_N4, part_NSU, eps,
    D: tl.constexpr, U: tl.constexpr, UP: tl.constexpr,
    NORM: tl.constexpr, OFFSET: tl.constexpr, UNIT: tl.constexpr, UPDATE: tl.constexpr,
    WIDE: tl.constexpr, BD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Settle the norm of a row, and sum over a strip of it what T and G read."""
    row, strip, strips = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    let_the_next_begin(EARLY)
    h_D = h_ND + row.to(tl.int64) * D
    u, cols = tl.arange(0, UP), strip * BD + tl.arange(0, BD)
    if UPDATE:
        tin = weight_tile(tin_UD, u, cols, U, D, D, 1).to(tl.float32)
        gin = weight_tile(gin_UD, u, cols, U, D, D, 1).to(tl.float32)
    # Every strip of a row settles its norm by itself: the row is read once more, and nobody has to wait.
    size, mu, ka, kb = row_scales(h_D, w_D, b_D, eps, D, NORM, OFFSET, UNIT, WIDE)
    if strip == 0:
        at = scales_N4 + row * SCALES
        tl.store(at, size)
        tl.store(at + 1, mu)
        tl.store(at + 2, ka)
        tl.store(at + 3, kb)
    if UPDATE:
        h = tl.load(h_D + cols, mask=cols < D, other=0.0).to(tl.float32)
        x = reading(h, cols, w_D, b_D, mu, ka, kb, D, NORM, OFFSET)[None, :]
        at = part_NSU + (row * strips + strip) * 2 * U + u
        tl.store(at, tl.sum(tin * x, 1), mask=u < U)
        tl.store(at + U, tl.sum(gin * x, 1), mask=u < U)


@triton.jit
def total(part_SK, k, K, strips, width, SP: tl.constexpr):
    """Sum K numbers over a row's strips, (S, width)."""
    strip = tl.arange(0, SP)
    at = part_SK + strip[:, None] * width + k[None, :]
    return tl.sum(tl.load(at, mask=(strip[:, None] < strips) & (k[None, :] < K), other=0.0), 0)


@triton.jit
def move(
    h_ND, s_ND, w_D, b_D, tin_b, tout_DU, tout_b, gin_b, gout_DU, gout_b, down_RD, scales_N4, part_NSU,
    next_ND, state_NSR, gate_shift,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr, UP: tl.constexpr, RP: tl.constexpr,
    NORM: tl.constexpr, OFFSET: tl.constexpr, UNIT: tl.constexpr, UPDATE: tl.constexpr, INJECT: tl.constexpr,
    GELU: tl.constexpr, BIAS: tl.constexpr, SP: tl.constexpr, BD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Move the state of a strip, and sum what the injection reads there."""
    row, strip, strips = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    let_the_next_begin(EARLY and INJECT)  # else this is the boundary's last
    start = row.to(tl.int64) * D
    u, r, cols = tl.arange(0, UP), tl.arange(0, RP), strip * BD + tl.arange(0, BD)
    if UPDATE:
        tout = weight_tile(tout_DU, u, cols, U, D, 1, U).to(tl.float32)
        gout = weight_tile(gout_DU, u, cols, U, D, 1, U).to(tl.float32)
    if INJECT:
        down = weight_tile(down_RD, r, cols, R, D, D, 1).to(tl.float32)
    wait_for_the_last(EARLY)

    s = tl.load(s_ND + start + cols, mask=cols < D, other=0.0).to(tl.float32)
    if UPDATE:
        t_U = total(part_NSU + row * strips * 2 * U, u, U, strips, 2 * U, SP)
        g_U = total(part_NSU + row * strips * 2 * U + U, u, U, strips, 2 * U, SP)
        if BIAS:
            t_U += tl.load(tin_b + u, mask=u < U, other=0.0).to(tl.float32)
            g_U += tl.load(gin_b + u, mask=u < U, other=0.0).to(tl.float32)
        target = tl.sum(tout * activate(t_U, GELU)[:, None], 0)
        gate = tl.sum(gout * activate(g_U, GELU)[:, None], 0)
        if BIAS:
            target += tl.load(tout_b + cols, mask=cols < D, other=0.0).to(tl.float32)
            gate += tl.load(gout_b + cols, mask=cols < D, other=0.0).to(tl.float32)
        moved = (s + tl.sigmoid(gate - gate_shift) * (target - s)).to(next_ND.dtype.element_ty)
        tl.store(next_ND + start + cols, moved, mask=cols < D)
        s = moved.to(tl.float32)
    if INJECT:
        x = tl.load(h_ND + start + cols, mask=cols < D, other=0.0).to(tl.float32)
        if UNIT:
            at = scales_N4 + row * SCALES
            x = reading(x, cols, w_D, b_D, tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), D, NORM, OFFSET)
        q_R = tl.sum(down * (x - s)[None, :], 1)
        tl.store(state_NSR + (row * strips + strip) * R + r, q_R, mask=r < R)


@triton.jit
def correct(
    h_ND, up_DR, scales_N4, state_NSR, out_ND, alpha,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, UNIT: tl.constexpr,
    SP: tl.constexpr, BD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Correct the stream of a strip."""
    row, strip, strips = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    start = row.to(tl.int64) * D
    r, cols = tl.arange(0, RP), strip * BD + tl.arange(0, BD)
    up = weight_tile(up_DR, r, cols, R, D, 1, R).to(tl.float32)
    wait_for_the_last(EARLY)

    h = tl.load(h_ND + start + cols, mask=cols < D, other=0.0).to(tl.float32)
    q_R, strength = total(state_NSR + row * strips * R, r, R, strips, R, SP), alpha
    if UNIT:
        q_R = activate(q_R, False)
        strength = alpha * tl.load(scales_N4 + row * SCALES)
    h += strength * tl.sum(up * q_R[:, None], 0)
    tl.store(out_ND + start + cols, h.to(out_ND.dtype.element_ty), mask=cols < D)
