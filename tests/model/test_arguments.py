"""Arguments of a call: those that the base knows are taken, all others are refused."""

from contextlib import nullcontext

import pytest
import torch
from helpers.families import attached, tiny_model, token_ids

from shadowpeft import UserError


@pytest.mark.parametrize(
    ("family", "given", "sentence"),
    [
        ("llama", {"adapter_names": ["default"] * 2}, "call once for each"),
        ("llama", {"output_hidden_state": True}, r"did you mean .output_hidden_states."),
        ("bloom", {"position_id": torch.arange(9)}, "no argument 'position_id'"),
        ("gpt2", {"token_type_ids": torch.ones(2, 9, dtype=torch.long)}, "only the base would read them"),
        ("gpt2", {"encoder_hidden_states": torch.ones(2, 9, 32)}, "no encoder"),
        ("qwen3_moe", {"output_router_logits": True}, "no auxiliary loss"),
    ],
)
def test_what_would_be_ignored_is_refused(family, given, sentence):
    """Catches an argument that vanishes, or that the base applies and its shadow does not."""
    model = attached(tiny_model(family))
    with pytest.raises(UserError, match=sentence):
        model(token_ids(2, 9), **given)


def test_a_mixtures_setting_for_its_routers_loss_is_refused(ids):
    """Catches a loss without the auxiliary part that the configuration asks for."""
    base = tiny_model("qwen3_moe")
    base.config.output_router_logits = True
    model = attached(base)
    with pytest.raises(UserError, match=r"model\.config\.output_router_logits = False"):
        model(ids, labels=ids)
    model.config.output_router_logits = False
    assert model(ids, labels=ids).loss.isfinite()


@torch.no_grad()
def test_what_changes_nothing_is_taken():
    """Catches a refusal of what tokenizers and callers pass by habit."""
    model, ids = attached(tiny_model("llama")), token_ids(2, 9)
    habits = {"token_type_ids": torch.zeros_like(ids), "output_attentions": False, "unknown": None}
    assert torch.equal(model(ids, **habits).logits, model(ids).logits)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bloom"])
@torch.no_grad()
def test_outputs_can_be_asked_for_in_the_configuration(family):
    """Catches settings of the attached model's own configuration that reach nothing."""
    model, stock, ids = attached(tiny_model(family)), tiny_model(family), token_ids(2, 9)
    for owner in (model, stock):
        owner.set_attn_implementation("eager")
        owner.config.output_hidden_states = owner.config.output_attentions = True
    want = stock(ids)

    def holds() -> None:
        found = model(ids)
        for name in ("hidden_states", "attentions"):
            for ours, theirs in zip(found[name], want[name], strict=True):
                torch.testing.assert_close(ours, theirs)

    holds()
    with model.disabled():
        holds()
    model.config.output_hidden_states = model.config.output_attentions = False
    model.config.use_cache = model.config.return_dict = False
    assert model.base.config.return_dict
    for context in (nullcontext(), model.disabled()):
        with context:
            plain = model(ids)
        assert isinstance(plain, tuple)
        assert len(plain) == 1, "logits alone"


@torch.no_grad()
def test_both_halves_hear_that_attention_is_not_causal():
    """Catches an argument of attention that the base hears and the shadow does not."""
    model = attached(tiny_model("llama"))
    ids = token_ids(1, 9)
    first, last = ids.clone(), ids.clone()
    last[:, -1] = 3 + (ids[:, -1] - 2) % 90
    states = [model.adapter.shadow(x, None, None, None, None, is_causal=False)[:, 0] for x in (first, last)]
    assert not torch.equal(*states)
