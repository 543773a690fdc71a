"""`save_pretrained` and back."""

from pathlib import Path

import pytest
import torch
from helpers.explicit_shadows import explicit
from helpers.families import attached, perturb, tiny_model, token_ids

from shadowpeft import ConfigError, ShadowConfig, ShadowedModel, UserError, arch


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@torch.no_grad()
def test_a_saved_adapter_comes_back_whole(
    model_type: str, config: ShadowConfig, task: arch.Task, tmp_path: Path
) -> None:
    """Catches a tensor or setting that saving or loading drops: both sides are perturbed, so neither is
    trivially the base.
    """
    model, ids = perturb(attached(tiny_model(model_type, task), config)), token_ids(2, 9)
    model.save_pretrained(tmp_path)
    again = ShadowedModel.from_pretrained(tiny_model(model_type, task), tmp_path)
    found, expected = (m(ids, output_shadow_logits=True) for m in (again, model))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.shadow_logits, expected.shadow_logits)


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@torch.no_grad()
def test_an_adapter_with_a_frozen_backbone_comes_back_whole(task: arch.Task, tmp_path: Path) -> None:
    """Catches a folder without the frozen weights, a loaded adapter that trains them, and a detached model
    that lacks them."""
    model, ids = perturb(explicit("narrower", task, train_backbone=False)), token_ids(2, 9)
    model.save_pretrained(tmp_path)
    again = ShadowedModel.from_pretrained(tiny_model("qwen3", task), tmp_path)
    found, expected = (m(ids, output_shadow_logits=True) for m in (again, model))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.shadow_logits, expected.shadow_logits)
    assert torch.equal(again.detached()(ids).logits, model.detached()(ids).logits)
    assert again.adapter.settings == model.adapter.settings
    assert not any(weight.requires_grad for weight in again.adapter.shadow.backbone.parameters())


def test_saving_refuses_what_it_would_not_do(model, tmp_path):
    with pytest.raises(ConfigError, match="push_to_hub"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(UserError, match="holds nothing of adapter 'default'"):
        model.save_pretrained(tmp_path, state_dict={"module.adapters.default.norm.weight": torch.zeros(1)})
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path, max_shard_size="5GB", state_dict=model.state_dict())


def test_a_process_that_writes_nothing_may_hold_nothing(model, tmp_path):
    """Catches a distributed run that ends in every process but the first, whose gathered state is empty."""
    model.save_pretrained(tmp_path, state_dict={}, is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_several_threads_save_to_one_folder(model, base, tmp_path):
    """Catches partial files that share one name."""
    import threading

    errors = []

    def save():
        try:
            for _ in range(5):
                model.save_pretrained(tmp_path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "shadow.safetensors",
        "shadow_config.json",
    ]
