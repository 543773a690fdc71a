"""Classifiers: pooling, both heads, and their losses."""

import pytest
import torch
from helpers.families import LABELS, attached, padded, perturb, tiny_model, token_ids
from helpers.family_cases import close, loss_and_gradients, rows
from helpers.tiny import qwen3_config
from transformers import AutoModelForSequenceClassification

from shadowpeft import ShadowConfig, ShadowedModel, UserError, attach


@torch.no_grad()
def test_a_fresh_classifier_is_the_base(model_type: str, config: ShadowConfig) -> None:
    """Catches pooling at another token than transformers does, with padding and without, and a second head
    where one is to answer.
    """
    base = tiny_model(model_type, "sequence-classification")
    ids, mask, _ = padded(rows(), "right")
    expected = base(ids, attention_mask=mask).logits
    model = attached(base, config)
    assert expected.shape == (2, LABELS)
    for kwargs in ({"attention_mask": mask}, {}):
        found = model(ids, output_shadow_logits=True, **kwargs)
        # The base computes its head for every token and chooses then, so that roundings may differ.
        torch.testing.assert_close(found.logits, base(ids, **kwargs).logits)
        assert found.shadow_logits.any()
    assert not torch.equal(perturb(model)(ids, attention_mask=mask).logits, expected)


@torch.no_grad()
def test_a_classifier_does_not_see_the_side_of_the_padding(classifier: ShadowedModel) -> None:
    """Catches pooling a padding token, or attending to one, when texts are padded on the left."""
    results = []
    for ids, mask, positions in (padded(rows(), "left"), padded(rows(), "right")):
        results.append(
            classifier(ids, attention_mask=mask, position_ids=positions, output_shadow_logits=True)
        )
    close(results[0].logits, results[1].logits)
    close(results[0].shadow_logits, results[1].shadow_logits)
    for i, row in enumerate(rows()):
        close(classifier(row[None]).logits[0], results[0].logits[i])


def test_both_classification_heads_learn(model_type: str, config: ShadowConfig) -> None:
    """Catches a head that is shared, frozen or left out of the loss."""
    model = perturb(attached(tiny_model(model_type, "sequence-classification"), config)).train()
    _, found = loss_and_gradients(model, token_ids(2, 9), torch.tensor([0, 2]))
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []
    assert {name.split(".")[2] for name in found} >= {"score", "shadow_score"}
    assert not torch.equal(
        found["adapters.default.score.weight"], found["adapters.default.shadow_score.weight"]
    )
    assert all(parameter.grad is None for parameter in model.base.parameters())


PROBLEMS = {
    "regression": (1, torch.tensor([0.3, -1.2])),
    "single": (5, torch.tensor([3, 1])),
    "several": (4, torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_classification_losses_agree_with_transformers(problem, ids):
    """Catches a wrong loss per problem type, and a problem type written into a configuration."""
    labels_count, labels = PROBLEMS[problem]
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=labels_count)).eval()
    model = attach(base, ShadowConfig(variant="paper", shadow_loss_weight=0.0))
    out = model(ids, labels=labels)
    assert model.config.problem_type is None
    torch.testing.assert_close(out.loss, base(ids, labels=labels).loss)
    halves = [
        model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=torch.tensor(labels.numel())).loss
        for i in range(2)
    ]
    torch.testing.assert_close(sum(halves), out.loss)


def test_classifiers_pool_the_last_token_on_either_side(ids):
    """Catches pooling of a padding token, which left padding provokes."""
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=3)).eval()
    model = perturb(attach(base, ShadowConfig(alpha=0.5)))
    want = model(ids[:1, :6], output_shadow_logits=True)
    pad = torch.zeros(1, 4, dtype=torch.long)
    mask = torch.ones(1, 6, dtype=torch.long)
    right = model(torch.cat([ids[:1, :6], pad], 1), torch.cat([mask, pad], 1), output_shadow_logits=True)
    positions = torch.tensor([[0, 0, 0, 0, *range(6)]])
    left = model(
        torch.cat([pad, ids[:1, :6]], 1), torch.cat([pad, mask], 1), positions, output_shadow_logits=True
    )
    for got in (right, left):
        torch.testing.assert_close(got.logits, want.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got.shadow_logits, want.shadow_logits, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="cannot generate"):
        model.generate(ids)


