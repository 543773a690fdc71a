"""A method is removed from the base without a trace."""

import pytest
import torch
from helpers.benches import spec

from shadowpeft.bench import measure, methods
from shadowpeft.bench.settings import TrainBench


@pytest.mark.parametrize(
    "text",
    [
        "lora",
        "dora",
        "lora@1/2",
        "lora-chunked",
        "peft-shadow",
        "shadow-peft",
        "shadow:reference",
        "shadow@2",
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_method_comes_off_without_a_trace(text, checkpointing, snapshot, ids):
    """Catches layers, hooks, flags or attributes of one method on the base when the next is timed."""
    base, settings = snapshot.base, TrainBench(checkpointing=checkpointing, warmup=0, repeats=1)
    names, marks = [name for name, _ in base.named_parameters()], set(vars(base))
    with torch.no_grad():
        before = base(ids).logits
    applied = methods.apply(spec(text), base, settings)
    measure.prepare(applied, settings)
    turn = measure.train(measure.Runner(applied, False), base, ids, settings)
    assert len(turn.ms) == 1
    assert applied.trained()
    snapshot.restore()
    assert [name for name, _ in base.named_parameters()] == names
    assert set(vars(base)) == marks
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in base.parameters())
    assert not any(
        hooks
        for module in base.modules()
        for name, hooks in vars(module).items()
        if "_forward_" in name and "hooks" in name
    )
    assert not any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    with torch.no_grad():
        assert torch.equal(base(ids).logits, before)
