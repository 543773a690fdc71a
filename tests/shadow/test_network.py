"""Shadow networks: implicit ones read the base's embeddings, explicit ones another model's."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.explicit_shadows import EXPLICIT, explicit
from helpers.families import VOCAB, attached, tiny_config, tiny_model, token_ids
from helpers.family_cases import CONFIG, FAMILIES, loss_and_gradients
from helpers.tiny import qwen3_config
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM

from shadowpeft import UnsupportedModelError, arch, attach


@contextmanager
def watching_sizes(largest: list[int]) -> Iterator[None]:
    """Note in the last entry the most values of any parameter that a module is given meanwhile."""

    def note(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        largest[-1] = max(largest[-1], 0 if parameter is None else parameter.numel())

    handle = register_module_parameter_registration_hook(note)
    yield
    handle.remove()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_implicit_shadow_draws_no_table_of_embeddings(model_type: str) -> None:
    """Catches drawing (and holding) a table of the base's vocabulary only to drop it, and a configuration
    left with the size of none.
    """
    drawn, largest = [], []
    for vocab in (VOCAB, 5 * VOCAB):
        base = tiny_model(model_type, config=tiny_config(model_type, vocab_size=vocab, pad_token_id=2))
        largest.append(0)
        with watching_sizes(largest):
            model = attached(base, CONFIG)
        drawn.append(model.adapters["default"].shadow.state_dict())
        for config in (
            model.adapters["default"].shadow.backbone.config,
            model.detached().config,
            base.config,
        ):
            assert (config.vocab_size, config.pad_token_id) == (vocab, 2)
        assert (
            arch.token_embedding_of(model.detached()).weight.shape
            == arch.token_embedding_of(base).weight.shape
        )
    assert largest[0] == largest[1] > 0
    assert list(drawn[0]) == list(drawn[1])
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())


def test_embeddings_can_be_given_in_place_of_ids(model, base, ids):
    torch.testing.assert_close(model(inputs_embeds=base.model.embed_tokens(ids)).logits, model(ids).logits)


def test_explicit_shadow_must_fit_the_base(base):
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_config(qwen3_config(vocab_size=50))
    with pytest.raises(UnsupportedModelError, match="share one vocabulary"):
        attach(base, shadow=other)


@EXPLICIT
def test_an_explicit_shadow_trains_without_its_embeddings(pair: str, variant: str) -> None:
    """Catches an explicit shadow whose table trains (most of its parameters), or whose other tensors do
    not.
    """
    model, ids = explicit(pair, variant=variant), token_ids(2, 10)
    assert torch.equal(model(ids).logits, model.base(ids).logits)
    table = model.adapters["default"].shadow.embeddings().weight
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-3
    )
    losses = []
    for _ in range(3):
        loss, found = loss_and_gradients(model.train(), ids, ids)
        losses.append(loss)
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []
    assert table.grad is None
    assert all(parameter.grad is None for parameter in model.base.parameters())
