"""Every family on a GPU: the kernels read through its norms as its own code does on a CPU."""

import copy

import pytest
import torch
from helpers.families import TINY, attached, perturb, tiny_model, token_ids

from shadowpeft import ShadowConfig, ShadowedModel

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


def step(model: ShadowedModel, ids: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the loss and all gradients, one after the other."""
    loss = model(ids, labels=ids).loss
    loss.backward()
    grads = [weight.grad.flatten().cpu() for weight in model.parameters() if weight.requires_grad]
    return loss.item(), torch.cat(grads)


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_a_step_and_an_answer_are_the_cpu_s(model_type: str) -> None:
    """Catches a norm that a kernel takes for another, and a family whose blocks or cache need a CPU."""
    base, ids = tiny_model(model_type), token_ids(2, 9)
    model = perturb(attached(base, ShadowConfig(dropout=0.0)), std=0.1)
    want_loss, want = step(copy.deepcopy(model), ids)
    model, ids = model.to("cuda"), ids.to("cuda")
    model.base.to("cuda")
    loss, found = step(model, ids)
    assert loss == pytest.approx(want_loss, rel=1e-4)
    assert (found - want).norm() < 2e-3 * want.norm()
    settings = {"max_new_tokens": 4, "do_sample": False}
    answer = model.eval().generate(ids, **settings)
    assert torch.equal(answer, model.generate(ids, **settings, use_cache=False))
    model.zero_grad()
    low_base = tiny_model(model_type, dtype=torch.bfloat16).to("cuda")
    low = perturb(attached(low_base, ShadowConfig(dropout=0.0)), std=0.1).train()
    low_loss, grads = step(low, ids)
    assert low_loss == pytest.approx(want_loss, rel=0.1)
    assert grads.isfinite().all()
    assert grads.dtype == torch.float32
