"""The fused boundary, backward: from the gradients of h' and s' to those of h, s and every trained weight.

- `pull` takes the gradient of h' to the bottleneck, and `settle_low` goes back through it.
- `retreat` goes back through the state, to s and to T's and G's second matrices.
- `settle_read` goes back through T's and G's activations and the norm's row sums.
- `finish` puts the gradient of h together, and those of the matrices that h met.
- `gather` adds up the weights' gradients: a program of `retreat` and `finish` owns a strip of columns and a
  part of the rows, and keeps its part of them in registers.

The norm's backward pass needs sums over a row of dx x, dx w and dx b. As dx = dz A + dq W_down, they are sums
over the narrow spaces, of dz and dq times x A', w A' and b A', which the forward pass kept. So no kernel has
to go over the columns once more.
"""

import triton
import triton.language as tl

from shadowpeft.ops.triton.parts import (
    activate,
    activate_derivative,
    columns,
    dot,
    kept_share,
    put_columns,
    remainder,
    summed,
    summed_vector,
    weight_tile,
)

# Rows of the weights' partial gradients (parts, 4U + 3R + 4, D):
#   W_down by s' | W_down by x or h | W_up | the norm's weight and bias
#   | T's second matrix | G's | their biases | T's first matrix | G's.


@triton.jit(do_not_specialize=["N"])
def pull(
    grad_ND, up_DR, part_SNR, N, span,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Multiply the gradient of h' by W_up, over `span` columns."""
    split = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    r = tl.arange(0, RP)
    start = rows.to(tl.int64) * D
    e_BR = tl.zeros((BM, RP), tl.float32)
    for d in tl.range(split * span, tl.minimum(split * span + span, D), BD, num_stages=STAGES):
        cols = d + tl.arange(0, BD)
        inside = (rows[:, None] < N) & (cols[None, :] < D)
        grad = tl.load(grad_ND + start[:, None] + cols[None, :], mask=inside, other=0.0)
        up = weight_tile(up_DR, r, cols, R, D, 1, R).to(grad.dtype)
        e_BR = dot(grad, tl.trans(up), e_BR)
    put_columns(part_SNR + split * N.to(tl.int64) * R, rows, r, N, R, R, e_BR)


@triton.jit(do_not_specialize=["N"])
def settle_low(
    part_SNR, kept, seed, dq_NR, low_NR, act_NU, dsize_N, N, alpha, dropout,
    U: tl.constexpr, R: tl.constexpr, UP: tl.constexpr, RP: tl.constexpr,
    UNIT: tl.constexpr, UPDATE: tl.constexpr, INJECT: tl.constexpr,
    GELU: tl.constexpr, DROP: tl.constexpr, FINE: tl.constexpr,
    S: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Go back through the bottleneck.

    Write its value as W_up met it, and what T's and G's second matrices met.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    u, r = tl.arange(0, UP), tl.arange(0, RP)
    width = 2 * R + 6 + 2 * U
    if INJECT:
        e_BR = alpha * summed(part_SNR, rows, r, N, R, R, S, BM, RP)
        q_BR = columns(kept + R, rows, r, N, R, width)
        low_BR = q_BR
        if UNIT:
            low_BR = activate(q_BR, False)
        if DROP == 1:
            share = kept_share(seed, rows, r, 0, dropout)
            low_BR *= share
        strength = tl.zeros((BM,), tl.float32) + 1.0
        if UNIT:
            strength = tl.load(kept + rows.to(tl.int64) * width + 2 * R, mask=rows < N, other=0.0)
            tl.store(dsize_N + rows, tl.sum(e_BR * low_BR, 1), mask=rows < N)
        dq_BR = strength[:, None] * e_BR
        if DROP == 1:
            dq_BR *= share
        if UNIT:
            dq_BR *= activate_derivative(q_BR, False)
        put_columns(dq_NR, rows, r, N, R, R, dq_BR.to(dq_NR.dtype.element_ty))
        put_columns(
            low_NR, rows, r, N, R, R, (alpha * strength[:, None] * low_BR).to(low_NR.dtype.element_ty)
        )
    if UPDATE:
        hidden_t = activate(columns(kept + 2 * R + 6, rows, u, N, U, width), GELU)
        hidden_g = activate(columns(kept + 2 * R + 6 + U, rows, u, N, U, width), GELU)
        if DROP == 1 and not UNIT:
            hidden_t *= kept_share(seed, rows, u, 1, dropout)
        rounded_g = hidden_g.to(act_NU.dtype.element_ty)
        put_columns(act_NU, rows, u, N, U, (2 + FINE) * U, hidden_t.to(act_NU.dtype.element_ty))
        put_columns(act_NU + U, rows, u, N, U, (2 + FINE) * U, rounded_g)
        if FINE:
            put_columns(act_NU + 2 * U, rows, u, N, U, 3 * U, remainder(hidden_g, rounded_g))


@triton.jit(do_not_specialize=["N"])
def retreat(
    dnext_ND, h_ND, s_ND, dq_NR, act_NU, tout_DU, tout_b, gout_DU, gout_b, down_RD, seed,
    ds_ND, hidden_PNU, grads, N, span, gate_shift, dropout,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr, UP: tl.constexpr, RP: tl.constexpr,
    UPDATE: tl.constexpr, INJECT: tl.constexpr, BIAS: tl.constexpr,
    DROP: tl.constexpr, FINE: tl.constexpr, NEXT: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Go back through the state, `span` rows of one strip of columns.

    Write the gradient of s, and sums for T, G and W_down.
    """
    strip, part = tl.program_id(0), tl.program_id(1)
    cols = strip * BD + tl.arange(0, BD)
    u, r = tl.arange(0, UP), tl.arange(0, RP)
    kind: tl.constexpr = h_ND.dtype.element_ty
    if INJECT:
        down = weight_tile(down_RD, r, cols, R, D, D, 1).to(kind)
        down_sum = tl.zeros((RP, BD), tl.float32)
    if UPDATE:
        tout = weight_tile(tout_DU, u, cols, U, D, 1, U).to(kind)
        gout = weight_tile(gout_DU, u, cols, U, D, 1, U).to(kind)
        tout_sum, gout_sum = tl.zeros((UP, BD), tl.float32), tl.zeros((UP, BD), tl.float32)
        if BIAS:
            t_bias = tl.load(tout_b + cols, mask=cols < D, other=0.0).to(tl.float32)
            g_bias = tl.load(gout_b + cols, mask=cols < D, other=0.0).to(tl.float32)
            t_bias_sum, g_bias_sum = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    for n in tl.range(part * span, tl.minimum(part * span + span, N), BM, num_stages=STAGES):
        rows = n + tl.arange(0, BM)
        at = rows.to(tl.int64)[:, None] * D + cols[None, :]
        inside = (rows[:, None] < N) & (cols[None, :] < D)
        s = tl.load(s_ND + at, mask=inside, other=0.0).to(tl.float32)
        dstate = tl.zeros((BM, BD), tl.float32)
        if INJECT:
            dq = columns(dq_NR, rows, r, N, R, R)
            dstate -= dot(dq, down, tl.zeros((BM, BD), tl.float32))
            if DROP == 2:
                share = kept_share(seed, rows, cols, 0, dropout)
                dstate *= share
        if NEXT:
            dstate += tl.load(dnext_ND + at, mask=inside, other=0.0).to(tl.float32)
        if UPDATE:
            hidden_t, hidden_g = (
                columns(act_NU, rows, u, N, U, (2 + FINE) * U),
                columns(act_NU + U, rows, u, N, U, (2 + FINE) * U),
            )
            target = dot(hidden_t, tout, tl.zeros((BM, BD), tl.float32))
            gate = dot(hidden_g, gout, tl.zeros((BM, BD), tl.float32))
            if FINE:
                gate = dot(columns(act_NU + 2 * U, rows, u, N, U, 3 * U), gout, gate)
            if BIAS:
                target += t_bias[None, :]
                gate += g_bias[None, :]
            gate = tl.sigmoid(gate - gate_shift)
            dtarget = gate * dstate
            dgate = dtarget * (1.0 - gate) * (target - s)
            s += gate * (target - s)
            dstate -= dtarget
            if BIAS:
                t_bias_sum += tl.sum(dtarget, 0)
                g_bias_sum += tl.sum(dgate, 0)
            dtarget, dgate = dtarget.to(kind), dgate.to(kind)
            tout_sum = dot(tl.trans(hidden_t), dtarget, tout_sum)
            gout_sum = dot(tl.trans(hidden_g), dgate, gout_sum)
            dhidden = hidden_PNU + strip * N.to(tl.int64) * (2 * U)
            put_columns(
                dhidden, rows, u, N, U, 2 * U, dot(dtarget, tl.trans(tout), tl.zeros((BM, UP), tl.float32))
            )
            put_columns(
                dhidden + U, rows, u, N, U, 2 * U, dot(dgate, tl.trans(gout), tl.zeros((BM, UP), tl.float32))
            )
        tl.store(ds_ND + at, dstate.to(ds_ND.dtype.element_ty), mask=inside)
        if INJECT:
            if DROP == 2:
                s = (s - tl.load(h_ND + at, mask=inside, other=0.0).to(tl.float32)) * share
            down_sum = dot(tl.trans(dq), s.to(kind), down_sum)
    grads += part * (4 * U + 3 * R + 4) * D
    if INJECT:
        put_strip(grads, r, cols, R, D, -down_sum)
    if UPDATE:
        second = grads + (3 * R + 2) * D
        put_strip(second, u, cols, U, D, tout_sum)
        put_strip(second + U * D, u, cols, U, D, gout_sum)
        if BIAS:
            tl.store(second + 2 * U * D + cols, t_bias_sum, mask=cols < D)
            tl.store(second + (2 * U + 1) * D + cols, g_bias_sum, mask=cols < D)


@triton.jit
def put_strip(grads, k, cols, K, D, value):
    """Store K rows of partial gradients of one strip of columns."""
    tl.store(grads + k[:, None] * D + cols[None, :], value, mask=(k[:, None] < K) & (cols[None, :] < D))


@triton.jit(do_not_specialize=["N", "strips"])
def settle_read(
    hidden_PNU, kept, shared, seed, dq_NR, dz_NU, coef_N3, N, strips, dropout,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr, UP: tl.constexpr, RP: tl.constexpr,
    NORM: tl.constexpr, UNIT: tl.constexpr, UPDATE: tl.constexpr, INJECT: tl.constexpr,
    GELU: tl.constexpr, DROP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Go back through T's and G's activations, and find p, c0 and c1 of each row.

    They are what the norm subtracts from the gradient of its input:

    dh = ... + ka w (dx - p x) - c0 - c1 (h - mu)
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    u, r = tl.arange(0, UP), tl.arange(0, RP)
    width = 2 * R + 6 + 2 * U
    dx_x, dx_w, dx_b = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    if UPDATE:
        dt, dg = tl.zeros((BM, UP), tl.float32), tl.zeros((BM, UP), tl.float32)
        line = rows.to(tl.int64)[:, None] * (2 * U) + u[None, :]
        for first in range(0, strips, 8):
            # Eight loads are under way at a time.
            for i in tl.static_range(8):
                at = hidden_PNU + (first + i) * N.to(tl.int64) * (2 * U) + line
                mask = (rows[:, None] < N) & (u[None, :] < tl.where(first + i < strips, U, 0))
                dt += tl.load(at, mask=mask, other=0.0)
                dg += tl.load(at + U, mask=mask, other=0.0)
        t_BU, g_BU = (
            columns(kept + 2 * R + 6, rows, u, N, U, width),
            columns(kept + 2 * R + 6 + U, rows, u, N, U, width),
        )
        if DROP == 1 and not UNIT:
            dt *= kept_share(seed, rows, u, 1, dropout)
        dt = (dt * activate_derivative(t_BU, GELU)).to(dz_NU.dtype.element_ty)
        dg = (dg * activate_derivative(g_BU, GELU)).to(dz_NU.dtype.element_ty)
        put_columns(dz_NU, rows, u, N, U, 2 * U, dt)
        put_columns(dz_NU + U, rows, u, N, U, 2 * U, dg)
        dx_x += tl.sum(dt.to(tl.float32) * t_BU, 1) + tl.sum(dg.to(tl.float32) * g_BU, 1)
        if NORM == 2:
            at = shared + 2 * R + 3
            wt, bt = summed_vector(at, u, U, 0, 1, UP), summed_vector(at + U, u, U, 0, 1, UP)
            wg, bg = summed_vector(at + 2 * U, u, U, 0, 1, UP), summed_vector(at + 3 * U, u, U, 0, 1, UP)
            dx_w += tl.sum(dt.to(tl.float32) * wt[None, :], 1) + tl.sum(dg.to(tl.float32) * wg[None, :], 1)
            dx_b += tl.sum(dt.to(tl.float32) * bt[None, :], 1) + tl.sum(dg.to(tl.float32) * bg[None, :], 1)
    if UNIT and INJECT:
        dq = columns(dq_NR, rows, r, N, R, R).to(tl.float32)
        dx_x += tl.sum(dq * columns(kept, rows, r, N, R, width), 1)
        if NORM == 2:
            dx_w += tl.sum(dq * summed_vector(shared, r, R, 0, 1, RP)[None, :], 1)
            dx_b += tl.sum(dq * summed_vector(shared + R, r, R, 0, 1, RP)[None, :], 1)
    p, c0, c1 = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    at = kept + rows.to(tl.int64) * width + 2 * R
    ka, kb = tl.load(at + 2, mask=rows < N, other=1.0), tl.load(at + 3, mask=rows < N, other=1.0)
    if UNIT:
        p = dx_x / D
    if NORM == 1:
        c1 = 1e-6 * ka * ka * p
    if NORM == 2:
        along_w, along_x = dx_w, dx_x / kb - dx_b
        if UNIT:
            xw, xb = tl.load(at + 4, mask=rows < N, other=0.0), tl.load(at + 5, mask=rows < N, other=0.0)
            along_w -= p * xw
            along_x -= p * (D * (1.0 / kb - 1e-6 * kb) - xb)
        rstd = ka / kb
        c0 = rstd * kb * along_w / D
        c1 = rstd * rstd * kb * along_x / D
    out = coef_N3 + rows.to(tl.int64) * 3
    tl.store(out, p, mask=rows < N)
    tl.store(out + 1, c0, mask=rows < N)
    tl.store(out + 2, c1, mask=rows < N)


@triton.jit(do_not_specialize=["N"])
def finish(
    grad_ND, h_ND, w_D, b_D, dq_NR, low_NR, dz_NU, dsize_N, kept, coef_N3, tin_UD, gin_UD, down_RD, seed,
    dh_ND, grads, N, span, dropout,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr, UP: tl.constexpr, RP: tl.constexpr,
    NORM: tl.constexpr, OFFSET: tl.constexpr, UNIT: tl.constexpr, UPDATE: tl.constexpr, INJECT: tl.constexpr,
    DROP: tl.constexpr, WANTED: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Put the gradient of h together, if `WANTED`, `span` rows of one strip of columns.

    Sum the gradients of the matrices that met h or x.
    """
    strip, part = tl.program_id(0), tl.program_id(1)
    cols = strip * BD + tl.arange(0, BD)
    u, r = tl.arange(0, UP), tl.arange(0, RP)
    kind: tl.constexpr = h_ND.dtype.element_ty
    width = 2 * R + 6 + 2 * U
    if INJECT:
        down = weight_tile(down_RD, r, cols, R, D, D, 1).to(kind)
        up_sum, down_sum = tl.zeros((RP, BD), tl.float32), tl.zeros((RP, BD), tl.float32)
    if UPDATE:
        tin = weight_tile(tin_UD, u, cols, U, D, D, 1).to(kind)
        gin = weight_tile(gin_UD, u, cols, U, D, D, 1).to(kind)
        tin_sum, gin_sum = tl.zeros((UP, BD), tl.float32), tl.zeros((UP, BD), tl.float32)
    if NORM > 0:
        w = tl.load(w_D + cols, mask=cols < D, other=0.0).to(tl.float32) + OFFSET
    if NORM == 2:
        b = tl.load(b_D + cols, mask=cols < D, other=0.0).to(tl.float32)
        w_sum, b_sum = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    for n in tl.range(part * span, tl.minimum(part * span + span, N), BM, num_stages=STAGES):
        rows = n + tl.arange(0, BM)
        ok = rows < N
        line = rows.to(tl.int64)
        at = line[:, None] * D + cols[None, :]
        inside = ok[:, None] & (cols[None, :] < D)
        h = tl.load(h_ND + at, mask=inside, other=0.0)
        x = h.to(tl.float32)
        # dx is the gradient of the reading, gain its derivative by h but for the norm's row sums.
        dh, dx = tl.zeros((BM, BD), tl.float32), tl.zeros((BM, BD), tl.float32)
        if INJECT:
            grad = tl.load(grad_ND + at, mask=inside, other=0.0)
            dq, low = columns(dq_NR, rows, r, N, R, R), columns(low_NR, rows, r, N, R, R)
            up_sum = dot(tl.trans(low), grad, up_sum)
            dh += grad.to(tl.float32)
            if UNIT:
                dsize = tl.load(dsize_N + rows, mask=ok, other=0.0) / D
                dh += dsize[:, None] * tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
                dx = dot(dq, down, dx)
            elif DROP == 2:
                dh += dot(dq, down, dx) * kept_share(seed, rows, cols, 0, dropout)
            else:
                dh = dot(dq, down, dh)
                down_sum = dot(tl.trans(dq), h, down_sum)
        if UPDATE:
            dt, dg = columns(dz_NU, rows, u, N, U, 2 * U), columns(dz_NU + U, rows, u, N, U, 2 * U)
            dx = dot(dg, gin, dot(dt, tin, dx))
        if UNIT or NORM == 2:
            ka = tl.load(kept + line * width + 2 * R + 2, mask=ok, other=0.0)
            gain = ka[:, None]
            if NORM > 0:
                gain = gain * w[None, :]
                c1 = tl.load(coef_N3 + line * 3 + 2, mask=ok, other=0.0)
            if NORM == 2:
                x -= tl.load(kept + line * width + 2 * R + 1, mask=ok, other=0.0)[:, None]
                dh -= tl.load(coef_N3 + line * 3 + 1, mask=ok, other=0.0)[:, None]
                if not UNIT:
                    w_sum += tl.sum(dx * x * ka[:, None], 0)
                    b_sum += tl.sum(dx, 0)
            if NORM > 0:
                dh -= c1[:, None] * x
            x *= gain
            if NORM == 2:
                x += tl.load(kept + line * width + 2 * R + 3, mask=ok, other=0.0)[:, None] * b[None, :]
            p = tl.load(coef_N3 + line * 3, mask=ok, other=0.0)
            dh += gain * (dx - p[:, None] * x)
        else:
            dh += dx
        if UPDATE:
            tin_sum = dot(tl.trans(dt), x.to(kind), tin_sum)
            gin_sum = dot(tl.trans(dg), x.to(kind), gin_sum)
        if INJECT and UNIT:
            down_sum = dot(tl.trans(dq), x.to(kind), down_sum)
        if WANTED:
            tl.store(dh_ND + at, dh.to(dh_ND.dtype.element_ty), mask=inside)
    grads += part * (4 * U + 3 * R + 4) * D
    if INJECT:
        put_strip(grads + R * D, r, cols, R, D, down_sum)
        put_strip(grads + 2 * R * D, r, cols, R, D, up_sum)
    if NORM == 2 and not UNIT:
        tl.store(grads + 3 * R * D + cols, w_sum, mask=cols < D)
        tl.store(grads + (3 * R + 1) * D + cols, b_sum, mask=cols < D)
    if UPDATE:
        first = grads + (3 * R + 4 + 2 * U) * D
        put_strip(first, u, cols, U, D, tin_sum)
        put_strip(first + U * D, u, cols, U, D, gin_sum)


@triton.jit
def add_parts(
    grads, out, cols, first, along_k, along_d,
    K: tl.constexpr, D: tl.constexpr, TALL: tl.constexpr, TWICE: tl.constexpr,
    PARTS: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Add up the partial gradients of one weight, and write them as the weight is stored.

    They are in K rows from `first`; `TWICE` if also in the K rows after them.
    """
    for k0 in tl.static_range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        total = tl.zeros((BK, BD), tl.float32)
        for part in tl.static_range(PARTS):
            total += weight_tile(grads + (part * TALL + first) * D, k, cols, K, D, D, 1)
            if TWICE:
                total += weight_tile(grads + (part * TALL + first + K) * D, k, cols, K, D, D, 1)
        where = out + k[:, None] * along_k + cols[None, :] * along_d
        tl.store(where, total.to(out.dtype.element_ty), mask=(k[:, None] < K) & (cols[None, :] < D))


@triton.jit
def gather(
    grads, down_RD, up_DR, w_D, b_D, tin_UD, tout_DU, tout_b, gin_UD, gout_DU, gout_b,
    D: tl.constexpr, U: tl.constexpr, R: tl.constexpr,
    LEARNED: tl.constexpr, UPDATE: tl.constexpr, INJECT: tl.constexpr, BIAS: tl.constexpr,
    PARTS: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write the weights' gradients from their parts; each program one strip of columns of one weight."""
    cols = tl.program_id(0) * BD + tl.arange(0, BD)
    weight = tl.program_id(1)
    TALL: tl.constexpr = 4 * U + 3 * R + 4
    if INJECT:
        if weight == 0:
            add_parts(grads, down_RD, cols, 0, D, 1, R, D, TALL, True, PARTS, BK, BD)
        if weight == 1:
            add_parts(grads, up_DR, cols, 2 * R, 1, R, R, D, TALL, False, PARTS, BK, BD)
    if UPDATE:
        if weight == 2:
            add_parts(grads, tout_DU, cols, 3 * R + 2, 1, U, U, D, TALL, False, PARTS, BK, BD)
        if weight == 3:
            add_parts(grads, gout_DU, cols, 3 * R + 2 + U, 1, U, U, D, TALL, False, PARTS, BK, BD)
        if weight == 4:
            add_parts(grads, tin_UD, cols, 3 * R + 4 + 2 * U, D, 1, U, D, TALL, False, PARTS, BK, BD)
        if weight == 5:
            add_parts(grads, gin_UD, cols, 3 * R + 4 + 3 * U, D, 1, U, D, TALL, False, PARTS, BK, BD)
        if weight == 6:
            if LEARNED:
                add_parts(grads, w_D, cols, 3 * R, D, 1, 1, D, TALL, False, PARTS, BK, BD)
                add_parts(grads, b_D, cols, 3 * R + 1, D, 1, 1, D, TALL, False, PARTS, BK, BD)
            if BIAS:
                add_parts(grads, tout_b, cols, 3 * R + 2 + 2 * U, D, 1, 1, D, TALL, False, PARTS, BK, BD)
                add_parts(grads, gout_b, cols, 3 * R + 3 + 2 * U, D, 1, 1, D, TALL, False, PARTS, BK, BD)
