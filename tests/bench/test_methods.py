"""The methods that are timed are those that a user would build."""

import pytest
import torch
from helpers.benches import CPU, spec

from shadowpeft import arch
from shadowpeft.bench import measure, methods, shapes
from shadowpeft.bench.settings import TrainBench
from shadowpeft.errors import UserError
from shadowpeft.shadow.open_settings import settle


def test_the_floor_hands_gradients_through_every_block_and_keeps_none(snapshot, ids):
    """Catches a floor that is too low, since nothing asks its lower blocks for a gradient."""
    losses = []
    for text in ("base", "base-chunked"):
        applied = methods.apply(spec(text), snapshot.base, TrainBench())
        x_BTD, same = applied.inputs(ids)
        loss = applied.loss(x_BTD, same)
        loss.backward()
        assert x_BTD.grad.any()
        assert applied.trained() == []
        losses.append(loss.item())
    assert losses == pytest.approx([snapshot.base(ids, labels=ids).loss.item()] * 2, rel=1e-5)


def test_methods_are_what_a_user_would_build(snapshot, ids):
    """Catches LoRA of another rank or on other layers, and a shadow with other settings than the defaults."""
    linear = sum(isinstance(module, torch.nn.Linear) for module in arch.blocks_of(snapshot.base).modules())
    for text, layers in (("lora", linear), ("lora@1/2", linear // 2), ("lora@3", linear // 4)):
        applied = methods.apply(spec(text), snapshot.base, TrainBench())
        trained = [name for name, parameter in applied.model.named_parameters() if parameter.requires_grad]
        assert len(trained) == 2 * layers
        assert {
            parameter.shape[0] for name, parameter in applied.model.named_parameters() if "lora_A" in name
        } == {8}
        assert all(
            int(name.split("layers.")[1].split(".")[0]) >= (applied.inject_from or 0) for name in trained
        )
        snapshot.restore()
    applied = methods.apply(spec("shadow"), snapshot.base, TrainBench())
    assert applied.model.adapter.settings == settle(snapshot.base.config, methods.config_of(None))
    snapshot.restore()
    applied = methods.apply(spec("shadow@2"), snapshot.base, TrainBench(variant="peft"))
    assert (applied.model.adapter.settings.variant, applied.inject_from) == ("peft", 2)
    snapshot.restore()


@pytest.mark.parametrize("choice", ["base", "float32", "autocast"])
@pytest.mark.parametrize("text", ["lora", "peft-shadow", "shadow-peft", "shadow:reference"])
def test_types_of_what_is_trained(text, choice, ids):
    """Catches LoRA in float32 beside a shadow in bfloat16: then their times are not of the same work."""
    base = shapes.build("tiny", CPU, torch.bfloat16, 0)
    settings = TrainBench(adapter_dtype=choice, warmup=0, repeats=1)
    (typed,) = spec(text).typed(settings.trained_in)
    if (text, choice) == ("shadow-peft", "float32"):
        with pytest.raises(UserError, match="under autocast alone"):
            methods.apply(typed, base, settings)
        return
    applied = methods.apply(typed, base, settings)
    found = {parameter.dtype for parameter in applied.trained()}
    wanted = {torch.bfloat16 if choice == "base" else torch.float32}
    if (text, choice) == ("peft-shadow", "float32"):
        wanted = {torch.bfloat16, torch.float32}
    assert found == wanted
    measure.prepare(applied, settings)
    measure.train(measure.Runner(applied, False), base, ids, settings)
