"""Shadow networks: implicit ones read the base's embeddings, explicit ones another model's."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.explicit_shadows import EXPLICIT, explicit
from helpers.families import VOCAB, attached, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import CONFIG, FAMILIES, loss_and_gradients
from helpers.tiny import qwen3_config
from torch import Tensor, nn
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
    tables = [table.weight for table in model.adapters["default"].shadow.tables()]
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
    assert len(tables) == (2 if pair == "tables and shared keys" else 1)
    assert all(table.grad is None and not table.requires_grad for table in tables)
    assert all(parameter.grad is None for parameter in model.base.parameters())


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@EXPLICIT
def test_a_frozen_backbone_stays_and_all_else_trains_as_beside_a_trained_one(
    pair: str, variant: str, task: arch.Task
) -> None:
    """Catches a backbone that moves or has gradients, and a gradient of the rest that freezing changes."""
    ids = token_ids(2, 10)
    labels = ids if task == "causal-lm" else torch.tensor([0, 2])
    models = [explicit(pair, task, variant, train_backbone=trains) for trains in (False, True)]
    models[0].adapters.load_state_dict(perturb(models[1]).adapters.state_dict())
    found = []
    for model in models:
        torch.manual_seed(0)
        found.append(loss_and_gradients(model.train(), ids, labels))
    (loss, frozen), (whole_loss, whole) = found
    assert loss == whole_loss
    assert {name for name in whole if name not in frozen} == {
        name for name in whole if ".shadow.backbone." in name
    }
    assert all(torch.equal(gradient, whole[name]) for name, gradient in frozen.items())
    assert [name for name, gradient in frozen.items() if not gradient.any()] == []
    backbone = models[0].adapter.shadow.backbone
    before = [weight.clone() for weight in backbone.parameters()]
    trained = [weight for weight in models[0].parameters() if weight.requires_grad]
    torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1).step()
    assert all(weight.grad is None for weight in backbone.parameters())
    assert all(map(torch.equal, backbone.parameters(), before))


def test_a_frozen_backbone_keeps_no_activations() -> None:
    """Catches a forward pass through frozen blocks that is kept for a backward pass that needs none of it."""
    ids, kept = token_ids(2, 10), []
    for trains in (False, True):
        shadow = explicit("narrower", train_backbone=trains).train().adapter.shadow
        kept.append(0)

        def count(tensor: Tensor) -> Tensor:
            kept[-1] += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            assert shadow(ids, None, None, None, None).requires_grad
    assert kept[0] <= 2, "what the projection needs"
    assert kept[1] > 20
