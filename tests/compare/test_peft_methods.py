"""The methods of PEFT as a study builds them."""

import warnings

import pytest
import torch
from helpers.families import perturb, tiny_model, token_ids
from peft import LoraConfig

from shadowpeft.compare.peft_methods import PEFT_METHODS, peft_config, peft_model


def test_lora_and_dora_adapt_all_linear_layers_unless_told_otherwise():
    """Catches DoRA that is LoRA, a default that overrules the user, and a classifier without its head."""
    lora, dora = (peft_config(method, {"r": 4}, classifies=False) for method in ("lora", "dora"))
    assert (lora.use_dora, dora.use_dora, lora.r) == (False, True, 4)
    assert lora.target_modules == dora.target_modules == "all-linear"
    assert peft_config("lora", {"target_modules": ["q_proj"]}, classifies=False).target_modules == {"q_proj"}
    kinds = {
        (method, classifies): peft_config(method, {}, classifies).task_type
        for method in PEFT_METHODS
        for classifies in (False, True)
    }
    for (method, classifies), kind in kinds.items():
        assert kind == ("SEQ_CLS" if classifies else "CAUSAL_LM"), method
    assert not isinstance(peft_config("peft-shadow", {}, classifies=False), LoraConfig)


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_a_method_of_peft_trains_without_warnings(method):
    """Catches what PEFT says of GPT-2's weights, once for every run of a study."""
    config = peft_config(method, {}, classifies=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = peft_model(tiny_model("gpt2"), config)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    part = "shadow" if method == "peft-shadow" else "lora"
    assert all(part in name for name in trained)
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.parameters())


@torch.no_grad()
def test_pefts_shadow_finds_its_cache() -> None:
    """Catches a shadow that loses its cache, for which transformers has a new name: the tokens are wrong, and
    nothing says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = peft_model(tiny_model("qwen3"), peft_config("peft-shadow", {}, classifies=False))
        perturb(model.eval())
        ids_BT = token_ids(2, 9)
        settings = {"attention_mask": torch.ones_like(ids_BT), "max_new_tokens": 10, "do_sample": False}
        found, right = (model.generate(ids_BT, **settings, use_cache=cached) for cached in (True, False))
    assert torch.equal(found, right)
