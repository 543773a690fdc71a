"""The detached model is a stock model that computes the shadow."""

import copy
from pathlib import Path

import pytest
import torch
from helpers.explicit_shadows import explicit
from helpers.families import padded, perturb, token_ids
from helpers.family_cases import close, rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from shadowpeft import ShadowedModel, arch, attach


@torch.no_grad()
def test_detached_is_a_stock_model_that_computes_the_shadow(
    shadowed: ShadowedModel, model_type: str, tmp_path: Path
) -> None:
    """Catches a detached model that needs us, computes something else, or loses a tensor on its way through a
    file.
    """
    ids, alone = token_ids(2, 9), shadowed.detached()
    assert type(alone).__name__ == arch.FAMILIES[model_type].causal
    assert type(alone).__module__.startswith("transformers.models.")
    expected = shadowed(ids, output_shadow_logits=True).shadow_logits
    close(alone(ids).logits, expected)
    alone.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, alone(ids).logits)
    assert again.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 12)


@torch.no_grad()
def test_detached_shares_no_storage(shadowed: ShadowedModel) -> None:
    """Catches training the detached model altering the base or the adapter it came from."""
    before = copy.deepcopy(shadowed.state_dict())
    for parameter in shadowed.detached().parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in shadowed.state_dict().items())


@torch.no_grad()
def test_a_detached_classifier_computes_the_shadow(
    classifier: ShadowedModel, model_type: str, tmp_path: Path
) -> None:
    """Catches a detached classifier with the base's head, or one that pools elsewhere."""
    ids, mask, _ = padded(rows(), "right")
    alone = classifier.detached()
    assert type(alone).__name__ == arch.FAMILIES[model_type].classifier
    close(
        alone(ids, attention_mask=mask).logits,
        classifier(ids, attention_mask=mask, output_shadow_logits=True).shadow_logits,
    )
    alone.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(ids, attention_mask=mask).logits, alone(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("pair", ["narrower", "another family"])
@torch.no_grad()
def test_an_explicit_shadow_classifies_alone(pair: str) -> None:
    """Catches a detached classifier whose head is folded without P or that pads by the shadow's own
    settings.
    """
    model = perturb(explicit(pair, "sequence-classification"))
    ids, mask, _ = padded(rows(), "right")
    close(
        model.detached()(ids, attention_mask=mask).logits,
        model(ids, attention_mask=mask, output_shadow_logits=True).shadow_logits,
    )


def test_the_detached_model_has_the_settings_of_the_model(base):
    """Catches a padding token set after attaching that the edge model never hears of, and an edge model named
    as its base.
    """
    model = attach(base)
    model.config.pad_token_id = 5
    small = model.detached()
    assert small.config.pad_token_id == 5
    assert small.config.name_or_path == ""


def test_the_detached_model_generates_as_the_model_was_told_to(base, tmp_path):
    """Catches an end token set on the attached model that the small one does not stop at."""
    model = attach(base)
    model.generation_config.update(eos_token_id=[7, 9], repetition_penalty=1.5)
    alone = model.detached()
    alone.save_pretrained(tmp_path)
    for found in (alone, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert found.generation_config.eos_token_id == [7, 9]
        assert found.generation_config.repetition_penalty == 1.5
    alone.generation_config.eos_token_id = 8
    assert model.generation_config.eos_token_id == [7, 9]
    assert base.generation_config.repetition_penalty is None
