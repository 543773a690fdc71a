"""What the kernels share: the dropout mask."""

import math

import pytest
import torch
from helpers.boundary_cases import DEVICE, FLOAT32, Kind, draw, errors, in_float64, run
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.poison import poisoned  # noqa: F401 - a fixture
from torch import Tensor

from shadowpeft.ops import reference

pytest.importorskip("triton")

from shadowpeft.ops.triton import op, parts

pytestmark = ignore_overflow


def mask(seed: Tensor, rows: int, columns: int, site: int, p: float) -> Tensor:
    """The mask that the kernels make, written out by one of their functions."""
    out = torch.empty(rows, columns, device=DEVICE)
    parts.mask_kernel[(-(-rows // 32), -(-columns // 32))](seed, out, rows, columns, site, p, BM=32, BK=32)
    return out


def test_masks_drop_their_share_at_random() -> None:
    """Catches a mask that repeats over rows, columns, sites or seeds, and one that keeps too much or too
    little.
    """
    seeds = [torch.tensor([n], device=DEVICE) for n in (3, 4, 3 + 2**40)]
    masks = [mask(seed, 96, 80, site, 0.3) for seed in seeds for site in (0, 1)]
    for one in masks:
        assert set(one.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
        assert (one > 0).float().mean().item() == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / one.numel()))
    rows = torch.cat([*masks, *(one.T[:80, :80].contiguous() for one in masks)]).gt(0)
    assert len(rows.unique(dim=0)) == len(rows)
    agree = (masks[0].gt(0) == masks[1].gt(0)).float().mean().item()
    assert agree == pytest.approx(0.7**2 + 0.3**2, abs=0.03)


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_dropout_is_the_reference_s_with_the_same_mask(
    variant: str, halves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a mask at another place, another mask on the way back, and one that depends on how the work is
    tiled.
    """
    kind = Kind(variant, "rms" if variant == "normed" else "none", (2, 20), 70, 5, 3, halves, dropout=0.4)
    drawn = draw(kind)
    torch.manual_seed(11)
    seed = torch.randint(2**62, (1,), device=DEVICE)

    def masked(x: Tensor, p: float) -> Tensor:
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        site = 1 if width == kind.U else 0
        return x * mask(seed, rows, width, site, p).to(x.dtype).view(x.shape)

    torch.manual_seed(11)
    got = run(op.boundary, drawn)
    monkeypatch.setattr(reference.F, "dropout", masked)
    truth, plain = run(reference.boundary, in_float64(drawn)), run(reference.boundary, drawn)
    mine, theirs = errors(got, truth), errors(plain, truth)
    assert all(mine[name] <= FLOAT32["times"] * theirs[name] + FLOAT32["floor"] for name in truth), (
        mine,
        theirs,
    )


def test_tiles_are_narrower_beside_wide_matrices() -> None:
    """Catches sums that do not fit the registers, and a tile for another type or number of rows."""
    many, few, exact = parts.TILES["finish"]
    assert parts.tile_of("finish", torch.bfloat16, parts.FEW_ROWS + 1, widest=16) == many
    assert parts.tile_of("finish", torch.bfloat16, parts.FEW_ROWS, widest=16) == few
    assert parts.tile_of("finish", torch.float32, parts.FEW_ROWS + 1, widest=16) == exact
    assert parts.tile_of("finish", torch.bfloat16, parts.FEW_ROWS + 1, widest=128).cols == many.cols // 4
    assert parts.tile_of("finish", torch.float32, 1, widest=4096).cols == 16


def test_work_is_split_until_the_device_is_full() -> None:
    """Catches more parts than there is work, or than are added up, and a number that is no power of two."""
    cpu = torch.device("cpu")  # taken for three multiprocessors: four programs are enough
    assert [parts.splits_for(programs, 100, cpu) for programs in (1, 2, 3, 4, 9)] == [4, 2, 2, 1, 1]
    assert parts.splits_for(1, most=3, device=cpu) == 2
    assert parts.splits_for(0, most=100, device=cpu) == parts.MOST_SPLITS


def test_nothing_begins_early_or_is_captured_off_a_gpu() -> None:
    """Catches an option of NVIDIA's that is asked for elsewhere."""
    cpu = torch.device("cpu")
    assert not parts.begins_early(cpu)
    assert not parts.is_captured(cpu)
