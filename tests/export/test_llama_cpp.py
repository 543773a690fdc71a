"""Exported GGUF files in a real llama.cpp, against transformers: the same tokens and the same greedy answers.

xllamacpp (https://pypi.org/project/xllamacpp), of the extra `dev`, brings a llama.cpp; without it all of this
is skipped.
"""

import gc
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exported import ANSWER, PROMPTS, SHADOWS, save_adapter, until_end
from helpers.families import attached, perturb, tiny_config, tiny_model
from helpers.gguf_tokenizers import TEXTS, TOKENIZERS, tokenizer_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shadowpeft import ShadowConfig
from shadowpeft.export import export
from shadowpeft.export.gguf_families import LAYOUTS

pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.llama_cpp

SLIDING = "sliding_attention"
THETA = {"rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

YARN = {**THETA, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
HALF = {"rope_type": "default", "partial_rotary_factor": 0.5}
ALL_FULL = {"layer_types": ["full_attention"] * 4}
TIED = {"tie_word_embeddings": True}

# A tiny random model of each family that we write, with what llama.cpp computes otherwise than transformers:
# (family, tokenizer, changes).
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "sentencepiece with a space", {}),
    "llama 3": ("llama", "llama 3", {"rope_parameters": {**THETA, **LLAMA3}, "tie_word_embeddings": True}),
    "llama with biases": ("llama", "gpt-2", {"attention_bias": True, "mlp_bias": True}),
    "llama, slowed": ("llama", "gpt-2", {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 4.0}}),
    "llama, wide heads": ("llama", "smollm", {"head_dim": 16}),
    "mistral": ("mistral", "sentencepiece with a space", {"sliding_window": None}),
    "qwen2": ("qwen2", "qwen2", {"use_sliding_window": False, "layer_types": ["full_attention"] * 4}),
    "qwen3": ("qwen3", "qwen2", {"head_dim": 16}),
    "qwen3-moe": ("qwen3_moe", "qwen2", {}),
    "gemma 2": (
        "gemma2", "sentencepiece",
        {"query_pre_attn_scalar": 32, "tie_word_embeddings": True, "attn_logit_softcapping": 2.0},
    ),
    "gemma 2, no caps": (
        "gemma2", "sentencepiece",
        {"tie_word_embeddings": True, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma 3": ("gemma3_text", "sentencepiece", {"query_pre_attn_scalar": 32}),
    "gemma 3, tied, its own windows": (
        "gemma3_text",
        "sentencepiece",
        {
            "tie_word_embeddings": True, "num_hidden_layers": 7,
            "layer_types": [*[SLIDING] * 5, "full_attention", SLIDING],
        },
    ),
    "llama, yarn": ("llama", "gpt-2", {"rope_parameters": {**YARN, "attention_factor": 0.7}}),
    "qwen2_moe": ("qwen2_moe", "qwen2", {}),
    "dots1": ("dots1", "qwen2", {}),
    "mixtral": ("mixtral", "sentencepiece with a space", {"sliding_window": None}),
    "gemma": ("gemma", "sentencepiece", TIED),
    "phi3": ("phi3", "sentencepiece with a space", {}),
    "phi3, a part turned": ("phi3", "cl100k", {"rope_parameters": {**THETA, **HALF}}),
    "phi": ("phi", "gpt-2", {}),
    "olmo": ("olmo", "gpt-2", {}),
    "olmo2": ("olmo2", "cl100k", {}),
    "olmo3": (
        "olmo3", "cl100k",
        {
            "layer_types": [SLIDING, SLIDING, "full_attention", SLIDING],
            "rope_parameters": {"full_attention": YARN, SLIDING: {**THETA, "rope_type": "default"}},
        },
    ),
    "olmo3, no windows": ("olmo3", "cl100k", ALL_FULL),
    "smollm3": ("smollm3", "llama 3", {}),
    "granite": ("granite", "smollm", {"attention_multiplier": 0.3}),
    "granitemoe": ("granitemoe", "smollm", {"embedding_multiplier": 2.0}),
    "granitemoehybrid": ("granitemoehybrid", "cl100k", {"attention_multiplier": 0.3}),
    "starcoder2": ("starcoder2", "smollm", {"sliding_window": None}),
    "stablelm": ("stablelm", "qwen2", {"use_qkv_bias": True}),
    "stablelm, beside each other": ("stablelm", "qwen2", {"use_parallel_residual": True}),
    # Squared activations make rounding visible if weights are as large as in the others.
    "nemotron": (
        "nemotron", "sentencepiece",
        {"attention_bias": True, "mlp_bias": True, "initializer_range": 0.1},
    ),
    "arcee": ("arcee", "llama 3", {"rope_parameters": {**THETA, **LLAMA3}}),
    "glm": ("glm", "cl100k", {}),
    "glm4": ("glm4", "cl100k", {"attention_bias": False}),
    "ernie4_5": ("ernie4_5", "sentencepiece", {}),
    "ernie4_5_moe": ("ernie4_5_moe", "sentencepiece", {}),
    "exaone4": (
        "exaone4", "gpt-2", {**ALL_FULL, "sliding_window": None, "rope_parameters": {**THETA, **LLAMA3}},
    ),
    "seed_oss": ("seed_oss", "cl100k", {}),
    "cohere": ("cohere", "smollm", TIED),
    "cohere2": ("cohere2", "smollm", {**TIED, "layer_types": [SLIDING, SLIDING, "full_attention", SLIDING]}),
    "hunyuan_v1_dense": (
        "hunyuan_v1_dense", "cl100k",
        {"rope_parameters": {**THETA, "rope_type": "dynamic", "alpha": 50.0, "factor": 1.0}},
    ),
    "ministral": ("ministral", "tekken", {"sliding_window": 256}),
    "ministral3": (
        "ministral3", "tekken",
        {
            "sliding_window": None, "head_dim": 16,
            "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "cwm": ("cwm", "sentencepiece", {"sliding_window": 256, "rope_parameters": {**THETA, **LLAMA3}}),
    "helium": ("helium", "sentencepiece", {}),
    "jais2": ("jais2", "gpt-2", {}),
    "gpt2": ("gpt2", "gpt-2", {}),
    "gpt_bigcode": ("gpt_bigcode", "smollm", {}),
    "lfm2": ("lfm2", "cl100k", {}),
    "lfm2_moe": ("lfm2_moe", "cl100k", {}),
    "llama, explicit": ("llama", "llama 3", {"tie_word_embeddings": True}),
    "qwen2, explicit": (
        "qwen2", "qwen2", {"use_sliding_window": False, "layer_types": ["full_attention"] * 4},
    ),
}  # fmt: skip
# Of explicit shadows, what is otherwise than in the base: another width, so that there is a P to fold into
# the head.
EXPLICIT = {"llama, explicit": {"hidden_size": 16}, "qwen2, explicit": {"hidden_size": 64}}


class LlamaCpp:
    """A llama.cpp server on a file, asked over HTTP as a user would."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokens(self, text: str) -> list[int]:
        return self.ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def greedy(self, ids: list[int], length: int = ANSWER) -> list[int]:
        settings = {"temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self.ask("/completion", prompt=ids, n_predict=length, **settings)["tokens"]

    def log_probabilities(self, ids: list[int], count: int) -> dict[int, float]:
        """Return the likeliest next tokens and their log-probabilities; nothing where the likeliest is the
        end."""
        answer = self.ask(
            "/completion", prompt=ids, n_predict=1, temperature=0, n_probs=count, cache_prompt=False
        )
        return {
            entry["id"]: entry["logprob"]
            for place in answer.get("completion_probabilities", [])
            for entry in place["top_logprobs"]
        }


@contextmanager
def llama_cpp(path: Path) -> Iterator[LlamaCpp]:
    """Run llama.cpp on a file, with nothing rounded on the way: by default keys, values and sums of the
    attention are float16."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 512, 1, 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.warmup, settings.fit_params, settings.verbosity = False, False, 0
    yield LlamaCpp(xllamacpp.Server(settings))
    gc.collect()


def log_probabilities(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1)


def chosen(model: PreTrainedModel, ids: list[int], answer: list[int]) -> list[int]:
    """Return the likeliest token behind the prompt and behind each token of an answer.

    Up to their ends these are the answer's tokens if, and only if, the model writes that answer greedily. One
    pass tells, where `generate` makes one for each token.
    """
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids + answer])).logits[0]
    return logits_TV[len(ids) - 1 :].argmax(-1).tolist()[:ANSWER]


