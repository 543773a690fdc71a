"""The fused boundary, forward: three kernels that read h, then s, then h again, and write s' and h'.

- `project` takes h to the narrow spaces of T, G and W_down, and sums what the norm needs.
- `advance` settles the norm from these sums and moves the state. Candidate and gate are in registers only.
- `inject` corrects the stream.

The norm is folded into the first product. A reading is x = ka (h - mu) w + kb b with three numbers a row (mu,
ka, kb) that are known only at a row's end, so x A' = ka (h (w A)' - mu sum(w A)) + kb b A'.
"""

import triton
import triton.language as tl

from shadowpeft.ops.triton.parts import (
    activate,
    dot,
    kept_share,
    put_columns,
    remainder,
    summed,
    summed_column,
    summed_vector,
    weight_tile,
)

# Columns of the partial sums (S, N, R + 6 + 2U), where c is h minus a shift:
#   W_down h | sums of |h|, c, c^2, (c w)^2, c w^2, c w b | T h | G h.
# Columns of what is kept of each row for the backward pass (N, 2R + 6 + 2U):
#   x W_down | the bottleneck q | size, mu, ka, kb, x.w, x.b | z of T | z of G.
# What is kept of all rows (2R + 3 + 4U):
#   sums of w W_down, of b W_down | w.w, w.b, b.b | sums of w T, b T, w G, b G.


