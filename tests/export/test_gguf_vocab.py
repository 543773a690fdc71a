"""Tokenizers in GGUF: written in full, or refused if llama.cpp would read text otherwise."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.families import tiny_config, tiny_model
from helpers.gguf_files import File
from helpers.gguf_tokenizers import TOKENIZERS, tokenizer_of
from helpers.tokenizers import words_tokenizer
from transformers import PreTrainedTokenizerBase

from shadowpeft.errors import UnsupportedModelError

gguf = pytest.importorskip("gguf")
gguf_file = pytest.importorskip("shadowpeft.export.gguf_file")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_vocabulary_is_written_in_full(kind: str, tmp_path: Path) -> None:
    """Catches tokens out of order, special ones that are read as text, rows without a token, and a lost
    template."""
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
    with pytest.raises(UnsupportedModelError, match=r"tokens, and the model has embeddings of 97"):
        gguf_file.refuse_unknown(tiny_config("llama"), "causal-lm", tokenizer_of("qwen2"))
