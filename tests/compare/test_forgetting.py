"""What training makes a model forget."""

import pytest
import torch
from helpers.families import perturb
from helpers.tiny_tasks import TASKS, cell_of

from shadowpeft.compare import forgetting, methods
from shadowpeft.compare.study import Study


@pytest.mark.parametrize("task", ["choices", "classes"])
@pytest.mark.parametrize("method", ["base", "lora", "dora", "shadow", "peft-shadow"])
def test_untrained_forgets_nothing_and_perturbed_something(method: str, task: str, study: Study) -> None:
    """Catches a forgetting that measures another head, other text or other precision than the base's loss."""
    reference = forgetting.reference_of(
        study.model, study.data_dir, rows=3, bf16=False, batch_size=4, device=torch.device("cpu")
    )
    # A run seeds its weights; here the tests before this one would, and some weights hardly forget.
    torch.manual_seed(0)
    built = methods.build(cell_of(study, method, task), study, TASKS[task], 0, torch.device("cpu"))
    built.model.eval()
    slack = 1e-5 if method == "dora" else 0.0  # it multiplies by a norm that it divides by
    assert abs(reference.forgetting(built)) <= slack
    if method != "base":
        perturb(built.model)
        assert abs(reference.forgetting(built)) > 1e-3
