"""llama.cpp's layout: files compute what the model does by llama.cpp's equations, and what it cannot compute
is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import tiny_config, tiny_model
from helpers.gguf_files import TOKENIZER, File, as_a_user, by_the_equations, made
from helpers.gguf_tokenizers import tokenizer_of
from transformers import AutoModelForCausalLM, PretrainedConfig

from shadowpeft.errors import UnsupportedModelError
from shadowpeft.export import export

pytest.importorskip("gguf")
gguf_file = pytest.importorskip("shadowpeft.export.gguf_file")
gguf_layout = pytest.importorskip("shadowpeft.export.gguf_layout")


ALL_FULL = {"use_sliding_window": False, "layer_types": ["full_attention"] * 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", ALL_FULL),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "query_pre_attn_scalar": 32}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 32}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    """Catches a tensor left as transformers has it where llama.cpp computes otherwise, and a size that is
    missing or wrong."""
    family, changes = MODELS[name]
    model, tokenizer = made(family, **changes)
    gguf_file.write(model, tokenizer, tmp_path / "small.gguf")
    ids = tokenizer("the quick brown fox jumps over the lazy dog and on").input_ids
    assert len(ids) > 9
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
    file = File(tmp_path / "small.gguf")
    torch.testing.assert_close(by_the_equations(file, ids), wanted, rtol=1e-4, atol=1e-4)
    assert set(file.types.values()) == {"F32"}
    assert ("output.weight" in file.tensors) != model.config.tie_word_embeddings


def test_llama_3_slows_its_frequencies(tmp_path: Path) -> None:
    """Catches factors that are inverted or of the wrong frequencies; from the definition, high ones stay and
    low ones are divided."""
    slowed = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model, tokenizer = made("llama", head_dim=32, rope_parameters={"rope_theta": 10000.0, **slowed})
    gguf_file.write(model, tokenizer, tmp_path / "small.gguf")
    factors = File(tmp_path / "small.gguf").tensors["rope_freqs.weight"]
    for index, factor in enumerate(factors.tolist()):
        cycles = 32 * 10000.0 ** (-2 * index / 32) / (2 * torch.pi)  # in the original context
        between = min(max((cycles - 1) / (4 - 1), 0), 1)
        assert factor == pytest.approx(1 / ((1 - between) / 8 + between), rel=1e-5)


def test_the_shadow_of_a_mixture_of_experts_is_written_as_the_dense_blocks_it_has(tmp_path: Path) -> None:
    """Catches a refusal for experts that the shadow has not, and a file that llama.cpp would look for them
    in."""
    model, tokenizer = made("qwen3_moe")
    as_a_user(model, tokenizer, tmp_path)
    export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small.gguf", to="gguf")
    export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small")
    small, ids = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "small"),
        tokenizer("the quick brown fox jumps").input_ids,
    )
    with torch.no_grad():
        wanted = small(torch.tensor([ids])).logits[0]
    file = File(tmp_path / "small.gguf")
    assert file.arch == "qwen3"
    torch.testing.assert_close(by_the_equations(file, ids), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(
        UnsupportedModelError, match=r"this Qwen3-MoE shadow cannot be written as GGUF: it has experts"
    ):
        gguf_file.write(model, tokenizer, tmp_path / "base.gguf")


REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "another family": (
        lambda: tiny_config("opt"),
        "a OPT shadow cannot be written as GGUF; the families that can: Llama, Mistral",
    ),
    "another activation": (
        lambda: tiny_config("llama", hidden_act="gelu"),
        "its activation is gelu, llama.cpp's silu",
    ),
    "a frequency that grows with the text": (
        lambda: tiny_config(
            "qwen3", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
        ),
        "its rotary embedding is of the type dynamic",
    ),
    "yarn without truncation": (
        lambda: tiny_config(
            "qwen3",
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        ),
        "its rotary embedding is of the type yarn without truncation",
    ),
    "a part turned": (
        lambda: tiny_config(
            "llama",
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        ),
        "its rotary embedding is of the type partial",
    ),
    "scaled in the windows": (
        lambda: tiny_config(
            "olmo3",
            rope_parameters={
                kind: {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
                for kind in ("full_attention", "sliding_attention")
            },
        ),
        "its rotary embedding is of the type linear in blocks with a window",
    ),
    "biases": (
        lambda: tiny_config("qwen3", attention_bias=True),
        "attention_bias is set, and llama.cpp reads no such bias",
    ),
    "windows beside blocks without": (
        lambda: tiny_config("exaone4"),
        "sliding_window is 5, and llama.cpp computes None alone",
    ),
    "positions in other blocks": (
        lambda: tiny_config("smollm3", no_rope_layers=[0, 1, 1, 1]),
        r"no_rope_layers is \[0\], and llama.cpp computes \[1\] alone",
    ),
    "an untied Gemma 2": (
        lambda: tiny_config("gemma2"),
        "tie_word_embeddings is False, and llama.cpp computes True alone",
    ),
    "a capped Gemma 3": (
        lambda: tiny_config("gemma3_text", final_logit_softcapping=3.0),
        "final_logit_softcapping is 3.0, and llama.cpp computes None alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused_before_the_work(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a file that llama.cpp runs to other answers, and a refusal after minutes."""
    make, message = REFUSED[case]
    config = make()
    tokenizer = tokenizer_of(TOKENIZER.get(config.model_type, "qwen2"))
    config.vocab_size = len(tokenizer)
    as_a_user(tiny_model(config.model_type, config=config), tokenizer, tmp_path)
    monkeypatch.setattr(
        "shadowpeft.storage.stock_models.load_model",
        lambda *_: pytest.fail("the model was loaded before the check"),
    )
    with pytest.raises(UnsupportedModelError, match=message):
        export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small.gguf", to="gguf")


def test_an_explicit_gemma_2_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the check made on the shadow's own tied head, which the base's replaces."""
    model, tokenizer = made("gemma2", tie_word_embeddings=True)
    shadow = tiny_model(
        "gemma2", config=tiny_config("gemma2", vocab_size=len(tokenizer) + 3, tie_word_embeddings=True)
    )
    as_a_user(model, tokenizer, tmp_path, shadow)
    monkeypatch.setattr(
        "shadowpeft.storage.stock_models.load_model",
        lambda *_: pytest.fail("the model was loaded before the check"),
    )
    with pytest.raises(UnsupportedModelError, match=r"tie_word_embeddings is False"):
        export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small.gguf", to="gguf")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("olmo3", {"layer_types": ["full_attention", "sliding_attention"] * 2}, "do not come in turns"),
        (
            "cohere2",
            {"tie_word_embeddings": True, "layer_types": ["full_attention"] * 4},
            "none of its blocks",
        ),
        ("gemma3_text", {"layer_types": ["full_attention"] * 4}, "none of its blocks has a sliding window"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, r"no_rope_layers is \[1, 0, 1, 1\], and llama.cpp"),
        ("mixtral", {}, "it has experts"),
        ("lfm2", {}, "blocks that a shadow has not"),
    ],
    ids=["windows", "no windows", "no windows in Gemma", "positions", "experts", "convolutions"],
)
def test_a_model_of_other_blocks_is_refused(family: str, changes: dict[str, Any], message: str) -> None:
    """Catches what does not show in the first block, and an explicit shadow that no base would make."""
    config = tiny_config(family, **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        gguf_layout.layout_of(config)
