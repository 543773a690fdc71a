"""Caches of several texts as one."""

import pytest
import torch
from helpers.families import attached, perturb, tiny_model, token_ids
from transformers import DynamicCache

from shadowpeft.arch import versions
from shadowpeft.decoder.joining import can_join, join, keep_rows


def read(model, ids, mask, cache):
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    given = {versions.CACHE: cache}
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **given).logits


# Sliding windows in the base alone, in both, and learned positions.
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "opt"])
@pytest.mark.parametrize("lengths", [(3, 12), (12, 3)])
@torch.no_grad()
def test_joined_rows_go_on_as_each_by_itself(family, lengths):
    """Catches padding that is seen, a window of another length, and the shadow's half left behind."""
    model = perturb(attached(tiny_model(family))).eval()
    texts = [token_ids(1, length, seed=length) for length in lengths]
    after = token_ids(2, 2, seed=9)
    caches, want = [], []
    for text, more in zip(texts, after, strict=True):
        cache, ones = model.new_cache(), torch.ones_like(text)
        read(model, text, ones, cache)
        caches.append(cache)
        other = model.new_cache()
        read(model, text, ones, other)
        want.append(read(model, more[None], torch.ones(1, text.shape[1] + 2, dtype=torch.long), other)[0])
    join(*caches)
    longest = max(lengths)
    mask = torch.tensor([[0] * (longest - length) + [1] * (length + 2) for length in lengths])
    got = read(model, after, mask, caches[0])
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-4, atol=1e-4)
    # The longer one leaves, and with it the padding of the other.
    short = min(range(2), key=lambda row: lengths[row])
    keep_rows(caches[0], torch.tensor([short]), longest - min(lengths))
    assert caches[0].get_seq_length() == min(lengths) + 2
    alone = model.new_cache()
    whole = torch.cat([texts[short], after[short : short + 1]], 1)
    read(model, whole, torch.ones_like(whole), alone)
    last = token_ids(1, 1, seed=4)
    ones = torch.ones(1, whole.shape[1] + 1, dtype=torch.long)
    got, want_last = (read(model, last, ones, cache) for cache in (caches[0], alone))
    torch.testing.assert_close(got, want_last, rtol=1e-4, atol=1e-4)


def test_recurrent_states_cannot_be_joined():
    assert can_join(DynamicCache(config=tiny_model("qwen3").config))
    assert not can_join(DynamicCache(config=tiny_model("qwen3_next").config))