def assert_same_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, texts: list[str]
) -> None:
    with llama_cpp(path) as runs:
        for text in texts:
            ids = tokenizer(text).input_ids
            got = runs.greedy(ids)
            wanted = chosen(model, ids, got)
            assert until_end(got, tokenizer) == until_end(wanted, tokenizer), text


def tiny(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, PreTrainedModel | None]:
    """Make the base, its tokenizer and, where the shadow is explicit, the model that it is made of."""
    family, kind, changes = MODELS[name]
    tokenizer = tokenizer_of(kind)
    size = {
        "vocab_size": len(tokenizer) + 3,
        "max_position_embeddings": 256,
    }  # rows that no token has, as in Qwen's models
    config: PretrainedConfig = tiny_config(family, **{**size, **changes})
    config.eos_token_id, config.pad_token_id, config.bos_token_id = (
        tokenizer.eos_token_id,
        0,
        tokenizer.bos_token_id,
    )
    shadow = None
    if name in EXPLICIT:
        shadow = tiny_model(
            family, seed=7, config=tiny_config(family, **{**size, **changes, **EXPLICIT[name]})
        )
    return tiny_model(family, config=config), tokenizer, shadow


def exported(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    shadow: PreTrainedModel | None = None,
    **arguments: Any,
) -> tuple[Path, PreTrainedModel]:
    """Attach a shadow, save it as a user has it, export it in both formats; return the GGUF file and the
    folder's model."""
    settings = (
        ShadowConfig()
        if shadow is not None
        else ShadowConfig(shadow_layers=model.config.num_hidden_layers, shadow_head_dim=None)
    )
    shadowed = perturb(attached(model, settings, shadow)).eval()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    shadowed.save_pretrained(tmp_path / "adapter")
    words = (str(tmp_path / "base"), tmp_path / "adapter")
    export(*words, tmp_path / "small")
    export(*words, tmp_path / "small.gguf", to="gguf", **arguments)
    return tmp_path / "small.gguf", AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()


