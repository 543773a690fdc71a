"""What transformers asks of a model: methods for adapters, checkpointing, embeddings, labels."""

import pytest
import torch
from helpers.families import attached, tiny_model, token_ids
from transformers import Trainer, TrainingArguments

from shadowpeft import UserError, attach
from shadowpeft.arch import versions


def test_transformers_adapter_verbs_answer_for_ours(model):
    """Catches inherited methods that say no adapter is loaded while one is."""
    assert model.active_adapters() == ["default"]
    for call in (model.enable_adapters, model.disable_adapters, model.disable_adapter):
        with pytest.raises(UserError, match="disabled"):
            call()
    for call in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UserError, match=r"cannot be merged.*detached\(\)"):
            call()


def test_a_plain_trainer_evaluates(model, tmp_path):
    """Catches a forward signature from which the Trainer concludes that batches have no labels."""
    rows = [{"input_ids": row, "labels": row} for row in token_ids(4, 9)]
    arguments = TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, max_steps=1, disable_tqdm=True, dataloader_pin_memory=False
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.label_names == ["labels"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        model(token_ids(4, 9), labels=token_ids(4, 9)).loss.item(), rel=1e-4
    )


def test_reentrant_checkpointing_is_refused() -> None:
    """Catches a shadow that silently gets no gradient, because nothing that enters its first block has
    one.
    """
    with pytest.raises(UserError, match="use_reentrant=False"):
        versions.recompute_activations(attached(tiny_model("llama")), use_reentrant=True)


def test_the_vocabulary_belongs_to_the_base(base):
    with pytest.raises(UserError, match="before attach"):
        attach(base).resize_token_embeddings(200)


def test_embeddings_and_head_are_set_on_the_base(model):
    """Catches an error of transformers' that asks the user to write a subclass."""
    for verb in (model.set_input_embeddings, model.set_output_embeddings):
        with pytest.raises(UserError, match="on the base before attach"):
            verb(torch.nn.Embedding(4, 4))


@pytest.mark.parametrize("verb", ["init_weights", "initialize_weights"])
def test_nothing_draws_the_weights_anew(model, verb):
    """Catches transformers' own initialisation, which overwrites what was trained."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(UserError, match="add_adapter"):
        getattr(model, verb)()
    model.post_init()
    model.apply(model._init_weights)
    model.tie_weights()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
