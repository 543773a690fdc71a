"""`ShadowTrainer` from Python: a user's datasets, collators and metrics, resuming, and the best step."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from helpers.families import attached, perturb, tiny_model, token_ids
from helpers.trainers import assert_best_step_is_loaded, brief_arguments, by_steps, class_rows, language_rows
from torch.nn.utils.rnn import pad_sequence

from shadowpeft import CheckpointError, ConfigError, DataError, ShadowConfig, attach
from shadowpeft.trainer import ShadowTrainer

LENGTHS = (9, 4, 7, 5)


def uneven_rows() -> list[dict]:
    ids = [token_ids(1, length, seed=length)[0].tolist() for length in LENGTHS]
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * len(row)} for row in ids]


def pad(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A user's collator: it knows three columns and takes no others."""
    assert all(set(row) == {"input_ids", "labels", "attention_mask"} for row in rows)
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: pad_sequence([torch.as_tensor(row[name]) for row in rows], True, padding)
        for name, padding in fill.items()
    }


def per_token(model, rows: list[dict]) -> float:
    """The loss of the attached model over all tokens, row by row."""
    losses = []
    for row in rows:
        ids = torch.as_tensor(row["input_ids"])[None]
        with torch.no_grad():
            losses.append(F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none"))
    return torch.cat(losses).mean().item()


DATASETS = {
    "list": lambda rows: rows,
    "hub's": lambda rows: Dataset.from_list([{**row, "text": "not for the model"} for row in rows]),
    "iterable": lambda rows: IterableDataset.from_generator(lambda: iter(rows)),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_users_dataset_and_collator_do(kind, tmp_path):
    """Catches an own kind of examples that is asked for, and a mean of batches in place of tokens."""
    model, rows = perturb(attached(tiny_model("qwen3"))), uneven_rows()
    trainer = ShadowTrainer(
        model,
        brief_arguments(tmp_path, max_steps=2, per_device_eval_batch_size=3),
        data_collator=pad,
        train_dataset=DATASETS[kind](rows),
        eval_dataset=DATASETS[kind](rows),
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(per_token(model.eval(), rows), rel=1e-4)
    trainer.train()
    assert len([log for log in trainer.state.log_history if "shadow_loss" in log]) == 2


def test_several_datasets_are_measured_by_name(tmp_path):
    model, rows = perturb(attached(tiny_model("qwen3"))), uneven_rows()
    trainer = ShadowTrainer(model, brief_arguments(tmp_path), pad, eval_dataset={"a": rows, "b": rows[:1]})
    metrics = trainer.evaluate()
    assert metrics["eval_a_loss"] == pytest.approx(per_token(model, rows), rel=1e-4)
    assert metrics["eval_b_loss"] == pytest.approx(per_token(model, rows[:1]), rel=1e-4)


def test_a_users_metrics_are_computed(tmp_path):
    """Catches a function that is taken and never called, and predictions that are not the logits."""
    model, rows = perturb(attached(tiny_model("qwen3"))), language_rows(4)
    seen = {}

    def accuracy(prediction):
        seen["shape"] = prediction.predictions.shape
        hits = np.argmax(prediction.predictions[:, :-1], -1) == prediction.label_ids[:, 1:]
        return {"accuracy": hits.mean()}

    trainer = ShadowTrainer(model, brief_arguments(tmp_path), eval_dataset=rows, compute_metrics=accuracy)
    metrics = trainer.evaluate()
    assert seen["shape"] == (4, 9, model.config.vocab_size)
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert metrics["eval_loss"] == pytest.approx(per_token(model, rows), rel=1e-4)


def test_a_classifier_is_measured_attached_alone(tmp_path):
    """Catches an evaluation that adds the shadow's share, which no other model has."""
    model, rows = perturb(attached(tiny_model("qwen3", "sequence-classification"))), class_rows(4)
    trainer = ShadowTrainer(
        model, brief_arguments(tmp_path, max_steps=1), train_dataset=rows, eval_dataset=rows
    )
    with torch.no_grad():
        logits = model(torch.stack([row["input_ids"] for row in rows])).logits
    expected = F.cross_entropy(logits, torch.tensor([row["labels"] for row in rows])).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    trainer.train()


def test_what_cannot_be_trained_or_measured_is_refused(tmp_path):
    model = attached(tiny_model("qwen3"))
    with pytest.raises(ConfigError, match="trains what attach"):
        ShadowTrainer(tiny_model("qwen3"), brief_arguments(tmp_path))
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        ShadowTrainer(model, brief_arguments(tmp_path)).evaluate()
    with pytest.raises(DataError, match="no labels, only input_ids"):
        ShadowTrainer(model, brief_arguments(tmp_path)).evaluate([{"input_ids": token_ids(1, 5)[0]}])


def test_the_best_step_is_loaded(base, tmp_path):
    """Catches a run that ends with its last step, and says so in transformers' log alone."""
    model, rows = attached(base), language_rows()
    arguments = by_steps(tmp_path, load_best_model_at_end=True)
    trainer = ShadowTrainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert_best_step_is_loaded(trainer, tmp_path, model.adapter)


def test_a_run_resumes_from_its_own_checkpoint_alone(base, tmp_path):
    model, rows = attached(base), language_rows()
    ShadowTrainer(model, by_steps(tmp_path), train_dataset=rows, eval_dataset=rows).train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = attached(base)
    ShadowTrainer(again, by_steps(tmp_path), train_dataset=rows, eval_dataset=rows).train(
        resume_from_checkpoint=True
    )
    for name, tensor in again.adapter.state_dict().items():
        torch.testing.assert_close(tensor, model.adapter.state_dict()[name], rtol=1e-4, atol=1e-5)
    other = attach(base, ShadowConfig(alpha=0.9))
    with pytest.raises(CheckpointError, match="other settings than this run"):
        ShadowTrainer(other, by_steps(tmp_path), train_dataset=rows, eval_dataset=rows).train(
            resume_from_checkpoint=True
        )
