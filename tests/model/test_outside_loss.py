"""Losses that others compute of the model's answer: refused or said where the shadow's part is missing."""

import pytest
import torch
from helpers.families import attached, tiny_model, token_ids
from helpers.trainers import brief_arguments, class_rows, language_rows
from transformers import Trainer

from shadowpeft import ShadowConfig, UserError

ROWS = {"causal-lm": language_rows, "sequence-classification": class_rows}


def plain_trainer(model, folder, rows, **stock):
    changes = {"label_smoothing_factor": 0.1, "max_steps": 1, "dataloader_num_workers": 0}
    return Trainer(model, brief_arguments(folder, **changes), train_dataset=rows, eval_dataset=rows, **stock)


@pytest.mark.parametrize("task", ROWS)
def test_a_plain_trainer_cannot_smooth_the_shadows_loss(task, tmp_path):
    """Catches a run that copies its input (labels not shifted) and a head that never gets a gradient."""
    trainer = plain_trainer(attached(tiny_model("qwen3", task)), tmp_path, ROWS[task]())
    with pytest.raises(UserError, match="use shadowpeft"):
        trainer.train()


def test_a_plain_trainer_cannot_compute_a_loss_of_its_own(tmp_path):
    model, rows = attached(tiny_model("qwen3")), language_rows()
    function = {"compute_loss_func": lambda outputs, labels, num_items_in_batch: outputs.logits.mean()}
    arguments = brief_arguments(tmp_path, max_steps=1)
    with pytest.raises(UserError, match="label_smoothing_factor or compute_loss_func"):
        Trainer(model, arguments, train_dataset=rows, **function).train()


@pytest.mark.parametrize("task", ROWS)
def test_without_a_share_of_the_shadows_smoothing_is_the_bases(task, tmp_path):
    """Catches labels that are not shifted: a fresh shadow is its base, and its smoothed loss the base's."""
    model = attached(tiny_model("qwen3", task), ShadowConfig(shadow_loss_weight=0.0))
    batch = {"input_ids": token_ids(2, 9), "labels": token_ids(2, 9)}
    if task != "causal-lm":
        batch["labels"] = torch.tensor([2, 0])
    losses = [
        plain_trainer(either, tmp_path, ROWS[task]()).compute_loss(either, dict(batch))
        for either in (model, tiny_model("qwen3", task))
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    if task == "causal-lm":
        plain_trainer(model, tmp_path, ROWS[task]()).train()


def test_a_loop_without_labels_is_told_what_is_missing():
    """Catches a loss of the caller's that leaves the shadow's head untrained without a word."""
    model = attached(tiny_model("llama")).train()
    for call in (model, model.base_model):
        with pytest.warns(UserWarning, match="no part of the shadow's own loss"):
            call(token_ids(2, 9))
    # These are as they should be, and every warning is an error.
    model(token_ids(2, 9), output_shadow_logits=True)
    model(token_ids(2, 9), labels=token_ids(2, 9))
    with torch.no_grad():
        model(token_ids(2, 9))
    model.eval()(token_ids(2, 9))
    attached(tiny_model("llama"), ShadowConfig(shadow_loss_weight=0.0)).train()(token_ids(2, 9))
