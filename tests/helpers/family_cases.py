"""Every family as a case: shared models that tests only read, and what compares and trains them.

A folder's `conftest.py` imports the fixtures; the functions are imported where they are used.
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from helpers.families import TINY, attached, perturb, tiny_model, token_ids
from shadowpeft import ShadowConfig, ShadowedModel, arch

FAMILIES = sorted(TINY)
VARIANTS = ["normed", "paper", "peft"]
# Every family in the variant that reads through its norms. The other variants on one family whose frame is an
# argument of its blocks, and on one where it is not.
CASES = [(name, "normed") for name in FAMILIES] + [
    (name, variant) for variant in ("paper", "peft") for name in ("bloom", "llama")
]
CHANGES: dict[str, Any] = {"dropout": 0.0, "r": 4, "update_width": 5, "shadow_loss_weight": 0.5}
CONFIG = ShadowConfig(**CHANGES)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param


@pytest.fixture(scope="module")
def model_type(case: tuple[str, Any]) -> str:
    return case[0]


@pytest.fixture(scope="module")
def config(case: tuple[str, Any]) -> ShadowConfig:
    return ShadowConfig(variant=case[1], **CHANGES)


@pytest.fixture(scope="module")
def shadowed(case: tuple[str, Any]) -> ShadowedModel:
    """A perturbed language model in evaluation mode; tests that share it only read it."""
    return _shadowed(*case, "causal-lm")


@pytest.fixture(scope="module")
def classifier(case: tuple[str, Any]) -> ShadowedModel:
    """A perturbed classifier in evaluation mode; tests that share it only read it."""
    return _shadowed(*case, "sequence-classification")


@cache
def _shadowed(model_type: str, variant: Any, task: arch.Task) -> ShadowedModel:
    return perturb(attached(tiny_model(model_type, task), ShadowConfig(variant=variant, **CHANGES)))


def close(actual: Tensor, expected: Tensor) -> None:
    """Compare float32 logits whose spread is about 1 and on which the shadow acts by about 0.1."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def rows(count: int = 2, length: int = 12) -> list[Tensor]:
    """Make texts of different lengths, all longer than the sliding window."""
    return [token_ids(1, length - 4 * i, seed=i)[0] for i in range(count)]


def gradients(model: PreTrainedModel) -> dict[str, Tensor | None]:
    """Copy the gradients of all that trains; `None` where there is none."""
    trained = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    return {name: gradient if gradient is None else gradient.clone() for name, gradient in trained.items()}


def loss_and_gradients(
    model: ShadowedModel, ids: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Run one forward and backward pass."""
    model.zero_grad()
    loss = model(ids, labels=labels).loss
    loss.backward()
    return loss.detach(), gradients(model)


def step_by_step(
    model: PreTrainedModel,
    cache: Cache,
    ids: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    first: int = 1,
) -> Tensor:
    """Feed `first` tokens at once and the others one at a time; return the logits of all."""
    mask, answers = torch.ones_like(ids) if mask is None else mask, []
    for start, stop in [(0, first), *((t, t + 1) for t in range(first, ids.shape[1]))]:
        given = {} if positions is None else {"position_ids": positions[:, start:stop]}
        out = model(
            ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True, **given
        )
        answers.append(out.logits)
    return torch.cat(answers, dim=1)
