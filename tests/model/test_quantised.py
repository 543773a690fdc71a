"""A base in 4 bits beside a shadow that is not. Most needs bitsandbytes, which runs on a CPU, too.

On a CPU it repacks the weights when they are first evaluated, and they pass no gradient from then on: each
test trains first.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import (
    attached,
    classification_batch,
    language_batch,
    perturb,
    tiny_config,
    tiny_model,
    token_ids,
)
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from shadowpeft import ShadowConfig, ShadowedModel, UserError, arch, attach
from shadowpeft.errors import ConfigError, UnsupportedModelError
from shadowpeft.storage import stock_models
from shadowpeft.train import checks, train
from shadowpeft.train.config import TrainConfig

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
# bitsandbytes packs 64 numbers at a time.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def save_plain(folder: Path, model_type: str, task: arch.Task = "causal-lm", **changes: int) -> Path:
    config = tiny_config(model_type, **changes)
    for name, size in SIZES.items():
        if name in vars(config):
            setattr(config, name, size)
    tiny_model(model_type, task, config=config).save_pretrained(folder)
    return folder


def load_quantised(folder: Path, dtype: torch.dtype, **changes: Any) -> PreTrainedModel:
    settings = BitsAndBytesConfig(**{**FOUR, "bnb_4bit_compute_dtype": dtype, **changes})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=settings)


def packed(base: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in base.named_parameters() if not p.is_floating_point()}


@needs_bitsandbytes
@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "qwen3_moe"])
def test_a_4bit_base_serves_as_any_other(model_type, variant, tmp_path):
    """Catches a shadow that is quantised with its base or takes its packed type, and steps of its life that
    trip over packed weights.
    """
    ids = token_ids(1, 7)
    base = load_quantised(save_plain(tmp_path / "base", model_type), torch.bfloat16)
    before = packed(base)
    assert before
    model = perturb(attached(base, ShadowConfig(variant=variant))).train()
    assert model.adapters["default"].dtype == torch.float32
    assert "quantization_config" not in model.adapters["default"].shadow.backbone.config.to_dict()
    model(**language_batch()).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters() if name in before)
    with torch.no_grad():
        want = model.eval()(ids, output_shadow_logits=True)
        small = model.detached()
        assert not packed(small)
        model.save_pretrained(tmp_path / "adapter")
        # Loaded for use, its weights are those of the detached model: in the base's type.
        model.load_adapter(tmp_path / "adapter", "served")
        served = model(ids, output_shadow_logits=True).shadow_logits
        torch.testing.assert_close(small(ids).logits, served)
        untouched = load_quantised(tmp_path / "base", torch.bfloat16)
        assert torch.equal(model.unload()(ids).logits, untouched(ids).logits)
        again = ShadowedModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
        assert torch.equal(again(ids).logits, want.logits)
    plain = ShadowedModel.from_pretrained(
        stock_models.load_model(str(tmp_path / "base"), torch.bfloat16), tmp_path / "adapter"
    )
    plain.save_pretrained(tmp_path / "back")
    again.load_adapter(tmp_path / "back", "b")


@needs_bitsandbytes
@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_quantising_changes_the_weights_and_nothing_else(variant, tmp_path):
    """Catches a gradient lost in a packed layer: loss and gradients are those of a plain base of the weights
    that the packed ones mean.
    """
    folder = save_plain(tmp_path / "base", "llama")
    losses, gradients = [], []
    for base in (load_quantised(folder, torch.float32), load_quantised(folder, torch.float32).dequantize()):
        model = perturb(attached(base, ShadowConfig(variant=variant, dropout=0.0, alpha=0.5))).train()
        loss = model(**language_batch()).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert packed(load_quantised(folder, torch.float32))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@needs_bitsandbytes
def test_a_base_prepared_for_training_keeps_nothing_below_the_injections(tmp_path):
    """Catches the graph that PEFT's preparation starts at the embeddings, and its float32 norms beside packed
    weights.
    """
    peft = pytest.importorskip("peft")
    base = peft.prepare_model_for_kbit_training(
        load_quantised(save_plain(tmp_path / "base", "qwen3"), torch.bfloat16)
    )
    model = perturb(attached(base, ShadowConfig(inject_from=2))).train()
    states = model(**language_batch(), output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, False, True, True]
    model(**language_batch()).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@needs_bitsandbytes
def test_a_base_quantised_in_part_is_known_again(tmp_path):
    """Catches a sample of the base that is of one matrix before quantising and of another one after."""
    folder = save_plain(tmp_path / "base", "llama")
    attach(
        load_quantised(folder, torch.float32, llm_int8_skip_modules=["down_proj", "lm_head"])
    ).save_pretrained(tmp_path / "adapter")
    ShadowedModel.from_pretrained(stock_models.load_model(str(folder)), tmp_path / "adapter")


@needs_bitsandbytes
@pytest.mark.parametrize(
    "settings", [{}, {"load_in_4bit": False, "load_in_8bit": True}], ids=["4 bits", "8 bits"]
)
@pytest.mark.parametrize("width", [64, 32])
def test_a_quantised_head_trains_and_is_detached(settings, width, tmp_path):
    """Catches a packed head copied as if it were numbers, and one folded with P otherwise than it
    computes.
    """
    folder = save_plain(
        tmp_path / "base", "llama", vocab_size=128
    )  # bitsandbytes' product on a CPU takes no 97 rows
    base = load_quantised(folder, torch.float32, llm_int8_skip_modules=["norm"], **settings)
    assert not arch.head_of(base).weight.is_floating_point()
    shadow = (
        None
        if width == 64
        else tiny_model("llama", config=tiny_config("llama", hidden_size=width, head_dim=8, vocab_size=128))
    )
    model = perturb(attached(base, ShadowConfig(), shadow)).train()
    model(**language_batch()).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    ids = token_ids(1, 7)
    with torch.no_grad():
        want, small = model.eval()(ids, output_shadow_logits=True).shadow_logits, model.detached()
        assert not packed(small)
        # The packed head's products round the states, too.
        torch.testing.assert_close(small(ids).logits, want, rtol=0, atol=0.02 * want.abs().max().item())


def test_a_head_that_does_not_answer_cannot_be_folded():
    """Catches a detached model made of whatever a packed head's tensor happens to be."""
    model = attached(tiny_model("llama"), ShadowConfig())

    class Packed(torch.nn.Linear):
        def forward(self, _):
            raise RuntimeError("no kernel for this device")

    model.base.lm_head = Packed(32, 97, bias=False)
    with pytest.raises(
        UnsupportedModelError, match=r"this Packed does not give them \(no kernel for this device\)"
    ):
        model.detached()


