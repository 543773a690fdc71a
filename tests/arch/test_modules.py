"""The parts of a loaded model, found in every family, and heads that are more than their weight and bias."""

import pytest
import torch
from helpers.families import BLOCKS, TINY, VOCAB, WIDTH, tiny_model, token_ids
from torch import nn

from shadowpeft import arch


@pytest.mark.parametrize("model_type", sorted(TINY))
@torch.no_grad()
def test_the_parts_compute_what_the_model_computes(model_type):
    """Catches a wrong path to a part, and logits without the family's soft cap or bias."""
    model, ids = tiny_model(model_type), token_ids(2, 7)
    hidden = arch.decoder_of(model)(ids).last_hidden_state
    assert torch.equal(arch.logits(model, hidden), model(ids).logits)
    assert len(arch.blocks_of(model)) == arch.depth_of(model.config) == BLOCKS
    assert arch.token_embedding_of(model).weight.shape == (VOCAB, WIDTH)
    assert (arch.softcap_of(model) is None) == (model_type != "gemma2")
    classifier = tiny_model(model_type, "sequence-classification")
    assert arch.task_of(classifier) == "sequence-classification"
    assert arch.head_of(classifier).weight.shape[1] == WIDTH


def test_a_head_that_is_more_than_its_weight_is_not_plain():
    """Catches losses that read the weight of a head which would have computed something else."""

    class Other(nn.Linear):
        pass

    def plain(change) -> bool:
        model = tiny_model("gptj").requires_grad_(False)
        change(model, model.lm_head)
        return arch.has_plain_frozen_head(model)

    def replace(model, _):
        model.lm_head = Other(WIDTH, VOCAB).requires_grad_(False)

    def offload(_, head):
        head.forward = lambda x: x

    assert plain(lambda model, head: None)
    assert not plain(replace)
    assert not plain(offload)
    assert not plain(lambda model, head: head.weight.requires_grad_(True))
    assert not plain(lambda model, head: head.bias.requires_grad_(True))
    assert not plain(lambda model, head: head.to("meta"))
    assert not plain(lambda model, head: head.register_forward_hook(lambda *_: None))
    assert not plain(lambda model, head: head.register_forward_pre_hook(lambda *_: None))
