"""What a user does first, in one test each: what must hold on every version of transformers."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
import transformers
from helpers.families import attached, padded, perturb, tiny_model, token_ids
from helpers.family_cases import rows

from shadowpeft import ShadowedModel

# Full attention, a window that slides in every block, and one that slides in some.
FAMILIES = pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3_text"])


def test_transformers_is_the_one_that_is_installed() -> None:
    """Catches an environment that runs its tests on another environment's transformers."""
    assert importlib.metadata.version("transformers") == transformers.__version__


@FAMILIES
@torch.no_grad()
def test_generation_with_each_cache_equals_uncached(family: str) -> None:
    """Catches a cache that only one half of the model finds: the tokens are wrong and nothing says so."""
    model = perturb(attached(tiny_model(family)))
    ids, mask, _ = padded(rows(), "left")
    settings = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False}
    expected = model.generate(ids, **settings, use_cache=False)
    for kind in ("dynamic", "static"):
        assert torch.equal(model.generate(ids, **settings, cache_implementation=kind), expected), kind


@FAMILIES
def test_one_training_step_then_save_and_load(family: str, tmp_path: Path) -> None:
    """Catches a step without gradients, and an adapter that is not the same once it is read back."""
    model, ids = attached(tiny_model(family)).train(), token_ids(2, 9)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    before = model(ids, labels=ids).loss
    before.backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        assert model(ids, labels=ids).loss < before
        model.save_pretrained(tmp_path)
        again = ShadowedModel.from_pretrained(tiny_model(family), tmp_path)
        assert torch.equal(again(ids).logits, model(ids).logits)
