"""What transformers asks of a model: methods for adapters, checkpointing, embeddings, labels."""

import pytest
import torch
from helpers.families import attached, tiny_model, token_ids
from transformers import Trainer, TrainingArguments

from shadowpeft import ShadowedModel, UserError, attach
from shadowpeft.arch import versions


def test_transformers_adapter_verbs_answer_for_ours(model):
    """Catches inherited methods that say no adapter is loaded while one is."""
    assert model.active_adapters() == ["default"]
    for call in (model.enable_adapters, model.disable_adapters):
        with pytest.raises(UserError, match="disabled"):
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


def test_a_classifier_cannot_generate(base):
    """Catches an answer of the class for its models, which are of two tasks."""
    assert ShadowedModel.can_generate()
    assert attach(base).can_generate()
    assert not attached(tiny_model("llama", "sequence-classification")).can_generate()


@pytest.mark.parametrize("family", ["qwen3_moe", "llama", "falcon"])
@torch.no_grad()
def test_an_implementation_reaches_the_base_and_every_shadow(family):
    """Catches a choice that changes the copy of the configuration alone."""
    stock, model = tiny_model(family), attached(tiny_model(family))
    model.add_adapter("b")
    before = model.base.config._attn_implementation, model.base.config._experts_implementation
    for one in (stock, model):
        one.set_attn_implementation("eager")
        one.set_experts_implementation("batched_mm")
    parts = [model, model.base, *(adapter.shadow.backbone for adapter in model.adapters.values())]
    for part in parts:
        assert part.config._attn_implementation == stock.config._attn_implementation
        assert part.config._experts_implementation == stock.config._experts_implementation
    torch.testing.assert_close(model(token_ids(2, 9)).logits, stock(token_ids(2, 9)).logits)
    base = model.unload()
    assert (base.config._attn_implementation, base.config._experts_implementation) == before


def test_copies_for_several_gpus_in_one_process_are_refused(base):
    """Catches copies whose blocks are the first GPU's."""
    with pytest.raises(UserError, match="one process for each GPU"):
        attach(base)._replicate_for_data_parallel()
