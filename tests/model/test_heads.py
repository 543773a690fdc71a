"""What a shadow learns from the attached answer (`shadow_distil`): values and every gradient against the
equation written out.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.families import perturb, tiny_config, tiny_model
from helpers.tiny import qwen3_config
from transformers import AutoModelForSequenceClassification

from shadowpeft import ConfigError, ShadowConfig, ShadowedModel, attach, losses
from shadowpeft.losses import divergence, linear_ce, overlap
from shadowpeft.losses.frozen_head import Head

VOCAB, WIDTH, WEIGHT = 97, 32, 0.7


def shadowed(
    model_type: str, distil: float, dtype: torch.dtype = torch.float64, kind: Any = "kl", **changes: int
) -> ShadowedModel:
    config = ShadowConfig(
        alpha=0.5, dropout=0.0, shadow_loss_weight=WEIGHT, shadow_distil=distil, distil_loss=kind
    )
    torch.manual_seed(0)
    return perturb(
        attach(tiny_model(model_type, dtype=dtype, config=tiny_config(model_type, **changes)), config)
    ).train()


def batch() -> dict[str, Any]:
    ids = torch.randint(2, VOCAB, (3, 11), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    labels[0, :5], labels[1, 8:], labels[2] = -100, -100, -100
    return {"input_ids": ids, "labels": labels}


def gradients(model: ShadowedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_the_equation(
    model: ShadowedModel, distil: float, count: int | None = None, kind: str = "kl"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L, the shadow's cross-entropy and the divergence (or the LK loss), one labelled token after the other,
    from whole logits.
    """
    inputs = batch()
    out = model(inputs["input_ids"], output_shadow_logits=True)
    own, shadow, apart = [], [], []
    for b, t in (inputs["labels"][:, 1:] != -100).nonzero().tolist():
        y = inputs["labels"][b, t + 1]
        p_V, q_V = (
            logits[b, t].exp() / logits[b, t].exp().sum() for logits in (out.logits, out.shadow_logits)
        )
        own.append(-p_V[y].log())
        shadow.append(-q_V[y].log())
        p_V = p_V.detach()
        divergence = (p_V * (p_V.log() - q_V.log())).sum()
        apart.append(divergence if kind == "kl" else -torch.minimum(p_V, q_V).sum().log())
    own_loss, shadow_loss, distil_loss = (
        torch.stack(parts).sum() / (count or len(parts)) for parts in (own, shadow, apart)
    )
    return own_loss + WEIGHT * ((1 - distil) * shadow_loss + distil * distil_loss), shadow_loss, distil_loss


def assert_near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], exact: float) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= exact * gradient.norm() + 1e-12, name


# Equation 9


