"""`save_pretrained` and back."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.explicit_shadows import explicit
from helpers.families import attached, perturb, tiny_model, token_ids
from helpers.trainers import assert_best_step_is_loaded, by_steps, language_rows
from safetensors.torch import load_file
from transformers import Trainer

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


def test_a_plain_trainer_resumes_and_loads_its_best(base, tmp_path, caplog):
    """Catches checkpoints that transformers' Trainer cannot read: the run raises, or ends with the last step.

    The best step's weights are compared to the bit.
    """
    rows = language_rows()
    arguments = by_steps(tmp_path, load_best_model_at_end=True)
    model = attached(base)
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert_best_step_is_loaded(trainer, tmp_path, model.adapter)
    # Trained to the end again, from the middle.
    last = load_file(tmp_path / "checkpoint-6" / "shadow.safetensors")
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = attached(base)
    arguments.load_best_model_at_end = False
    Trainer(again, arguments, train_dataset=rows, eval_dataset=rows).train(resume_from_checkpoint=True)
    for name, tensor in again.adapter.state_dict().items():
        torch.testing.assert_close(tensor, last[name], rtol=1e-4, atol=1e-5)
    assert "keys in the checkpoint" not in caplog.text


def test_tensors_of_another_adapter_are_refused(base, tmp_path):
    """Catches a checkpoint of which a plain Trainer loads what fits and leaves out the rest."""
    attached(base, ShadowConfig(r=4)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit the active one, 'default'"):
        attached(base, ShadowConfig(r=8)).load_state_dict(load_file(tmp_path / "shadow.safetensors"), False)


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
        "model.safetensors.index.json",
        "shadow.safetensors",
        "shadow_config.json",
    ]


def test_several_adapters_are_saved_at_once_and_found_in_their_folders(model, ids, tmp_path):
    """Catches an adapter written over another, and a name that leaves the folder."""
    model.add_adapter("b", ShadowConfig(alpha=0.5))
    perturb(model, seed=7)
    wanted = {name: model(ids, adapter=name).logits for name in model.adapters}
    model.save_pretrained(tmp_path, selected_adapters=list(model.adapters))
    base = model.unload()
    again = ShadowedModel.from_pretrained(base, tmp_path)
    again.load_adapter(tmp_path, "b", subfolder="b")
    for name, logits in wanted.items():
        assert torch.equal(again(ids, adapter=name).logits, logits)


def test_names_of_several_adapters_are_checked_before_one_is_written(model, tmp_path):
    model.add_adapter("a/b")
    for names, message in ((["default", "c"], "no adapter named 'c'"), (["default", "a/b"], "is a path")):
        with pytest.raises(ConfigError, match=message):
            model.save_pretrained(tmp_path, selected_adapters=names)
    with pytest.raises(ConfigError, match="either adapter"):
        model.save_pretrained(tmp_path, "default", selected_adapters=["default"])
    assert not list(tmp_path.iterdir())


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
