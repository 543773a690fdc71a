"""The parts of a loaded model, found in every family, and heads that are more than their weight and bias."""

import pytest
import torch
from helpers.families import BLOCKS, TINY, VOCAB, WIDTH, tiny_model, token_ids
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from shadowpeft import ShadowedModel, UnsupportedModelError, arch, attach


@pytest.mark.parametrize("model_type", sorted(TINY))
@torch.no_grad()
def test_the_parts_compute_what_the_model_computes(model_type):
    """Catches a wrong path to a part, and logits without the family's soft cap or bias."""
    model, ids = tiny_model(model_type), token_ids(2, 7)
    hidden = arch.decoder_of(model)(ids).last_hidden_state
    assert torch.equal(arch.logits(model, hidden), model(ids).logits)
    assert len(arch.blocks_of(model)) == arch.depth_of(model.config) == BLOCKS
    assert arch.token_embedding_of(model).weight.shape == (VOCAB, WIDTH)
    assert arch.softcap_of(model) == model.config.to_dict().get("final_logit_softcapping")
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


def _in_8_bits(module: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_base_that_passes_no_gradient_is_refused_for_training_alone(tmp_path):
    """Catches torch.ao's layers in 8 bits, which cut the gradient of every block in silence."""
    attach(tiny_model("llama")).save_pretrained(tmp_path)
    base = tiny_model("llama")
    base.model = _in_8_bits(base.model)
    with pytest.raises(UnsupportedModelError, match="no gradient passes through"):
        attach(base)
    ids = token_ids(2, 7)
    assert torch.equal(ShadowedModel.from_pretrained(base, tmp_path)(ids).logits, base(ids).logits)
    with pytest.raises(UnsupportedModelError, match=r"must be an nn.Linear, and lm_head is a torch.ao"):
        attach(_in_8_bits(tiny_model("llama")))


def test_a_weight_of_a_class_of_its_own_is_packed():
    """Catches weights of torchao's, which say that they are floats, read as if they were plain."""
    plain = nn.Parameter(torch.ones(2, 2))
    assert not arch.is_packed(plain)
    assert not arch.is_packed(plain.data)
    assert arch.is_packed(nn.Parameter(TwoTensor(torch.ones(2, 2), torch.ones(2, 2))))
