"""`save_pretrained` and back."""

from pathlib import Path

import pytest
import torch
from helpers.families import attached, perturb, tiny_model, token_ids

from shadowpeft import CheckpointError, ConfigError, ShadowConfig, ShadowedModel, UserError, arch, attach


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


@pytest.mark.parametrize("weight", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_of_the_base_that_train_are_not_lost_without_a_word(model, tmp_path, weight):
    """Catches an adapter saved without what was trained beside it."""
    model.base.get_parameter(weight).requires_grad_(True)
    with pytest.warns(UserWarning, match=f"the base's weight {weight} requires a gradient"):
        model.train()
    with pytest.raises(
        CheckpointError, match=f"the base's weight {weight} requires a gradient, and an adapter"
    ):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_of_the_base_that_changed_are_not_lost_without_a_word(model, ids, tmp_path):
    """Catches an adapter saved for a base that is gone, and a way out that does not keep both."""
    part = model.base.model.layers[1].mlp
    with torch.no_grad():
        part.up_proj.weight.mul_(1.01)
    message = r"have changed since it was lent \(of its block 1: mlp\.up_proj\.weight\), .* would be lost"
    with pytest.raises(CheckpointError, match=message):
        model.save_pretrained(tmp_path / "adapter")
    model.base.save_pretrained(tmp_path / "base")
    again = attach(type(model.base).from_pretrained(tmp_path / "base"), model.adapter.settings)
    again.adapter.load_state_dict(model.adapter.state_dict())
    assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
    again.save_pretrained(tmp_path / "adapter")


def test_a_base_in_another_type_has_not_changed(model, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path)


def test_a_base_that_was_resized_says_so(model, ids, tmp_path):
    """Catches an error of torch's where base and shadow no longer have the same tokens."""
    want = model(ids).logits
    model.base.resize_token_embeddings(101)
    for use in (lambda: model(ids), model.detached, lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(UserError, match=r"had 97 tokens when it was lent and now has 101: "):
            use()
    model.base.resize_token_embeddings(97)
    assert torch.equal(model(ids).logits, want)
    model.detached()
