"""The numerical test: a wrong implementation costs the whole run."""

import pytest
import torch
from helpers.benches import CPU, command

from shadowpeft.bench import measure, shapes
from shadowpeft.bench.check import check
from shadowpeft.bench.measurements import read
from shadowpeft.bench.settings import TrainBench
from shadowpeft.bench.snapshot import BaseSnapshot
from shadowpeft.cli import main
from shadowpeft.ops import Crossing, choice, reference


@pytest.mark.parametrize("wrong", ["forward", "backward"])
def test_red_reports_nothing(wrong, tmp_path, capsys, monkeypatch):
    """Catches a wrong implementation whose speed is reported all the same; rows of earlier runs stay."""
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base", rows, "--rounds", "1")) == 0
    before = rows.read_text(encoding="utf-8")

    def spoiled(*args):
        h_BTD, s_BTD = reference.boundary(*args)
        return (1.001 * h_BTD if wrong == "forward" else h_BTD + 0.001 * (h_BTD - h_BTD.detach())), s_BTD

    monkeypatch.setattr(choice, "compiled", spoiled)
    monkeypatch.setattr(choice, "_require_compiler", lambda: None)
    assert main(command("train", "base,shadow:compile", rows, "--rounds", "1")) != 0
    said = capsys.readouterr().err
    assert "nothing is reported, since the numerical test is red" in said.splitlines()[-1]
    assert "'compile'" in said.splitlines()[-1]
    assert rows.read_text(encoding="utf-8") == before


def test_red_while_compiling_takes_back_what_was_written(tmp_path, capsys, monkeypatch):
    def wrong(graph, examples):
        return lambda *args: [out * 1.01 if out.dtype.is_floating_point else out for out in graph(*args)]

    monkeypatch.setattr(measure, "COMPILER", wrong)
    rows = tmp_path / "rows.jsonl"
    assert (
        main(command("forward", "base,shadow:reference", rows, "--rounds", "1", "--compiled", "shadow")) != 0
    )
    assert "nothing is reported" in capsys.readouterr().err.splitlines()[-1]
    assert read(rows) == []


def in_float32(h_BTD, s_BTD, crossing):
    """Cross a boundary in float32 and round once: nearer to the truth than the reference is."""

    def wide(weights):
        return type(weights)(*(w.float() if isinstance(w, torch.Tensor) else w for w in weights))

    widened = Crossing(
        crossing.update_w and wide(crossing.update_w),
        crossing.inject_w and wide(crossing.inject_w),
        crossing.rule,
        crossing.norm,
    )
    results = reference.boundary(h_BTD.float(), s_BTD.float(), widened)
    return tuple(value.to(h_BTD.dtype) for value in results)


@pytest.mark.parametrize("seed", [7, 29])
def test_a_more_exact_implementation_is_never_red(seed, monkeypatch):
    """Catches a judgement of the mean loss: from these seeds the reference's tokens' errors cancel in it."""
    monkeypatch.setattr(choice, "compiled", in_float32)
    monkeypatch.setattr(choice, "_require_compiler", lambda: None)
    snapshot = BaseSnapshot(shapes.build("tiny", CPU, torch.bfloat16, 0))
    ids = torch.randint(3, 512, (2, 16), generator=torch.Generator().manual_seed(seed))
    check(snapshot, ["compile"], ids, TrainBench(seed=seed), "float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numerical_test_leaves_the_base_as_it_was(dtype, ids):
    """Catches weights or rotary frequencies that do not survive the way to higher precision and back."""
    base = shapes.build("tiny", CPU, dtype, 0)
    before = {name: tensor.clone() for name, tensor in [*base.named_parameters(), *base.named_buffers()]}
    for trained_in in ("float32", "base"):
        assert 0 < check(BaseSnapshot(base), ["reference"], ids, TrainBench(), trained_in) < 0.1
    after = dict([*base.named_parameters(), *base.named_buffers()])
    assert after.keys() == before.keys()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor)
        for name, tensor in before.items()
    )
