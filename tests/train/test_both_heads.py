"""Label smoothing and a loss function of the user's, of both heads' answers."""

import pytest
import torch
import torch.nn.functional as F
from helpers.families import attached, classification_batch, language_batch, perturb, tiny_model
from helpers.trainers import brief_arguments, class_rows, language_rows

from shadowpeft import ConfigError, ShadowConfig, UserError
from shadowpeft.trainer import ShadowTrainer

WEIGHT = 0.7
SETTINGS = ShadowConfig(shadow_loss_weight=WEIGHT, shadow_distil=0.0, dropout=0.0)
BATCHES = {"causal-lm": language_batch, "sequence-classification": classification_batch}
ROWS = {"causal-lm": language_rows, "sequence-classification": class_rows}


@pytest.fixture(params=BATCHES)
def task(request):
    return request.param


def shadowed(task, settings=SETTINGS):
    return perturb(attached(tiny_model("qwen3", task), settings))


def both_logits(model, batch):
    with torch.no_grad():
        out = model(batch["input_ids"], batch["attention_mask"], output_shadow_logits=True)
    return out.logits, out.shadow_logits


def aligned(logits, labels, task):
    if task == "causal-lm":
        return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return logits, labels


def test_smoothing_is_shifted_and_has_the_shadows_share(task, tmp_path):
    """Catches labels that are not shifted, a share that is missing, and a head without a gradient."""
    model, batch = shadowed(task), BATCHES[task]()
    trainer = ShadowTrainer(model, brief_arguments(tmp_path, label_smoothing_factor=0.1))
    attached_loss, shadow_loss = (
        F.cross_entropy(*aligned(logits, batch["labels"], task), label_smoothing=0.1)
        for logits in both_logits(model, batch)
    )
    model.train()
    loss = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(loss, attached_loss + WEIGHT * shadow_loss, rtol=1e-5, atol=0)
    loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert not [name for name, weight in trained.items() if weight.grad is None]
    model.eval()
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), attached_loss, rtol=1e-5, atol=0)


def test_smoothing_counts_the_accumulated_batch(task, tmp_path):
    """Catches a loss that is normalised by its own batch, where the Trainer counted several."""
    model, batch = shadowed(task).train(), BATCHES[task]()
    trainer = ShadowTrainer(model, brief_arguments(tmp_path, label_smoothing_factor=0.1))
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    alone = trainer.compute_loss(model, dict(batch))
    counted = trainer.compute_loss(model, dict(batch), num_items_in_batch=4 * count)
    torch.testing.assert_close(4 * counted, alone, rtol=1e-5, atol=0)


def test_a_run_logs_both_losses(task, tmp_path):
    """Catches a run that ends with a KeyError, as the labels are not in the batch."""
    rows = ROWS[task]()
    arguments = brief_arguments(tmp_path, label_smoothing_factor=0.1, max_steps=2)
    trainer = ShadowTrainer(shadowed(task), arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all(entry["loss"] > WEIGHT * entry["shadow_loss"] > 0 for entry in logged)
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_function_of_the_users_sees_each_head(task, tmp_path):
    """Catches a class weight that only one of the heads gets."""
    model, batch = shadowed(task), BATCHES[task]()
    weights = torch.linspace(0.5, 2.0, model.config.vocab_size if task == "causal-lm" else 3)

    def weighted(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(*aligned(outputs.logits, labels, task), weight=weights)

    expected = [
        F.cross_entropy(*aligned(logits, batch["labels"], task), weight=weights)
        for logits in both_logits(model, batch)
    ]
    trainer = ShadowTrainer(model, brief_arguments(tmp_path), compute_loss_func=weighted)
    model.train()
    loss = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(loss, expected[0] + WEIGHT * expected[1], rtol=1e-5, atol=0)


def test_what_would_be_another_loss_is_refused(tmp_path):
    arguments = brief_arguments(tmp_path, label_smoothing_factor=0.1)
    distilling = ShadowConfig(shadow_loss_weight=WEIGHT, shadow_distil=0.5)
    with pytest.raises(ConfigError, match="shadow_distil has a loss of its own"):
        ShadowTrainer(shadowed("causal-lm", distilling), arguments)
    with pytest.raises(ConfigError, match="use_liger_kernel replaces"):
        ShadowTrainer(shadowed("causal-lm"), brief_arguments(tmp_path, use_liger_kernel=True))
    model, batch = shadowed("sequence-classification"), classification_batch()
    several = {**batch, "labels": torch.eye(3)[batch["labels"]]}
    with pytest.raises(UserError, match="labels that are class numbers"):
        ShadowTrainer(model, arguments).compute_loss(model, several)
