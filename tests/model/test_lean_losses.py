"""A model's training step without logits: equal to the one with them, and never holding what it must not."""

import pytest
import torch
import torch.nn.functional as F
from helpers.families import perturb, tiny_config, tiny_model
from helpers.frozen_heads import Largest
from torch import nn

from shadowpeft import ConfigError, ShadowConfig, arch, attach
from shadowpeft.losses import linear_ce


def shadowed(model_type, dtype=torch.float64, blocks=4, **settings):
    base = tiny_model(model_type, dtype=dtype, config=tiny_config(model_type, num_hidden_layers=blocks))
    model = perturb(attach(base, ShadowConfig(alpha=0.5, dropout=0.0, **settings)))
    assert arch.has_plain_frozen_head(model.base)
    return model.train()


def batch():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 97, (3, 11), generator=generator)
    labels = ids.clone()
    labels[0, :5], labels[1, 8:], labels[2] = -100, -100, -100
    return {"input_ids": ids, "labels": labels}


def outcome(model, **inputs):
    """Return both losses and every gradient of one step."""
    model.zero_grad()
    out = model(**inputs)
    out.loss.backward()
    return out, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", ["paper", "normed"])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gptj", "phi3"])
def test_training_a_model_equals_the_plain_way(model_type, variant, monkeypatch):
    """Catches either head's loss on the wrong state, a lost cap (Gemma 2) or bias (GPT-J), a loss that is
    weighted twice.
    """
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 5 * 97)
    model = shadowed(model_type, variant=variant)
    lean, found = outcome(model, **batch())
    whole, expected = outcome(model, **batch(), skip_logits=False)
    assert lean.logits is None
    assert whole.logits.shape == (3, 11, 97)
    torch.testing.assert_close(
        (lean.loss, lean.shadow_loss), (whole.loss.double(), whole.shadow_loss.double()), rtol=1e-6, atol=0
    )
    assert set(found) == set(expected)
    for name, gradient in expected.items():  # the plain way casts logits to float32
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("count", [7, torch.tensor(7)], ids=["number", "tensor"])
def test_normalised_as_the_trainer_asks(count):
    """Catches a mean where the Trainer counts the whole accumulated batch."""
    model = shadowed("qwen3", torch.float32)
    for extra in ({"num_items_in_batch": count}, {}):
        lean, whole = (model(**batch(), **extra, skip_logits=skip) for skip in (True, False))
        torch.testing.assert_close((lean.loss, lean.shadow_loss), (whole.loss, whole.shadow_loss))


def test_labels_already_shifted():
    model = shadowed("qwen3", torch.float32)
    inputs = batch()
    shifted = F.pad(inputs.pop("labels"), (0, 1), value=-100)[:, 1:].contiguous()
    lean, whole = (model(**inputs, shift_labels=shifted, skip_logits=skip) for skip in (None, False))
    assert lean.logits is None
    torch.testing.assert_close(lean.loss, whole.loss)


def test_whole_steps_hold_no_logits(monkeypatch):
    """Catches logits held beside the loss in training, whole ones or those of unlabelled tokens."""
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 4 * 4000)
    config = tiny_model("qwen3").config
    config.vocab_size = 4000
    model = attach(tiny_model("qwen3", config=config)).train()
    table = 4000 * config.hidden_size
    for skip, held in ((None, table), (False, 3 * 11 * 4000)):
        with Largest() as seen:
            outcome(model, **batch(), skip_logits=skip)
        assert seen.elements == max(table, held)
    assert table < 3 * 11 * 4000 <= 2 * table, "whole logits would show"


def test_when_logits_are_given():
    """Catches evaluation, a plain tuple or a caller who asks for shadow logits that lack what they read."""
    model, inputs = shadowed("qwen3", torch.float32), batch()
    labels = inputs.pop("labels")
    assert model(**inputs, labels=labels).logits is None
    with pytest.warns(UserWarning, match="computed outside the model"):
        assert model(**inputs).logits is not None
    asked = model(**inputs, labels=labels, output_shadow_logits=True)
    assert asked.logits is not None
    assert asked.shadow_logits is not None
    loss, logits, *_ = model(**inputs, labels=labels, return_dict=False)
    torch.testing.assert_close(loss, asked.loss)
    assert torch.equal(logits, asked.logits)
    both = model(**inputs, labels=labels, output_shadow_logits=True, skip_logits=True)
    assert both.logits is None
    assert torch.equal(both.shadow_logits, asked.shadow_logits)
    kept = model(**inputs, labels=labels[:, -4:], logits_to_keep=4)
    torch.testing.assert_close(
        kept.loss, model(**inputs, labels=labels[:, -4:], logits_to_keep=4, skip_logits=False).loss
    )
    model.eval()
    assert model(**inputs, labels=labels).logits is not None
    assert model(**inputs, labels=labels, skip_logits=True).logits is None
    with pytest.raises(ConfigError, match="skip_logits=True leaves nothing"):
        model(**inputs, skip_logits=True)


def test_a_head_that_is_more_than_its_weights_is_called():
    """A trained head gets its gradient, hooks and other kinds of layer act: such heads take the plain way."""
    model = shadowed("phi3", torch.float32)
    head = arch.head_of(model.base)
    expected = model(**batch()).loss
    head.requires_grad_(True)
    out, gradients = outcome(model, **batch())
    assert out.logits is None
    assert gradients["base.lm_head.weight"].abs().sum() > 0
    torch.testing.assert_close(out.loss, expected)
    head.requires_grad_(False)
    handle = head.register_forward_hook(lambda *_: 2 * _[2])
    assert not torch.isclose(model(**batch()).loss, expected)
    handle.remove()
    torch.testing.assert_close(model(**batch()).loss, expected)
    model.base.lm_head = type(
        "Quantised", (nn.Linear,), {"forward": lambda self, x: 2 * F.linear(x, self.weight)}
    )(32, 97, False)
    model.base.lm_head.load_state_dict(head.state_dict())
    model.base.lm_head.requires_grad_(False)
    assert not torch.isclose(model(**batch()).loss, expected)


@pytest.mark.slow
def test_a_whole_training_step_compiles_without_a_break():
    torch._dynamo.reset()
    model, inputs = shadowed("gemma2", torch.float32, blocks=2), batch()
    expected, gradients = outcome(model, **inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    loss = compiled(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, gradients
    )