@needs_bitsandbytes
def test_a_quantised_classifier_trains_both_heads(tmp_path):
    """Catches a head for classes that was quantised with the base and could not be trained."""
    folder = save_plain(tmp_path / "base", "llama", "sequence-classification")
    settings = BitsAndBytesConfig(**FOUR)
    base = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings
    )
    model = attached(base, ShadowConfig()).train()
    model(**classification_batch()).loss.backward()
    heads = model.adapters["default"].score, model.adapters["default"].shadow_score
    assert all(head.weight.grad.any() for head in heads)


@needs_bitsandbytes
def test_a_quantised_shadow_is_refused(tmp_path):
    folder = save_plain(tmp_path / "base", "llama")
    with pytest.raises(UnsupportedModelError, match="load it without quantization_config"):
        attach(stock_models.load_model(str(folder)), shadow=load_quantised(folder, torch.float32))


@needs_bitsandbytes
def test_files_load_the_linear_layers_in_4_bits_and_not_the_head(tmp_path):
    base = stock_models.load_model(
        str(save_plain(tmp_path / "base", "llama")), torch.bfloat16, load_in_4bit=True
    )
    assert len(packed(base)) == 4 * 7
    assert arch.head_of(base).weight.dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_4_bits_without_a_gpu_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="load_in_4bit needs a GPU"):
        train(TrainConfig("no model", "no data", str(tmp_path / "run"), load_in_4bit=True))


def test_4_bits_without_the_library_is_refused_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        checks.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else object()
    )
    with pytest.raises(UserError, match=r"pip install 'shadowpeft\[4bit\]'"):
        train(TrainConfig("no model", "no data", str(tmp_path / "run"), load_in_4bit=True))


def test_a_quantised_folder_without_its_library_names_it(monkeypatch, tmp_path):
    """Catches a traceback where one sentence says what to install."""
    folder = save_plain(tmp_path / "base", "llama")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("transformers.quantizers.quantizer_gptq.is_optimum_available", lambda: False)
    with pytest.raises(UserError, match=r"cannot be loaded: .*pip install optimum"):
        stock_models.load_model(str(folder))