def test_loss_is_equation_9(model, base, ids):
    """Catches a loss on the last shadow state instead of the first, a missing shift, a wrong weight."""
    labels = ids.clone()
    labels[0, :4] = -100
    out = model(ids, labels=labels, output_shadow_logits=True)
    cross_entropy = torch.nn.functional.cross_entropy
    own = cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    shadow = cross_entropy(
        out.shadow_logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(out.shadow_loss, shadow)
    weight = {"normed": 0.5, "paper": 0.05}[model.adapter.settings.variant]
    torch.testing.assert_close(out.loss, own + weight * shadow)
    first_state = model.adapters["default"].shadow(ids, None, None, None, None)
    torch.testing.assert_close(out.shadow_logits, base.lm_head(first_state))


def test_accumulation_by_item_count_equals_one_batch(model, ids):
    """Catches a mean of means: rows with different numbers of labels must weigh by their labels."""
    model.train()
    for adapter in model.adapters.values():
        adapter.eval()  # no dropout
    labels = ids.clone()
    labels[0, :8] = -100
    count = (labels[:, 1:] != -100).sum()
    whole = torch.autograd.grad(
        model(ids, labels=labels).loss, list(model.adapters.parameters()), allow_unused=True
    )
    parts = [model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss for i in range(2)]
    summed = torch.autograd.grad(sum(parts), list(model.adapters.parameters()), allow_unused=True)
    for one, two in zip(whole, summed, strict=True):
        torch.testing.assert_close(one, two)


def test_logits_to_keep_and_plain_tuples(model, ids):
    full = model(ids, output_shadow_logits=True)
    last = model(ids, logits_to_keep=2, output_shadow_logits=True)
    torch.testing.assert_close(last.logits, full.logits[:, -2:])
    torch.testing.assert_close(last.shadow_logits, full.shadow_logits[:, -2:])
    assert torch.equal(model(ids, return_dict=False)[0], full.logits)


# Distillation of language models


@pytest.mark.parametrize("count", [None, 29, torch.tensor(29)], ids=["mean", "number", "tensor"])
@pytest.mark.parametrize(("distil", "kind"), [(0.3, "kl"), (1.0, "kl"), (0.3, "lk")])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gptj"])
def test_losses_and_every_gradient_are_the_equation(model_type, distil, kind, count, monkeypatch):
    """Catches a lost cap (Gemma 2), bias (GPT-J) or chunk, a wrong share, direction, token or count, and a
    gradient that reaches p.
    """
    for sweep in (divergence, overlap):
        monkeypatch.setattr(sweep, "_AT_A_TIME", 5 * VOCAB)
    model = shadowed(model_type, distil, kind=kind)
    wanted = by_the_equation(model, distil, None if count is None else int(count), kind)
    wanted_gradients = gradients(model, wanted[0])
    extra = {} if count is None else {"num_items_in_batch": count}
    for skip, exact in (
        (None, 1e-9),
        (False, 1e-5),
    ):  # the plain way casts the logits of the cross-entropy to float32
        out = model(**batch(), **extra, skip_logits=skip)
        assert (out.logits is None) == (skip is None)
        for found, value in zip((out.loss, out.shadow_loss, out.distil_loss), wanted, strict=True):
            assert found.item() == pytest.approx(value.item(), rel=min(exact, 1e-6))
        assert_near(gradients(model, out.loss), wanted_gradients, exact)


@pytest.mark.parametrize("skip", [True, False], ids=["lean", "plain"])
def test_evaluation_has_the_same_loss_and_labels_may_be_shifted_before(skip):
    model = shadowed("qwen3", 0.3)
    inputs = batch()
    wanted = model(**inputs, skip_logits=skip).loss
    torch.testing.assert_close(model.eval()(**inputs, skip_logits=skip).loss, wanted)
    shifted = F.pad(inputs.pop("labels"), (0, 1), value=-100)[:, 1:].contiguous()
    torch.testing.assert_close(model(**inputs, shift_labels=shifted, skip_logits=skip).loss, wanted)


@pytest.mark.parametrize("skip", [True, False], ids=["lean", "plain"])
def test_without_a_label_there_is_nothing_to_learn(skip):
    """As of the cross-entropy: a mean over nothing is not a number, a sum is 0, and neither sends a
    gradient.
    """
    model, inputs = shadowed("qwen3", 0.3, torch.float32), batch()
    inputs["labels"][:] = -100
    for extra, wanted in (({}, math.nan), ({"num_items_in_batch": 3}, 0.0)):
        out = model(**inputs, **extra, skip_logits=skip)
        assert out.distil_loss.item() == pytest.approx(wanted, nan_ok=True)
        found = gradients(model, WEIGHT * out.distil_loss)
        assert all(gradient.eq(0).all() for gradient in found.values())


@pytest.mark.parametrize("skip", [None, False], ids=["lean", "plain"])
def test_with_0_nothing_is_computed_that_was_not(skip, monkeypatch):
    """Catches another rounding of the loss as it was, and a divergence that is computed and not used."""
    model = shadowed("gemma2", 0.0, torch.float32)
    seen: list[Any] = []
    frozen, plain = losses.frozen_head_losses, losses.next_token_loss
    monkeypatch.setattr(losses, "frozen_head_losses", lambda *given: seen.append(frozen(*given)) or seen[-1])
    monkeypatch.setattr(losses, "next_token_loss", lambda *given: seen.append(plain(*given)) or seen[-1])
    for name in ("frozen_head_divergence", "next_token_divergence"):
        monkeypatch.setattr(losses, name, None)
    out = model(**batch(), skip_logits=skip)
    own, shadow = seen[0] if skip is None else seen
    assert out.distil_loss is None
    assert "distil_loss" not in out
    assert out.shadow_loss is shadow
    assert torch.equal(out.loss, own + WEIGHT * shadow)


@pytest.mark.parametrize("skip", [None, False], ids=["lean", "plain"])
def test_with_1_the_cross_entropy_is_told_and_not_learnt_from(skip):
    out, plain = (shadowed("qwen3", distil)(**batch(), skip_logits=skip) for distil in (1.0, 0.0))
    assert torch.equal(out.shadow_loss, plain.shadow_loss)
    assert not out.shadow_loss.requires_grad
    assert out.distil_loss.requires_grad


# Compiled


@pytest.mark.parametrize(
    ("model_type", "distil", "skip"), [("gemma2", 0.3, None), ("qwen3", 1.0, False)], ids=["lean", "plain"]
)
def test_a_whole_training_step_compiles_without_a_break(model_type, distil, skip):
    torch._dynamo.reset()
    # Three blocks are the least that cross an update; each more costs seconds of compilation.
    model = shadowed(model_type, distil, torch.float32, num_hidden_layers=3)
    wanted = model(**batch(), skip_logits=skip)
    wanted_gradients = gradients(model, wanted.loss)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch(), skip_logits=skip)
    torch.testing.assert_close((found.loss, found.distil_loss), (wanted.loss, wanted.distil_loss))
    torch.testing.assert_close(gradients(model, found.loss), wanted_gradients)


