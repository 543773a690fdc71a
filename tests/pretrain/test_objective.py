"""The losses of pretraining against their equations, and a base that runs only if a loss asks for it."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM, PreTrainedModel

from shadowpeft import ShadowConfig, arch
from shadowpeft.pretrain import start
from shadowpeft.pretrain.objective import Objective, Weights, cosine_distance, train_parts

TOKENS, WIDTH = 13, 8


@pytest.fixture
def states() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    s_ND, h_ND = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, generator=generator)
    return s_ND.requires_grad_(), h_ND


def test_cosine_distance_ignores_sizes(states):
    """Catches a matching loss that depends on the size of a state, or is not 0 if directions agree."""
    s_ND, h_ND = states
    angle_N = cosine_distance(s_ND, h_ND)
    cosine_N = (s_ND * h_ND).sum(-1) / (s_ND.norm(dim=-1) * h_ND.norm(dim=-1))
    torch.testing.assert_close(angle_N.double(), 1 - cosine_N, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cosine_distance(7 * s_ND, 0.01 * h_ND), angle_N)
    assert cosine_distance(3 * h_ND, h_ND).abs().max() < 1e-6


def objective_of(base: PreTrainedModel, **weights) -> Objective:
    torch.manual_seed(2)
    return Objective(base, start.fresh(base, ShadowConfig()), Weights(**{"next_token": 0.0, **weights}))


def count_calls(base: PreTrainedModel) -> list[int]:
    calls: list[int] = []
    arch.decoder_of(base).register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("weights", "runs"),
    [
        ({"next_token": 1.0}, 0),
        ({"distil": 1.0}, 1),
        ({"match": 1.0}, 1),
        ({"next_token": 1.0, "distil": 0.5, "match": 0.5}, 1),
    ],
    ids=["next token", "distil", "match", "all"],
)
def test_base_runs_only_where_a_loss_needs_it(base, ids, weights, runs):
    """Catches a base that runs for nothing, or once for each loss that wants it."""
    calls, objective = count_calls(base), objective_of(base, **weights)
    objective(ids)["loss"].backward()
    assert len(calls) == runs


def test_the_objective_mixes_the_losses_as_weighted(base, ids):
    """Catches labels not shifted, a loss left out of the sum, a wrong weight, and another block's state."""
    objective = objective_of(base, next_token=0.7, distil=0.4, match=0.2, temperature=2.0, match_block=1)
    out = objective(ids)
    s_BTD = objective.shadow(ids, None, None, None, None)
    with torch.no_grad():
        stock = base(ids, output_hidden_states=True)
    logits_BTV = base.lm_head(s_BTD)
    next_token = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    p, q = ((x[:, :-1].flatten(0, 1) / 2).log_softmax(-1) for x in (stock.logits, logits_BTV))
    distil = 4 * F.kl_div(q, p, log_target=True, reduction="batchmean")
    match = (1 - F.cosine_similarity(s_BTD, stock.hidden_states[2], dim=-1)).mean()
    for name, wanted in (("next_token", next_token), ("distil", distil), ("match", match)):
        torch.testing.assert_close(out[name], wanted.detach(), rtol=1e-5, atol=1e-6)
    wanted = 0.7 * next_token + 0.4 * distil + 0.2 * match
    torch.testing.assert_close(out["loss"], wanted)
    ours, theirs = (
        torch.autograd.grad(loss, list(objective.shadow.parameters())) for loss in (out["loss"], wanted)
    )
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_the_objective_trains_and_saves_no_part_of_the_base(base, ids):
    """Catches a base that gets gradients, or that is moved, counted or saved with the shadow."""
    objective = objective_of(base, next_token=1.0, distil=1.0)
    objective(ids)["loss"].backward()
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(name.startswith("shadow.") for name in objective.state_dict())
    assert not {id(p) for p in objective.parameters()} & {id(p) for p in base.parameters()}
    assert all(parameter.grad is not None for parameter in objective.shadow.parameters())


def test_detached_losses_are_those_of_the_stock_models(base, ids):
    """Catches a held-out loss of anything but the shadow through the base's head, or the base itself."""
    objective = objective_of(base, next_token=1.0)
    stock = base(ids, labels=ids).loss
    shadow = F.cross_entropy(
        base.lm_head(objective.shadow(ids, None, None, None, None))[:, :-1].flatten(0, 1),
        ids[:, 1:].flatten(),
    )
    torch.testing.assert_close(objective.base_losses(ids).mean(), stock)
    torch.testing.assert_close(objective.shadow_losses(ids).mean(), shadow)
    torch.testing.assert_close(objective.plain_loss(ids), shadow)


@pytest.mark.parametrize(
    ("parts", "trained"),
    [
        ("projection", {"projection"}),
        ("all-but-embeddings", {"projection", "layers", "norm"}),
        ("everything", {"projection", "layers", "norm", "embed_tokens"}),
    ],
)
def test_train_parts_of_an_explicit_shadow(base, parts, trained):
    """Catches a part that trains though it should not, or the other way round."""
    model = AutoModelForCausalLM.from_config(qwen3_config(hidden_size=16, num_hidden_layers=1))
    shadow = start.from_model(base, model)
    train_parts(shadow, parts)
    names = {
        name.removeprefix("backbone.").split(".")[0]
        for name, parameter in shadow.named_parameters()
        if parameter.requires_grad
    }
    assert names == trained


@pytest.mark.parametrize("parts", ["all-but-embeddings", "everything"])
def test_borrowed_embeddings_never_train(base, parts):
    """Catches an implicit shadow that trains the base's table."""
    shadow = start.fresh(base, ShadowConfig())
    base.requires_grad_(False)
    train_parts(shadow, parts)
    assert all(parameter.requires_grad for parameter in shadow.parameters())
    assert not any(parameter.requires_grad for parameter in base.parameters())