@triton.jit(do_not_specialize=["N"])
def project(
    h_ND, w_D, b_D, tin_UD, gin_UD, down_RD, part, shared, N, span,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr, UP: tl.constexpr, RP: tl.constexpr,
    NORM: tl.constexpr, OFFSET: tl.constexpr, UNIT: tl.constexpr, UPDATE: tl.constexpr, DOWN: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Multiply rows of h by T's and G's first matrices and W_down, over `span` columns.

    Sum powers of h for the norm.
    """
    split = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    u, r = tl.arange(0, UP), tl.arange(0, RP)
    start = rows.to(tl.int64) * D
    t_BU, g_BU, x_BR = (
        tl.zeros((BM, UP), tl.float32),
        tl.zeros((BM, UP), tl.float32),
        tl.zeros((BM, RP), tl.float32),
    )
    size, c1, c2 = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    v2, v1, vb = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    if NORM == 2:
        # Sums about a coordinate of the row itself: a variance from sums about zero drowns in a large mean.
        shift = tl.load(h_ND + start, mask=rows < N, other=0.0).to(tl.float32)
        wt, bt, wg, bg = (
            tl.zeros((UP,), tl.float32),
            tl.zeros((UP,), tl.float32),
            tl.zeros((UP,), tl.float32),
            tl.zeros((UP,), tl.float32),
        )
        wx, bx = tl.zeros((RP,), tl.float32), tl.zeros((RP,), tl.float32)
        ww, wb, bb = 0.0, 0.0, 0.0
    for d in tl.range(split * span, tl.minimum(split * span + span, D), BD, num_stages=STAGES):
        cols = d + tl.arange(0, BD)
        inside = (rows[:, None] < N) & (cols[None, :] < D)
        h = tl.load(h_ND + start[:, None] + cols[None, :], mask=inside, other=0.0)
        f = h.to(tl.float32)
        if NORM > 0:
            w = tl.where(cols < D, tl.load(w_D + cols, mask=cols < D, other=0.0).to(tl.float32) + OFFSET, 0.0)
        if NORM == 2:
            b = tl.load(b_D + cols, mask=cols < D, other=0.0).to(tl.float32)
            f = tl.where(inside, f - shift[:, None], 0.0)
            c1 += tl.sum(f, 1)
            if UNIT:
                v1 += tl.sum(f * (w * w)[None, :], 1)
                vb += tl.sum(f * (w * b)[None, :], 1)
                ww += tl.sum(w * w, 0)
                wb += tl.sum(w * b, 0)
                bb += tl.sum(b * b, 0)
        if UNIT:
            size += tl.sum(tl.abs(h.to(tl.float32)), 1)
            if NORM > 0:
                v = f * w[None, :]
                v2 += tl.sum(v * v, 1)
        if UNIT or NORM == 2:
            c2 += tl.sum(f * f, 1)
        if UPDATE:
            t_UD = weight_tile(tin_UD, u, cols, U, D, D, 1)
            g_UD = weight_tile(gin_UD, u, cols, U, D, D, 1)
            if NORM == 2:
                bt += tl.sum(t_UD.to(tl.float32) * b[None, :], 1)
                bg += tl.sum(g_UD.to(tl.float32) * b[None, :], 1)
            if NORM > 0:
                t_UD = t_UD.to(tl.float32) * w[None, :]
                g_UD = g_UD.to(tl.float32) * w[None, :]
            t_UD, g_UD = t_UD.to(h.dtype), g_UD.to(h.dtype)
            if NORM == 2:
                wt += tl.sum(t_UD.to(tl.float32), 1)
                wg += tl.sum(g_UD.to(tl.float32), 1)
            t_BU = dot(h, tl.trans(t_UD), t_BU)
            g_BU = dot(h, tl.trans(g_UD), g_BU)
        if DOWN:
            d_RD = weight_tile(down_RD, r, cols, R, D, D, 1)
            if UNIT and NORM == 2:
                bx += tl.sum(d_RD.to(tl.float32) * b[None, :], 1)
            if UNIT and NORM > 0:
                d_RD = d_RD.to(tl.float32) * w[None, :]
            elif (
                NORM == 2
            ):  # through registers like T's and G's matrices: see docs/develop/kernels.md, "Exact"
                d_RD = tl.where((cols < D)[None, :], d_RD.to(tl.float32), 0.0)
            d_RD = d_RD.to(h.dtype)
            if UNIT and NORM == 2:
                wx += tl.sum(d_RD.to(tl.float32), 1)
            x_BR = dot(h, tl.trans(d_RD), x_BR)
    width = R + 6 + 2 * U
    part += split * N.to(tl.int64) * width
    if DOWN:
        put_columns(part, rows, r, N, R, width, x_BR)
    if UNIT or NORM == 2:
        at = part + rows.to(tl.int64) * width + R
        tl.store(at, size, mask=rows < N)
        tl.store(at + 1, c1, mask=rows < N)
        tl.store(at + 2, c2, mask=rows < N)
        tl.store(at + 3, v2, mask=rows < N)
        tl.store(at + 4, v1, mask=rows < N)
        tl.store(at + 5, vb, mask=rows < N)
    if UPDATE:
        put_columns(part + R + 6, rows, u, N, U, width, t_BU)
        put_columns(part + R + 6 + U, rows, u, N, U, width, g_BU)
    if NORM == 2:
        if tl.program_id(0) == 0:
            shared += split * (2 * R + 3 + 4 * U)
            if DOWN:
                tl.store(shared + r, wx, mask=r < R)
                tl.store(shared + R + r, bx, mask=r < R)
            tl.store(shared + 2 * R, ww)
            tl.store(shared + 2 * R + 1, wb)
            tl.store(shared + 2 * R + 2, bb)
            if UPDATE:
                narrow = shared + 2 * R + 3
                tl.store(narrow + u, wt, mask=u < U)
                tl.store(narrow + U + u, bt, mask=u < U)
                tl.store(narrow + 2 * U + u, wg, mask=u < U)
                tl.store(narrow + 3 * U + u, bg, mask=u < U)


@triton.jit
def scales(
    h_ND, part, shared, rows, N, eps,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr, NORM: tl.constexpr, UNIT: tl.constexpr,
    S: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Return a row's mean|h|, the mu, ka and kb of its reading, x.w and x.b, from the sums over the row."""
    width = R + 6 + 2 * U
    zero = tl.zeros((BM,), tl.float32)
    size, mu, ka, kb, xw, xb = zero, zero, zero + 1.0, zero + 1.0, zero, zero
    if UNIT:
        size = summed_column(part + R, rows, N, width, S, BM) / D
    if UNIT or NORM == 2:
        c2 = summed_column(part + R + 2, rows, N, width, S, BM) / D
    if UNIT and NORM == 0:
        ka = tl.rsqrt(c2 + 1e-6)
    if UNIT and NORM == 1:
        # h w / rms(h) over its own rms: rms(h) cancels but for the two epsilons.
        v2 = summed_column(part + R + 3, rows, N, width, S, BM) / D
        ka = tl.rsqrt(v2 + 1e-6 * (c2 + eps))
    if NORM == 2:
        c1 = summed_column(part + R + 1, rows, N, width, S, BM) / D
        mu = c1 + tl.load(h_ND + rows.to(tl.int64) * D, mask=rows < N, other=0.0).to(tl.float32)
        ka = tl.rsqrt(tl.maximum(c2 - c1 * c1, 0.0) + eps)
        if UNIT:
            v2 = summed_column(part + R + 3, rows, N, width, S, BM)
            v1 = summed_column(part + R + 4, rows, N, width, S, BM)
            vb = summed_column(part + R + 5, rows, N, width, S, BM)
            ww, wb, bb = 0.0, 0.0, 0.0
            for i in tl.static_range(S):
                here = shared + i * (2 * R + 3 + 4 * U) + 2 * R
                ww += tl.load(here)
                wb += tl.load(here + 1)
                bb += tl.load(here + 2)
            vb = vb - c1 * wb
            squares = ka * ka * (v2 - 2.0 * c1 * v1 + c1 * c1 * ww) + 2.0 * ka * vb + bb
            kb = tl.rsqrt(tl.maximum(squares, 0.0) / D + 1e-6)
            ka = ka * kb
            xw = ka * (v1 - c1 * ww) + kb * wb
            xb = ka * vb + kb * bb
    return size, mu, ka, kb, xw, xb


@triton.jit
def narrow_reading(
    part, shared, first, first_shared, rows, k, mu, ka, kb, N,
    K: tl.constexpr, KP: tl.constexpr, U: tl.constexpr, R: tl.constexpr, NORM: tl.constexpr,
    S: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Return x A' of a narrow matrix A from the sums h (w A)': apply the norm that was folded into A."""
    z_BK = summed(part + first, rows, k, N, K, R + 6 + 2 * U, S, BM, KP)
    if NORM == 2:
        sums_w = summed_vector(shared + first_shared, k, K, 2 * R + 3 + 4 * U, S, KP)
        sums_b = summed_vector(shared + first_shared + K, k, K, 2 * R + 3 + 4 * U, S, KP)
        z_BK = ka[:, None] * (z_BK - mu[:, None] * sums_w[None, :]) + kb[:, None] * sums_b[None, :]
    else:
        z_BK = ka[:, None] * z_BK
    return z_BK


@triton.jit(do_not_specialize=["N"])
def advance(
    h_ND, s_ND, tin_b, tout_DU, tout_b, gin_b, gout_DU, gout_b, down_RD, part, shared, seed,
    next_ND, state_SNR, kept, kept_shared, N, span, eps, gate_shift, dropout,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr, UP: tl.constexpr, RP: tl.constexpr,
    NORM: tl.constexpr, UNIT: tl.constexpr, UPDATE: tl.constexpr, INJECT: tl.constexpr, DOWN: tl.constexpr,
    GELU: tl.constexpr, BIAS: tl.constexpr, DROP: tl.constexpr, FINE: tl.constexpr,
    S: tl.constexpr, SP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Settle the norm, open the gate, move the state over `span` columns, and multiply it by W_down."""
    split = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    u, r = tl.arange(0, UP), tl.arange(0, RP)
    width = 2 * R + 6 + 2 * U
    start = rows.to(tl.int64) * D
    size, mu, ka, kb, xw, xb = scales(h_ND, part, shared, rows, N, eps, D, U, R, NORM, UNIT, S, BM)
    if UPDATE:
        t_BU = narrow_reading(
            part, shared, R + 6, 2 * R + 3, rows, u, mu, ka, kb, N, U, UP, U, R, NORM, S, BM
        )
        g_BU = narrow_reading(
            part, shared, R + 6 + U, 2 * R + 3 + 2 * U, rows, u, mu, ka, kb, N, U, UP, U, R, NORM, S, BM
        )
        if BIAS:
            t_BU += tl.load(tin_b + u, mask=u < U, other=0.0).to(tl.float32)[None, :]
            g_BU += tl.load(gin_b + u, mask=u < U, other=0.0).to(tl.float32)[None, :]
        hidden_t, hidden_g = activate(t_BU, GELU), activate(g_BU, GELU)
        if DROP == 1 and not UNIT:
            hidden_t *= kept_share(seed, rows, u, 1, dropout)
        hidden_t, exact_g = hidden_t.to(h_ND.dtype.element_ty), hidden_g
        hidden_g = exact_g.to(h_ND.dtype.element_ty)
        if FINE:
            rest_g = remainder(exact_g, hidden_g)
    if split == 0:
        if UPDATE:
            put_columns(kept + 2 * R + 6, rows, u, N, U, width, t_BU)
            put_columns(kept + 2 * R + 6 + U, rows, u, N, U, width, g_BU)
        if DOWN:
            if UNIT:
                x_BR = narrow_reading(part, shared, 0, 0, rows, r, mu, ka, kb, N, R, RP, U, R, NORM, S, BM)
            else:
                x_BR = summed(part, rows, r, N, R, R + 6 + 2 * U, S, BM, RP)
            put_columns(kept, rows, r, N, R, width, x_BR)
        at = kept + rows.to(tl.int64) * width + 2 * R
        tl.store(at, size, mask=rows < N)
        tl.store(at + 1, mu, mask=rows < N)
        tl.store(at + 2, ka, mask=rows < N)
        tl.store(at + 3, kb, mask=rows < N)
        tl.store(at + 4, xw, mask=rows < N)
        tl.store(at + 5, xb, mask=rows < N)
        if NORM == 2:
            if tl.program_id(0) == 0:
                k = tl.arange(0, SP)
                total = summed_vector(shared, k, 2 * R + 3 + 4 * U, 2 * R + 3 + 4 * U, S, SP)
                tl.store(kept_shared + k, total, mask=k < 2 * R + 3 + 4 * U)
    state_BR = tl.zeros((BM, RP), tl.float32)
    for d in tl.range(split * span, tl.minimum(split * span + span, D), BD, num_stages=STAGES):
        cols = d + tl.arange(0, BD)
        inside = (rows[:, None] < N) & (cols[None, :] < D)
        s = tl.load(s_ND + start[:, None] + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        if UPDATE:
            target = dot(
                hidden_t,
                weight_tile(tout_DU, u, cols, U, D, 1, U).to(hidden_t.dtype),
                tl.zeros((BM, BD), tl.float32),
            )
            gout = weight_tile(gout_DU, u, cols, U, D, 1, U).to(hidden_g.dtype)
            gate = dot(hidden_g, gout, tl.zeros((BM, BD), tl.float32))
            if FINE:
                gate = dot(rest_g, gout, gate)
            if BIAS:
                target += tl.load(tout_b + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
                gate += tl.load(gout_b + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
            moved = (s + tl.sigmoid(gate - gate_shift) * (target - s)).to(next_ND.dtype.element_ty)
            tl.store(next_ND + start[:, None] + cols[None, :], moved, mask=inside)
            s = moved.to(tl.float32)
        if INJECT:
            if DROP == 2:
                h = tl.load(h_ND + start[:, None] + cols[None, :], mask=inside, other=0.0).to(tl.float32)
                s = (s - h) * kept_share(seed, rows, cols, 0, dropout)
            down = weight_tile(down_RD, r, cols, R, D, D, 1).to(h_ND.dtype.element_ty)
            state_BR = dot(s.to(h_ND.dtype.element_ty), tl.trans(down), state_BR)
    if INJECT:
        put_columns(state_SNR + split * N.to(tl.int64) * R, rows, r, N, R, R, state_BR)


@triton.jit(do_not_specialize=["N"])
def inject(
    h_ND, up_DR, state_SNR, seed, kept, out_ND, N, span, alpha, dropout,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    UNIT: tl.constexpr, DROP: tl.constexpr,
    S: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Correct the stream over `span` columns: h' = h + alpha * size * low W_up."""
    split = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    r = tl.arange(0, RP)
    width = 2 * R + 6 + 2 * U
    start = rows.to(tl.int64) * D
    q_BR = -summed(state_SNR, rows, r, N, R, R, S, BM, RP)
    mask = (rows[:, None] < N) & (r[None, :] < R)
    if DROP != 2:
        q_BR += tl.load(kept + rows.to(tl.int64)[:, None] * width + r[None, :], mask=mask, other=0.0)
    if split == 0:
        put_columns(kept + R, rows, r, N, R, width, q_BR)
    strength = tl.zeros((BM,), tl.float32) + alpha
    low_BR = q_BR
    if UNIT:
        low_BR = activate(q_BR, False)
        strength *= tl.load(kept + rows.to(tl.int64) * width + 2 * R, mask=rows < N, other=0.0)
    if DROP == 1:
        low_BR *= kept_share(seed, rows, r, 0, dropout)
    low_BR = low_BR.to(h_ND.dtype.element_ty)
    for d in tl.range(split * span, tl.minimum(split * span + span, D), BD, num_stages=STAGES):
        cols = d + tl.arange(0, BD)
        inside = (rows[:, None] < N) & (cols[None, :] < D)
        h = tl.load(h_ND + start[:, None] + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        up = weight_tile(up_DR, r, cols, R, D, 1, R).to(low_BR.dtype)
        h += strength[:, None] * dot(low_BR, up, tl.zeros((BM, BD), tl.float32))
        tl.store(out_ND + start[:, None] + cols[None, :], h.to(out_ND.dtype.element_ty), mask=inside)