# Memory


def test_whole_steps_hold_no_logits(monkeypatch):
    """Catches logits of a whole batch on either side of the divergence."""
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 4 * VOCAB)
    monkeypatch.setattr(divergence, "_AT_A_TIME", 4 * VOCAB)
    seen: list[int] = []
    logits = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, x_nD: seen.append(len(x_nD)) or logits(self, x_nD))
    shadowed("qwen3", 0.5, torch.float32)(**batch()).loss.backward()
    labelled = int((batch()["labels"][:, 1:] != -100).sum())
    assert max(seen) == 4
    assert sum(seen) == 2 * labelled, "both sides of a labelled token once, and none of the others"


# Classifiers


def soft_classes(p_BC: torch.Tensor, q_BC: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    p_BC, q_BC = (x.exp() / x.exp().sum(-1, keepdim=True) for x in (p_BC, q_BC))
    return [
        (p_C * (p_C / q_C).log()).sum() for p_C, q_C, y in zip(p_BC, q_BC, labels, strict=True) if y != -100
    ]


def soft_labels(p_BC: torch.Tensor, q_BC: torch.Tensor, _: torch.Tensor) -> list[torch.Tensor]:
    p_BC, q_BC = (1 / (1 + (-x).exp()) for x in (p_BC, q_BC))
    return list((-(p_BC * q_BC.log() + (1 - p_BC) * (1 - q_BC).log())).flatten())


def squares(p_BC: torch.Tensor, q_BC: torch.Tensor, _: torch.Tensor) -> list[torch.Tensor]:
    return list((p_BC - q_BC).square().flatten())


PROBLEMS: dict[str, tuple[int, torch.Tensor, Any]] = {
    "single": (5, torch.tensor([3, 1, -100]), soft_classes),
    "several": (4, torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]), soft_labels),
    "regression": (1, torch.tensor([0.3, -1.2, 0.1]), squares),
}


@pytest.mark.parametrize("count", [None, 9, torch.tensor(9)], ids=["mean", "number", "tensor"])
@pytest.mark.parametrize("distil", [0.3, 1.0])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_classifier_learns_from_the_attached_answer(problem, distil, count):
    """Catches another loss than the problem's, a row without a class that counts, another norm than the
    labels' loss, a gradient to p.
    """
    width, labels, parts_of = PROBLEMS[problem]
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=width)).double().eval()
    model = perturb(attach(base, ShadowConfig(alpha=0.5, shadow_loss_weight=WEIGHT, shadow_distil=distil)))
    inputs = {"input_ids": batch()["input_ids"], "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    extra = {} if count is None else {"num_items_in_batch": count}

    out = model(**inputs, output_shadow_logits=True)
    parts = parts_of(out.logits.detach(), out.shadow_logits, labels)
    wanted = torch.stack(parts).sum() / (len(parts) if count is None else int(count))
    own, shadow = (
        losses.classification_loss(x, labels, base.config, count) for x in (out.logits, out.shadow_logits)
    )
    wanted_gradients = gradients(model, own + WEIGHT * ((1 - distil) * shadow + distil * wanted))

    out = model(**inputs, labels=labels, **extra)
    assert model.config.problem_type is None
    torch.testing.assert_close(
        (out.shadow_loss, out.distil_loss.double()), (shadow, wanted), rtol=1e-6, atol=0
    )
    assert out.shadow_loss.requires_grad == (distil < 1)
    assert_near(gradients(model, out.loss), wanted_gradients, 1e-5)
    assert next(iter(out)) == "loss", "as a plain tuple a loss comes first"


def test_a_classifier_learns_by_no_loss_of_drafts():
    """Catches a setting of language models that a classifier takes and does not apply."""
    base = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=3))
    with pytest.raises(ConfigError, match="a classifier drafts nothing"):
        attach(base, ShadowConfig(shadow_distil=0.5, distil_loss="lk"))


def test_a_classifier_without_it_is_as_it_was(monkeypatch):
    monkeypatch.setattr(losses, "classification_divergence", None)
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=3)).eval()
    model = perturb(attach(base, ShadowConfig(alpha=0.5, shadow_loss_weight=WEIGHT)))
    labels = torch.tensor([1, 2, 0])
    out = model(
        batch()["input_ids"], torch.ones(3, 11, dtype=torch.long), labels=labels, output_shadow_logits=True
    )
    own, shadow = (
        losses.classification_loss(x, labels, base.config, None) for x in (out.logits, out.shadow_logits)
    )
    assert out.distil_loss is None
    assert torch.equal(out.loss, own + WEIGHT * shadow)
