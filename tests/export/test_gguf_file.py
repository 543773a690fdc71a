"""GGUF files without llama.cpp: read back and computed by the equations that llama.cpp follows, and what is refused."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import attached, perturb, tiny_config, tiny_model
from helpers.gguf_tokenizers import TOKENIZERS, tokenizer_of
from helpers.tokenizers import words_tokenizer
from huggingface_hub import HfApi
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from shadowpeft import ShadowConfig
from shadowpeft.cli import main
from shadowpeft.errors import CheckpointError, ConfigError, UnsupportedModelError
from shadowpeft.export import export

gguf = pytest.importorskip("gguf")
gguf_file = pytest.importorskip("shadowpeft.export.gguf_file")

ALL_FULL = {"use_sliding_window": False, "layer_types": ["full_attention"] * 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", ALL_FULL),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "query_pre_attn_scalar": 32}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 32}),
}
TOKENIZER = {"gemma2": "sentencepiece", "gemma3_text": "sentencepiece"}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """One thread is faster for models this small, and transformers' bars tell nothing here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    torch.set_num_threads(before)


def made(family: str, **changes: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = tokenizer_of(TOKENIZER.get(family, "qwen2"))
    config = tiny_config(family, vocab_size=len(tokenizer) + 3, **changes)
    config.eos_token_id = tokenizer.eos_token_id
    return tiny_model(family, config=config), tokenizer


class File:
    """What a GGUF file holds: fields by name, tensors by name in float32."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {
            part.name: torch.tensor(gguf.dequantize(part.data, part.tensor_type)) for part in reader.tensors
        }
        self.types = {part.name: part.tensor_type.name for part in reader.tensors}
        self.arch = self.fields["general.architecture"]

    def size(self, name: str) -> Any:
        return self.fields.get(f"{self.arch}.{name}")


def by_the_equations(file: File, ids: list[int]) -> Tensor:
    """Compute logits, (T, V), as llama.cpp does from a file: one token, head and block after another, for the families that we write."""
    eps, heads, groups = (
        file.size("attention.layer_norm_rms_epsilon"),
        file.size("attention.head_count"),
        file.size("attention.head_count_kv"),
    )
    width, gemma = file.size("attention.key_length"), file.arch.startswith("gemma")

    def norm(x_TD: Tensor, name: str) -> Tensor:
        return x_TD / (x_TD.pow(2).mean(-1, keepdim=True) + eps).sqrt() * file.tensors[f"{name}.weight"]

    def linear(x_TD: Tensor, name: str) -> Tensor:
        bias = file.tensors.get(f"{name}.bias")
        return x_TD @ file.tensors[f"{name}.weight"].T + (0 if bias is None else bias)

    def turned(x_TH: Tensor, theta: float) -> Tensor:
        """Rotate the pairs: neighbours for `llama`, i and i + half elsewhere."""
        out = torch.empty_like(x_TH)
        for pair in range(width // 2):
            one, two = (2 * pair, 2 * pair + 1) if file.arch == "llama" else (pair, pair + width // 2)
            angle_T = torch.arange(len(ids)) * theta ** (-2 * pair / width)
            out[:, one] = x_TH[:, one] * angle_T.cos() - x_TH[:, two] * angle_T.sin()
            out[:, two] = x_TH[:, one] * angle_T.sin() + x_TH[:, two] * angle_T.cos()
        return out

    def attention(x_TD: Tensor, block: str, windowed: bool) -> Tensor:
        query, key, value = (linear(x_TD, f"{block}.attn_{part}") for part in "qkv")
        theta, cap, answers = file.size("rope.freq_base"), file.size("attn_logit_softcapping"), []
        if windowed and file.size("rope.freq_base_swa"):
            theta = file.size("rope.freq_base_swa")
        for head in range(heads):
            mine, shared = slice(head * width, (head + 1) * width), head // (heads // groups)
            theirs = slice(shared * width, (shared + 1) * width)
            q_TH, k_TH = query[:, mine], key[:, theirs]
            if f"{block}.attn_q_norm.weight" in file.tensors:
                q_TH, k_TH = norm(q_TH, f"{block}.attn_q_norm"), norm(k_TH, f"{block}.attn_k_norm")
            scores_TT = turned(q_TH, theta) @ turned(k_TH, theta).T / width**0.5
            scores_TT = scores_TT if cap is None else cap * (scores_TT / cap).tanh()
            behind_TT = torch.arange(len(ids))[:, None] - torch.arange(len(ids))
            hidden_TT = (behind_TT < 0) | (
                behind_TT >= (file.size("attention.sliding_window") if windowed else 1000)
            )
            answers.append(scores_TT.masked_fill(hidden_TT, -torch.inf).softmax(-1) @ value[:, theirs])
        return linear(torch.cat(answers, -1), f"{block}.attn_output")

    h_TD = file.tensors["token_embd.weight"][ids] * (file.size("embedding_length") ** 0.5 if gemma else 1)
    every = {"gemma2": 2, "gemma3": 6}.get(file.arch)
    pattern = file.size("attention.sliding_window_pattern")
    act: Callable[[Tensor], Tensor] = (
        (lambda x: torch.nn.functional.gelu(x, approximate="tanh")) if gemma else torch.nn.functional.silu
    )
    for index in range(file.size("block_count")):
        block = f"blk.{index}"
        windowed = every is not None and (
            (index + 1) % every != 0 if pattern is None else bool(pattern[index])
        )
        a_TD = attention(norm(h_TD, f"{block}.attn_norm"), block, windowed)
        h_TD = h_TD + (norm(a_TD, f"{block}.post_attention_norm") if gemma else a_TD)
        x_TD = norm(h_TD, f"{block}.ffn_norm")
        m_TD = linear(
            act(linear(x_TD, f"{block}.ffn_gate")) * linear(x_TD, f"{block}.ffn_up"), f"{block}.ffn_down"
        )
        h_TD = h_TD + (norm(m_TD, f"{block}.post_ffw_norm") if gemma else m_TD)
    logits_TV = (
        norm(h_TD, "output_norm")
        @ file.tensors["output.weight" if "output.weight" in file.tensors else "token_embd.weight"].T
    )
    cap = file.size("final_logit_softcapping")
    return logits_TV if cap is None else cap * (logits_TV / cap).tanh()


@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    """Catches a tensor left as transformers has it where llama.cpp computes otherwise, and a size that is missing or wrong."""
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
    """Catches factors that are inverted or of the wrong frequencies; from the definition, high ones stay and low ones are divided."""
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
        turns = 32 * 10000.0 ** (-2 * index / 32) / (2 * torch.pi)  # in the original context
        between = (turns - 1) / (4 - 1)
        wanted = 1.0 if turns > 4 else 8.0 if turns < 1 else 1 / ((1 - between) / 8 + between)
        assert factor == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "kind", "bound"), [("float16", "F16", 1e-3), ("bfloat16", "BF16", 8e-3), ("q8_0", "Q8_0", 8e-3)]
)
def test_matrices_are_of_the_type_asked_for(dtype: str, kind: str, bound: float, tmp_path: Path) -> None:
    """Catches vectors in 16 bits, which llama.cpp refuses, and numbers that come back as others."""
    model, tokenizer = made("llama", hidden_size=64)
    stored = (
        model
        if dtype == "q8_0"
        else AutoModelForCausalLM.from_pretrained(saved(model, tmp_path / "model"), dtype=dtype)
    )
    gguf_file.write(stored, tokenizer, tmp_path / "small.gguf", quantise=dtype == "q8_0")
    gguf_file.write(model, tokenizer, tmp_path / "exact.gguf")
    small, exact = File(tmp_path / "small.gguf"), File(tmp_path / "exact.gguf")
    for name, tensor in exact.tensors.items():
        assert small.types[name] == (
            "F32" if tensor.ndim == 1 else "F16" if kind == "Q8_0" and tensor.shape[-1] % 32 else kind
        )
        assert (small.tensors[name] - tensor).abs().max() <= bound * tensor.abs().max()
    assert small.types["blk.0.ffn_down.weight"] == ("F16" if kind == "Q8_0" else kind), (
        "48 numbers are no whole blocks of 32"
    )


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_vocabulary_is_written_in_full(kind: str, tmp_path: Path) -> None:
    """Catches tokens out of order, special ones that are read as text, rows without a token, and a lost template."""
    tokenizer = tokenizer_of(kind)
    model = tiny_model("llama", config=tiny_config("llama", vocab_size=len(tokenizer) + 3))
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    gguf_file.write(model, tokenizer, tmp_path / "small.gguf")
    fields = File(tmp_path / "small.gguf").fields
    tokens, kinds = (
        fields["tokenizer.ggml.tokens"],
        [gguf.TokenType(kind) for kind in fields["tokenizer.ggml.token_type"]],
    )
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert kinds[len(tokenizer) :] == [gguf.TokenType.UNUSED] * 3
    assert len(set(tokens)) == len(tokens) == model.config.vocab_size
    for index in tokenizer.all_special_ids:
        assert kinds[index] in (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.eot_token_id"] == 7
    assert fields["tokenizer.ggml.add_bos_token"] is (tokenizer("a").input_ids[0] == tokenizer.bos_token_id)
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.model"] == ("llama" if "sentencepiece" in kind else "gpt2")


def test_the_shadow_of_a_mixture_of_experts_is_written_as_the_dense_blocks_it_has(tmp_path: Path) -> None:
    """Catches a refusal for experts that the shadow has not, and a file that llama.cpp would look for them in."""
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
    with pytest.raises(UnsupportedModelError, match="a Qwen3-MoE shadow cannot be written"):
        gguf_file.write(model, tokenizer, tmp_path / "base.gguf")


# The command


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ready")
    model, tokenizer = made("qwen3")
    as_a_user(model, tokenizer, folder)
    return folder


def as_a_user(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    shadow: PreTrainedModel | None = None,
) -> None:
    perturb(attached(model, ShadowConfig(), shadow)).save_pretrained(folder / "adapter")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


def test_the_command_writes_one_file(ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a command line that cannot name the format, and files beside the one."""
    words = [
        "--model",
        ready / "base",
        "--adapter",
        ready / "adapter",
        "--output",
        tmp_path / "small.gguf",
        "--dtype",
        "q8_0",
        "--json",
    ]
    capsys.readouterr()
    assert main(["export", "--to", "gguf", *map(str, words)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]
    assert told["size_bytes"] == (tmp_path / "small.gguf").stat().st_size
    assert told["model_class"] == "Qwen3ForCausalLM"
    assert File(tmp_path / "small.gguf").arch == "qwen3"


def test_push_uploads_the_file_and_a_card(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a file on the hub that nobody can tell what it is."""
    files: dict[str, Any] = {}

    def upload(_: HfApi, repo_id: str, path_or_fileobj: Any, path_in_repo: str) -> None:
        assert repo_id == "somebody/small"
        files[path_in_repo] = path_or_fileobj

    monkeypatch.setattr(HfApi, "whoami", lambda _: {"name": "somebody"})
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: "https://hub/somebody/small")
    monkeypatch.setattr(
        HfApi,
        "upload_file",
        lambda _, repo_id, path_or_fileobj, path_in_repo: files.update({path_in_repo: path_or_fileobj}),
    )
    done = export(
        str(ready / "base"), ready / "adapter", tmp_path / "small.gguf", to="gguf", push="somebody/small"
    )
    assert done.pushed == "https://hub/somebody/small"
    assert files["small.gguf"] == tmp_path / "small.gguf"
    assert "llama-cli -m" in files["README.md"].decode()


def test_a_broken_write_leaves_nothing(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches half a file that looks whole."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export(str(ready / "base"), ready / "adapter", tmp_path / "small.gguf", to="gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [("small", r"must end in \.gguf, got"), ("taken.gguf", "exists; choose another")],
    ids=["a folder", "taken"],
)
def test_the_output_is_a_new_file(output: str, message: str, ready: Path, tmp_path: Path) -> None:
    """Catches a folder written for a file, and a file written over."""
    (tmp_path / "taken.gguf").write_text("something dear")
    with pytest.raises(ConfigError, match=message):
        export(str(ready / "base"), ready / "adapter", tmp_path / output, to="gguf")
    assert (tmp_path / "taken.gguf").read_text() == "something dear"


def test_without_the_library_the_sentence_names_it(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a trace for a missing extra."""
    for name in [name for name in sys.modules if name.startswith("shadowpeft.export.gguf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("shadowpeft.export.gguf_file")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"--to gguf needs gguf; pip install 'shadowpeft\[gguf\]'"):
        export(str(ready / "base"), ready / "adapter", tmp_path / "small.gguf", to="gguf")


REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "another family": (
        lambda: tiny_config("gpt2"),
        "a GPT-2 shadow cannot be written as GGUF; the families that can: Llama, Mistral",
    ),
    "another activation": (
        lambda: tiny_config("llama", hidden_act="gelu"),
        "its activation is gelu, llama.cpp's silu",
    ),
    "yarn": (
        lambda: tiny_config(
            "qwen3", rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
        ),
        "its rotary embedding is of the type yarn",
    ),
    "biases": (lambda: tiny_config("qwen3", attention_bias=True), "its attention has biases"),
    "an untied Gemma 2": (
        lambda: tiny_config("gemma2"),
        "llama.cpp ties its head to its embeddings, and here they differ",
    ),
    "a capped Gemma 3": (
        lambda: tiny_config("gemma3_text", final_logit_softcapping=3.0),
        "its logits are soft-capped",
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
    with pytest.raises(UnsupportedModelError, match=r"llama\.cpp ties its head"):
        export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small.gguf", to="gguf")


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    """Catches a file whose head llama.cpp would take for words."""
    tokenizer = tokenizer_of("qwen2")
    base = tiny_model(
        "qwen3", "sequence-classification", config=tiny_config("qwen3", vocab_size=len(tokenizer))
    )
    as_a_user(base, tokenizer, tmp_path)
    with pytest.raises(UnsupportedModelError, match="a classifier cannot be written as GGUF"):
        export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small.gguf", to="gguf")


def changed(kind: str, change: Callable[[dict[str, Any]], None]) -> PreTrainedTokenizerBase:
    """A tokenizer with something of its description changed."""
    tokenizer = tokenizer_of(kind)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    change(parts)
    return type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(parts)), eos_token="<|im_end|>"
    )


@dataclasses.dataclass
class Odd:
    """A tokenizer that llama.cpp cannot stand in for."""

    make: Callable[[], PreTrainedTokenizerBase]
    message: str


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(parts: Any) -> None:
        for key in path[:-1]:
            parts = parts[key]
        parts[path[-1]] = value

    return change


CUT = ("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex")
ODD = {
    "words": Odd(words_tokenizer, "it is a WordLevel tokenizer, not BPE"),
    "another cut": Odd(
        lambda: changed("qwen2", _set(*CUT, value=r"\p{L}+|\s")), "it cuts text as llama.cpp has no name for"
    ),
    "lower case": Odd(
        lambda: changed("qwen2", _set("normalizer", value={"type": "Lowercase"})),
        "it changes text before cutting it",
    ),
    "merges ignored": Odd(
        lambda: changed("qwen2", _set("model", "ignore_merges", value=True)), "ignore_merges is True"
    ),
    "lower-case pieces": Odd(
        lambda: changed("sentencepiece", _set("normalizer", value={"type": "Lowercase"})),
        "it changes or cuts text as llama.cpp does not",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_tokenizers_are_refused(case: str) -> None:
    """Catches a file that reads text otherwise: its answers would be worse, and nothing would say so."""
    with pytest.raises(UnsupportedModelError, match=ODD[case].message):
        gguf_file.refuse_unknown(tiny_config("llama", vocab_size=1000), "causal-lm", ODD[case].make())


def test_more_tokens_than_embeddings_are_refused() -> None:
    """Catches a token whose embedding is read from beyond the table."""
    with pytest.raises(UnsupportedModelError, match="tokens, and the model has embeddings of 97"):
        gguf_file.refuse_unknown(tiny_config("llama"), "causal-lm", tokenizer_of("qwen2"))