PADDED_BY_EOS = {
    "a row ends in it": ([[5, 6, 7, 2], [5, 6, 7, 8]], [[1, 1, 1, 1], [1, 1, 1, 1]]),
    "several at the end": ([[5, 6, 2, 2], [5, 2, 7, 8]], [[1, 1, 1, 1], [1, 1, 1, 1]]),
    "padding on the right": ([[5, 6, 2, 2], [5, 6, 7, 2]], [[1, 1, 1, 0], [1, 1, 1, 1]]),
    "padding on the left": ([[2, 2, 5, 2], [5, 6, 7, 2]], [[0, 0, 1, 1], [1, 1, 1, 1]]),
    "nothing else": ([[2, 2, 2, 2], [5, 6, 7, 2]], [[1, 1, 1, 1], [1, 1, 1, 1]]),
    "one row": ([[5, 6, 7, 2]], [[1, 1, 1, 1]]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("row", PADDED_BY_EOS)
def test_base_shadow_and_detached_model_read_the_same_token(name, row, tmp_path):
    """Catches a second rule for the end of a row: where rows end in the token that also pads, the mask and
    the ids say different things.
    """
    base = tiny_model(name, "sequence-classification")
    base.config.pad_token_id = base.config.eos_token_id = 2
    ids, mask = map(torch.tensor, PADDED_BY_EOS[row])
    given = [{"attention_mask": mask}, {}]
    wanted = [base(ids, **mask).logits for mask in given]
    model = attached(base, ShadowConfig())
    for kwargs, want in zip(given, wanted, strict=True):
        close(model(ids, **kwargs).logits, want)
    perturb(model)
    model.detached().save_pretrained(tmp_path)
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for kwargs in given:
        shadow_logits = model(ids, **kwargs, output_shadow_logits=True).shadow_logits
        close(model.detached()(ids, **kwargs).logits, shadow_logits)
        close(exported(ids, **kwargs).logits, shadow_logits)


@torch.no_grad()
def test_without_ids_a_classifier_reads_the_last_position_as_its_base_does():
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=3)).eval()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    embeds = base.get_input_embeddings()(token_ids(2, 5))
    want = base(inputs_embeds=embeds, attention_mask=mask).logits
    close(attach(base)(inputs_embeds=embeds, attention_mask=mask).logits, want)


@torch.no_grad()
def test_a_classifier_without_padding_token_reads_the_last_token_of_one_row():
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(
        qwen3_config(num_labels=3, pad_token_id=None)
    ).eval()
    ids, mask = token_ids(2, 7), torch.ones(2, 7, dtype=torch.long)
    want = base(ids[:1], attention_mask=mask[:1]).logits
    model = attach(base)
    close(model(ids[:1], attention_mask=mask[:1]).logits, want)
    for kwargs in ({}, {"attention_mask": mask}):
        with pytest.raises(UserError, match=r"set model\.config\.pad_token_id"):
            model(ids, **kwargs)
    model.config.pad_token_id = 0
    assert model(ids).logits.shape == (2, 3)


def test_a_classifier_reads_on_from_its_cache():
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=3)).eval()
    model = attach(base)
    cache = model.new_cache()
    ids, mask = token_ids(2, 7), torch.ones(2, 7, dtype=torch.long)
    model(ids[:, :5], attention_mask=mask[:, :5], past_key_values=cache, use_cache=True)
    last = model(ids[:, 5:], attention_mask=mask, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(last, model(ids, attention_mask=mask).logits, atol=1e-5, rtol=1e-4)