def test_every_family_of_the_table_is_tried() -> None:
    """Catches a row that no llama.cpp has read."""
    assert {family for family, _, _ in MODELS.values()} == set(LAYOUTS)


# The family stands beside the name for the switch that leaves out those whose traits others have.
@pytest.mark.parametrize(("name", "family"), [(name, MODELS[name][0]) for name in MODELS], ids=list(MODELS))
def test_every_family_answers_as_in_transformers(name: str, family: str, tmp_path: Path) -> None:
    """Catches a permutation, norm, scale, window, cap or rotary setting that llama.cpp understands
    otherwise."""
    model, tokenizer, shadow = tiny(name)
    path, small = exported(model, tokenizer, tmp_path, shadow, dtype="float32")
    assert (name in EXPLICIT) == (small.config.hidden_size != model.config.hidden_size)
    # As it was saved: reading it adds a token that is not known, which to llama.cpp may be an end.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert_same_answers(small, tokenizer, path, TEXTS[:5])
    # llama.cpp reads this activation off a table of float16.
    bound = 5e-3 if "gelu_pytorch_tanh" in LAYOUTS[family].activations else 1e-4
    with llama_cpp(path) as runs:
        for text in TEXTS[:5]:
            ids = tokenizer(text).input_ids
            wanted = log_probabilities(small, ids)
            for token, value in runs.log_probabilities(ids, 20).items():
                assert value == pytest.approx(wanted[token].item(), abs=bound), text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_tokenizer_reads_as_in_transformers(kind: str, tmp_path: Path) -> None:
    """Catches a cut, merge, score, byte or special token that llama.cpp reads otherwise."""
    tokenizer = tokenizer_of(kind)
    config = tiny_config("llama", vocab_size=len(tokenizer), num_hidden_layers=2)
    path, _ = exported(tiny_model("llama", config=config), tokenizer, tmp_path)
    special = [f"{tokenizer.eos_token}{text}{tokenizer.eos_token}a" for text in TEXTS[:3]]
    with llama_cpp(path) as runs:
        for text in [*TEXTS, *special]:
            assert runs.tokens(text) == tokenizer(text).input_ids, text
        chat = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "what?"},
            {"role": "user", "content": "go"},
        ]
        wanted = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert runs.ask("/apply-template", messages=chat)["prompt"] == wanted


# The embedded model, whose shadow writes words


@pytest.fixture(scope="module", params=SHADOWS)
def embedded_files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the embedded model's shadow in all types."""
    tmp_path = tmp_path_factory.mktemp("embedded")
    folder = save_adapter(tmp_path / "adapter", request.param)
    for dtype in ("float32", "float16", "bfloat16"):
        export(folder, tmp_path / "adapter", tmp_path / dtype, dtype)
        export(folder, tmp_path / "adapter", tmp_path / f"{dtype}.gguf", dtype, to="gguf")
    export(folder, tmp_path / "adapter", tmp_path / "q8_0.gguf", "q8_0", to="gguf")
    return tmp_path


@pytest.mark.slow
def test_the_embedded_models_shadow_gives_the_same_64_tokens_on_20_prompts(embedded_files: Path) -> None:
    """Catches whatever shows only in text of many tokens, with a vocabulary of 6,144; explicit, a folded head
    that is lost or misread."""
    model, tokenizer = (
        auto.from_pretrained(embedded_files / "float32") for auto in (AutoModelForCausalLM, AutoTokenizer)
    )
    assert len(PROMPTS) == 20
    assert_same_answers(model.eval(), tokenizer, embedded_files / "float32.gguf", PROMPTS)


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.01), ("bfloat16", 0.05), ("q8_0", 0.5)])
def test_fewer_bits_say_nearly_the_same(dtype: str, bound: float, embedded_files: Path) -> None:
    """Catches a type that llama.cpp unpacks otherwise than we packed it: `bound` is on the likeliest ten
    tokens' log-probabilities."""
    model, tokenizer = (
        auto.from_pretrained(embedded_files / "float32") for auto in (AutoModelForCausalLM, AutoTokenizer)
    )
    assert (embedded_files / f"{dtype}.gguf").stat().st_size < 0.6 * (
        embedded_files / "float32.gguf"
    ).stat().st_size
    with llama_cpp(embedded_files / f"{dtype}.gguf") as runs:
        for text in PROMPTS:
            ids = tokenizer(text).input_ids
            wanted = log_probabilities(model.eval(), ids)
            for token, value in runs.log_probabilities(ids, 10).items():
                assert value == pytest.approx(wanted[token].item(), abs=bound), text
