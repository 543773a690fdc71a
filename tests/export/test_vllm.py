"""Exported folders in vLLM, against transformers: the same greedy answers.

vLLM wants an environment of its own; docs/guides/export.md says how to make one. Without vLLM these tests are
skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exported import ANSWER, PROMPTS, SHADOWS, greedy, save_adapter, until_end
from helpers.families import attached, perturb, tiny_config, tiny_model
from helpers.gguf_tokenizers import TEXTS, tokenizer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowConfig
from shadowpeft.export import export

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
]

# Heads of a width that vLLM's kernels know; base and, for an explicit shadow with P, the changes of its
# shadow.
TINY: dict[str, tuple[str, dict[str, Any] | None]] = {
    "llama": ("llama", None),
    "llama, explicit": ("llama", {"hidden_size": 16}),
    "qwen2, explicit": ("qwen2", {"hidden_size": 128}),
    "qwen3": ("qwen3", None),
    "gemma 3": ("gemma3_text", None),
}
# A process of its own: vLLM keeps what it took until the process ends.
PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

folder, prompts, length = json.load(sys.stdin)
model = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=256, seed=0)
given = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
answers = model.generate(given, SamplingParams(temperature=0, max_tokens=length), use_tqdm=False)
print("ANSWERS" + json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))
"""


def in_vllm(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Answer greedily in vLLM."""
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    given = json.dumps([str(folder), prompts, ANSWER])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings},
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("ANSWERS")[2])


def assert_same_answers(folder: Path, texts: list[str]) -> None:
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
    )
    prompts = [tokenizer(text).input_ids for text in texts]
    for text, ids, got in zip(texts, prompts, in_vllm(folder, prompts), strict=True):
        assert until_end(got, tokenizer) == until_end(greedy(model, ids), tokenizer), text


@pytest.mark.parametrize("kind", SHADOWS)
def test_the_embedded_models_shadow_gives_the_same_64_tokens_on_20_prompts(kind: str, tmp_path: Path) -> None:
    """Catches a folder that vLLM refuses or understands otherwise."""
    base = save_adapter(tmp_path / "adapter", kind)
    export(base, tmp_path / "adapter", tmp_path / "small", "float32")
    assert len(PROMPTS) == 20
    assert_same_answers(tmp_path / "small", PROMPTS)


@pytest.mark.parametrize("name", TINY)
def test_every_family_answers_as_in_transformers(name: str, tmp_path: Path) -> None:
    """Catches a folded head, a soft cap or a tied table that vLLM reads otherwise."""
    family, shadow_changes = TINY[name]
    tokenizer = tokenizer_of("qwen2")
    common = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "eos_token_id": tokenizer.eos_token_id,
        "head_dim": 32,
    }
    if family == "qwen2":
        del common["head_dim"]
        common |= {"hidden_size": 128, "use_sliding_window": False, "layer_types": ["full_attention"] * 4}
    base = tiny_model(family, config=tiny_config(family, **common))
    shadow = None
    if shadow_changes is not None:
        shadow = tiny_model(family, seed=7, config=tiny_config(family, **{**common, **shadow_changes}))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    perturb(attached(base, ShadowConfig(), shadow)).save_pretrained(tmp_path / "adapter")
    export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small")
    assert_same_answers(tmp_path / "small", [text for text in TEXTS if text])
