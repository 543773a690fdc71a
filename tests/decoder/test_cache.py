"""One cache for base and shadow: both halves stay in step, and cached logits are the uncached ones."""

import pytest
import torch
from helpers.families import attached, padded, tiny_config, tiny_model, token_ids
from helpers.family_cases import close, rows, step_by_step

from shadowpeft import ShadowedModel, UserError
from shadowpeft.decoder.cache import forget_past, keep_past, static_cache


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_cached_equals_uncached_token_by_token(shadowed: ShadowedModel, kind: str, side: str) -> None:
    """Catches halves of the cache that part, masks of the wrong length, and positions that ignore padding."""
    if side == "none":
        ids, mask, positions, first = token_ids(2, 12), None, None, 1
    else:
        ids, mask, positions = padded(rows(), side)
        first = 6
    expected = shadowed(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache = shadowed.new_cache(max_length=12 if kind == "static" else None)
    found = step_by_step(shadowed, cache, ids, mask=mask, positions=positions, first=first)
    real = torch.ones_like(ids) if mask is None else mask
    close(found[real.bool()], expected[real.bool()])


def test_crop_reorder_and_reset_act_on_both_halves(model, ids):
    """Catches halves of the cache that part company."""
    cache = model.new_cache()
    model(ids, past_key_values=cache, use_cache=True)
    cache.reorder_cache(torch.tensor([1, 0]))
    step = torch.tensor([[5], [6]])
    want = model(torch.cat([ids.flip(0), step], dim=1)).logits[:, -1]
    got = model(step, past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert {layer.get_seq_length() for layer in cache.layers} == {12}
    cache.reset()
    assert (
        len({layer.get_seq_length() for layer in cache.layers}) == 1
    )  # 0, or 12 zeroed positions before transformers 5.23


@pytest.mark.parametrize("model_type", ["falcon_h1", "qwen3_5_text"])
def test_a_recurrent_state_is_not_cropped(model_type):
    """Catches keys that are cropped beside a state that is not: the next tokens would be wrong."""
    model, ids = attached(tiny_model(model_type)), token_ids(1, 6)
    cache = model.new_cache()
    keep_past(cache)
    model(ids, past_key_values=cache)
    with pytest.raises(UserError, match="cannot be cropped: base or shadow keeps a recurrent state"):
        cache.crop(-2)


def test_a_recurrent_shadow_drafts_nothing_and_is_not_drafted_for():
    """Catches a base that attends beside a shadow that keeps a recurrent state."""
    shadow = tiny_model("falcon_h1", config=tiny_config("falcon_h1", num_hidden_layers=1))
    model, ids = attached(tiny_model("llama"), shadow=shadow), token_ids(1, 6)
    assert not model.base._is_stateful
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(ids, max_new_tokens=4, assistant_model=tiny_model("llama", seed=5))
    assert not attached(tiny_model("llama"))._is_stateful


@torch.no_grad()
def test_halves_of_different_length_are_cropped_to_one() -> None:
    """Catches a crop by one number where an exception left the shadow's half longer."""
    model = attached(tiny_model("gemma3_text"))
    cache, ids = model.new_cache(), token_ids(1, 12)
    model(ids, past_key_values=cache)
    changed = keep_past(cache)
    assert [layer.is_sliding for layer in cache.layers].count(True) == len(changed) > 0
    for token in token_ids(1, 3, seed=1).unbind(1):
        model.adapter.shadow(token[:, None], None, None, None, cache.shadow)
    assert {layer.get_seq_length() for layer in cache.layers} == {12, 15}
    cache.crop_to(11 + 1)
    forget_past(changed)
    assert {layer.get_seq_length() for layer in cache.layers} == {12}
    step = token_ids(1, 1, seed=2)
    want = model(torch.cat([ids, step], 1)).logits[:, -1:]
    close(model(step, past_key_values=cache).logits, want)
    assert all("update" not in vars(layer) and not vars(layer).get("record_past") for layer in cache.layers)
    assert keep_past(cache) == changed


def test_static_windows_and_recurrent_layers_are_not_cropped_by_the_token() -> None:
    """Catches a crop that transformers could not undo."""
    assert attached(tiny_model("mistral")).new_cache().can_crop_each()
    assert attached(tiny_model("llama")).new_cache(max_length=20).can_crop_each()
    assert not attached(tiny_model("mistral")).new_cache(max_length=20).can_crop_each()
    assert not attached(tiny_model("qwen3_next")).new_cache().can_crop_each()
    assert not attached(tiny_model("qwen3_next")).new_cache(max_length=20).can_crop_each()


@torch.no_grad()
def test_a_static_cache_is_cropped_in_its_place(ids) -> None:
    """Catches a rejected token that one half keeps, and a length that a CUDA graph would miss."""
    model = attached(tiny_model("mistral"))
    configs = model.base.config, model.adapter.shadow.backbone.config
    cache = static_cache(*configs, "default", 20, slides=False)
    model(ids, past_key_values=cache)
    lengths = [layer.cumulative_length for layer in cache.layers]
    cache.crop_to(7)
    assert [int(length) for length in lengths] == [7] * len(cache.layers)
    assert all(layer.cumulative_length is length for layer, length in zip(cache.layers, lengths, strict=True))
    mask = torch.zeros(len(ids), 20, dtype=torch.long)
    mask[:, :9] = 1
    found = model(
        ids[:, 7:9], attention_mask=mask, position_ids=torch.tensor([[7, 8]]), past_key_values=cache
    )
    close(found.logits, model(ids[:, :9]).logits[:, 7:])
