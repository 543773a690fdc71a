"""What teaches a draft head: the attached answer, and nothing of the model but the head learns."""

from typing import Any

import pytest
import torch
from helpers.families import attached, perturb, tiny_model, token_ids
from helpers.family_cases import CONFIG
from torch import Tensor, nn

from shadowpeft import ShadowedModel, arch, losses
from shadowpeft.model import draft_loss as draft_losses
from shadowpeft.model import drafting
from shadowpeft.model.draft_loss import draft_loss, next_tokens


@pytest.fixture(params=["llama", "gemma2"])
def model(request: pytest.FixtureRequest) -> ShadowedModel:
    """A base without a cap of its logits and one with it, beside a head that is not fresh."""
    model = perturb(attached(tiny_model(request.param), CONFIG))
    nn.init.normal_(model.adapter.new_draft_head(5).up.weight, std=0.5)
    return model


def batch() -> dict[str, Tensor]:
    ids, mask = token_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    labels = ids.clone()
    labels[:, :4] = -100
    mask[2, 7:], labels[2, 7:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("kind", ["kl", "lk"])
@pytest.mark.parametrize("is_plain", [True, False], ids=["lean", "plain"])
def test_the_loss_is_that_of_the_drafts_and_only_their_head_learns(
    model: ShadowedModel, kind: Any, is_plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches s^(0) in the place of what the head makes of it, and a gradient that reaches anything else."""
    monkeypatch.setattr("shadowpeft.arch.has_plain_frozen_head", lambda base: is_plain)
    given, adapter = batch(), model.adapter
    out = model(given["input_ids"], attention_mask=given["attention_mask"], use_cache=False)
    s_BTD = adapter.shadow(given["input_ids"], None, given["attention_mask"], None, None)
    head, base = adapter.draft_head, model.base
    assert head is not None
    assert base is not None
    d_BTD = s_BTD + s_BTD @ head.down.weight.T @ head.up.weight.T
    logits_BTV = base.lm_head(d_BTD)
    if base.config.model_type == "gemma2":
        logits_BTV = 3.0 * (logits_BTV / 3.0).tanh()
    wanted = losses.next_token_divergence(out.logits, logits_BTV, given["labels"], None, None, kind)
    loss = draft_loss(model, given, kind)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    loss.backward()
    learns = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert learns == {f"adapters.default.draft_head.{name}.weight" for name in ("down", "up")}


def test_next_tokens_are_the_likeliest_of_either_side(
    model: ShadowedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the shadow's own answer in the place of the draft's, and a part of the tokens that is lost."""
    monkeypatch.setattr(draft_losses, "_AT_A_TIME", 4)
    given = batch()
    out = model(given["input_ids"], attention_mask=given["attention_mask"], use_cache=False)
    assert model.base is not None
    s_BTD = model.adapter.shadow(given["input_ids"], None, given["attention_mask"], None, None)
    own_BT, drafted_BT = next_tokens(model, given)
    assert torch.equal(own_BT, out.logits.argmax(-1))
    assert torch.equal(drafted_BT, model.base.lm_head(model.adapter.for_drafts(s_BTD)).argmax(-1))
    assert not torch.equal(drafted_BT, model.base.lm_head(s_BTD).argmax(-1))


def test_nothing_but_the_drafts_reads_the_head(model: ShadowedModel) -> None:
    """Catches an attached or detached answer that moves, by a bit, with what drafts alone should read."""
    ids = token_ids(2, 9)
    answers = []
    for _ in range(2):
        out = model(ids, labels=ids, output_shadow_logits=True)
        answers.append((out.logits, out.shadow_logits, out.loss, model.detached()(ids).logits))
        with torch.no_grad():
            for weight in model.adapter.draft_head.parameters():
                weight.add_(1.0)
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))
    s_11D = torch.randn(1, 1, 32)
    drafts_1V = drafting._Steps(model, "default", torch.tensor([[0]]), None).head(s_11D)
    assert model.base is not None
    torch.testing.assert_close(drafts_1V, arch.logits(model.base, model.adapter.for_drafts(s_11D))[:, -1])
    assert not torch.allclose(drafts_1V, arch.logits(model.base, s_11D)[:, -1])


def test_training_the_adapter_leaves_the_head_alone(model: ShadowedModel) -> None:
    """Catches a weight that asks for a gradient that never comes."""
    model.set_adapter("default")
    model.train()(token_ids(2, 9), labels=token_ids(2, 9)).loss.backward()
    for name, weight in model.adapters.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
        assert weight.requires_grad == ("draft_head" not in name), name
