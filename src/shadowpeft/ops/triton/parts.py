"""What the fused kernels share: loads, sums over splits, activations, the dropout mask, and the tiles' sizes.

Shape legend: N rows (tokens of a batch), D width, R rank, U width of the update's networks, S splits of a
sum. UP and RP are U and R padded to what `tl.dot` takes, BM rows and BD columns of a tile. Every sum over
splits has a fixed order, so results repeat to the last bit.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

# On a CPU, with TRITON_INTERPRET=1: for tests.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# What the kernels serve.
WIDEST = 128
DTYPES = (torch.bfloat16, torch.float32)

# Columns that describe a row: in sums over the coordinates (`project`) and, once settled, what the norm makes
# of it (`scales`).
STATS = 6


class Tile(NamedTuple):
    """A kernel's tile: `stages` is the depth of its pipeline, `registers` the most of a thread (0: any)."""

    rows: int
    cols: int
    warps: int
    stages: int
    registers: int = 0


# Kernel by kernel: for 2-byte streams of many rows, of few (decoding), and for float32.
# `recipes/kernels/boundary.py --sweep` finds them.
TILES: dict[str, tuple[Tile, Tile, Tile]] = {
    "project": (Tile(64, 64, 4, 4), Tile(16, 128, 4, 3), Tile(32, 64, 4, 2)),
    "advance": (Tile(64, 64, 4, 3), Tile(16, 128, 4, 3), Tile(32, 64, 4, 2)),
    "inject": (Tile(64, 128, 8, 3), Tile(16, 128, 4, 3), Tile(32, 64, 4, 2)),
    # A program takes one row, whatever is said of rows here.
    "cross": (Tile(1, 1024, 16, 1), Tile(1, 1024, 16, 1), Tile(1, 512, 16, 1)),
    # A program takes a strip of one row; `recipes/kernels/decode_boundary.py` finds the width.
    "strips": (Tile(1, 256, 8, 1), Tile(1, 256, 8, 1), Tile(1, 256, 8, 1)),
    "pull": (Tile(64, 128, 4, 3), Tile(16, 128, 4, 3), Tile(32, 64, 4, 2)),
    "settle": (Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
    "retreat": (Tile(32, 128, 8, 2, 128), Tile(16, 64, 4, 2), Tile(16, 64, 4, 1)),
    # Without an injection Triton lays 32 rows out twice.
    "retreat_only": (Tile(64, 64, 4, 2), Tile(16, 64, 4, 2), Tile(16, 64, 4, 1)),
    "finish": (Tile(32, 128, 8, 2, 128), Tile(16, 64, 4, 2), Tile(16, 64, 4, 1)),
    "gather": (Tile(16, 128, 4, 1), Tile(16, 128, 4, 1), Tile(16, 128, 4, 1)),
}
FEW_ROWS = 256
MOST_SPLITS = 8
# Up to so many rows, without gradients, `rows` or in a graph `strips` is faster than `forward`.
ROWS_ALONE = 64


def tile_of(kernel: str, dtype: torch.dtype, rows_N: int, widest: int) -> Tile:
    """Return a kernel's tile."""
    many, few, exact = TILES[kernel]
    tile = many
    if dtype == torch.float32:
        tile = exact
    elif rows_N <= FEW_ROWS:
        tile = few
    # The wider the narrow matrices are, the narrower is the tile, so that the sums stay in registers.
    return tile._replace(cols=max(16, tile.cols * 16 // max(16, widest // 2)))


def splits_for(programs: int, most: int, device: torch.device) -> int:
    """Return the number of parts, a power of two, that each program's work is split into.

    The parts together give a GPU about two programs for each of its multiprocessors.
    """
    wanted = _multiprocessors(device) * 3 // 2
    splits = 1
    while splits * 2 <= min(most, MOST_SPLITS) and splits * programs < wanted:
        splits *= 2
    return splits


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def begins_early(device: torch.device) -> bool:
    """Return whether a kernel may be launched before the one ahead of it has ended: from Hopper on."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def is_captured(device: torch.device) -> bool:
    """Return whether launches go into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@triton.jit
def weight_tile(w, k, cols, K, D, along_k, along_d):
    """Load a tile [k, cols] of a matrix with strides `along_k` and `along_d`; zero outside of K x D."""
    return tl.load(
        w + k[:, None] * along_k + cols[None, :] * along_d,
        mask=(k[:, None] < K) & (cols[None, :] < D),
        other=0.0,
    )


@triton.jit
def dot(a, b, acc):
    """Return acc + a b in float32; float32 factors are not rounded to tf32."""
    if INTERPRETED:  # the interpreter's product takes the bits of a bfloat16 for an integer
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def remainder(value, rounded):
    """Return a value's rounding error, itself rounded: with it a factor of a product has twice the digits."""
    return (value - rounded.to(tl.float32)).to(rounded.dtype)


@triton.jit
def summed(part, rows, k, N, K, width, S: tl.constexpr, BM: tl.constexpr, KP: tl.constexpr):
    """Sum columns k of the partial sums, (S, N, width), for some rows."""
    total = tl.zeros((BM, KP), tl.float32)
    at = rows.to(tl.int64)[:, None] * width + k[None, :]
    mask = (rows[:, None] < N) & (k[None, :] < K)
    for i in tl.static_range(S):
        total += tl.load(part + i * N.to(tl.int64) * width + at, mask=mask, other=0.0)
    return total


@triton.jit
def summed_column(part, rows, N, width, S: tl.constexpr, BM: tl.constexpr):
    """Sum one column of the partial sums, (S, N, width), for some rows."""
    total = tl.zeros((BM,), tl.float32)
    at = rows.to(tl.int64) * width
    for i in tl.static_range(S):
        total += tl.load(part + i * N.to(tl.int64) * width + at, mask=rows < N, other=0.0)
    return total


@triton.jit
def summed_vector(part, k, K, width, S: tl.constexpr, KP: tl.constexpr):
    """Sum K of the partial sums, (S, width), that are the same for every row."""
    total = tl.zeros((KP,), tl.float32)
    for i in tl.static_range(S):
        total += tl.load(part + i * width + k, mask=k < K, other=0.0)
    return total


@triton.jit
def columns(kept, rows, k, N, K, width):
    """Load columns k of a narrow matrix, (N, width), for some rows; zero outside."""
    return tl.load(
        kept + rows.to(tl.int64)[:, None] * width + k[None, :],
        mask=(rows[:, None] < N) & (k[None, :] < K),
        other=0.0,
    )


@triton.jit
def put_columns(kept, rows, k, N, K, width, value):
    """Store what `columns` loads."""
    tl.store(
        kept + rows.to(tl.int64)[:, None] * width + k[None, :],
        value,
        mask=(rows[:, None] < N) & (k[None, :] < K),
    )


@triton.jit
def activate(z, GELU: tl.constexpr):
    """Return silu(z), or the exact gelu(z)."""
    if GELU:
        out = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    else:
        out = z * tl.sigmoid(z)
    return out


@triton.jit
def activate_derivative(z, GELU: tl.constexpr):
    """Return the derivative of `activate`."""
    if GELU:
        derivative = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(
            -0.5 * z * z
        )
    else:
        sig = tl.sigmoid(z)
        derivative = sig * (1.0 + z * (1.0 - sig))
    return derivative


@triton.jit
def kept_share(seed, rows, k, site, p):
    """Return the dropout mask [rows, k] of one site: 1 / (1 - p) where a value is kept, else 0."""
    # Philox of (row, column), so that the mask does not depend on the tiles.
    zero = rows[:, None] * 0 + k[None, :] * 0
    bits, _, _, _ = tl.philox(
        tl.load(seed), zero + k[None, :], zero + rows[:, None], zero + site, zero, n_rounds=7
    )
    return tl.where(tl.random.uint_to_uniform_float(bits) >= p, 1.0 / (1.0 - p), 0.0)


@triton.jit(do_not_specialize=["N", "K"])
def mask_kernel(seed, out_NK, N, K, site, p, BM: tl.constexpr, BK: tl.constexpr):
    """Write a dropout mask; for tests."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    put_columns(out_NK, rows, k, N, K, K, kept_share(seed, rows, k, site, p))
