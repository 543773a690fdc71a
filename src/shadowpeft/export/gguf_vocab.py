"""The tokenizer in a GGUF file: tokens and their kinds, merges or scores, special ids and chat template."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gguf
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from shadowpeft.errors import UnsupportedModelError

_GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
# Qwen and Llama 3; they differ in the number of digits that may stand together.
_MODERN = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
# gpt-oss and Mistral since NeMo, which cut within words of mixed case.
_CASED = (
    "[^\\r\\n\\p{L}\\p{N}]?UPPER*LOWER+%s|[^\\r\\n\\p{L}\\p{N}]?UPPER+LOWER*%s|\\p{N}%s"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
_CASED = _CASED.replace("UPPER", "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]")
_CASED = _CASED.replace("LOWER", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]")
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# llama.cpp's names for how text is split before merging, by the steps of the tokenizer's own description.
_CUTS = {
    ("regex of ByteLevel",): "gpt-2",
    (_GPT2,): "gpt-2",
    (_MODERN % "",): "qwen2",
    (_MODERN % "{1,3}",): "llama-bpe",
    (_CASED % (_ENDINGS, _ENDINGS, "{1,3}"),): "gpt-4o",
    (_CASED % ("", "", ""),): "tekken",
    ("each digit", "regex of ByteLevel"): "smollm",
}


@dataclass
class Vocabulary:
    """A tokenizer in the terms of a GGUF file.

    Attributes:
        model: `gpt2` for merges of bytes, `llama` for scored pieces.
        cut: llama.cpp's name for how text is split first.
        tokens: by id.
        kinds: normal, control, user-defined, byte, unknown or unused, by id.
        merges: for `gpt2`, in order.
        scores: for `llama`, by id: the higher the score, the earlier two pieces become this one.
        space_first: whether a space is put before the text.
    """

    model: str
    cut: str
    tokens: list[str]
    kinds: list[gguf.TokenType]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_first: bool = False


def read(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """Read a tokenizer's own description and return it in the terms of a GGUF file.

    Args:
        tokenizer: the tokenizer.
        rows: of the table of embeddings; rows without a token get the name of a padding token.

    Raises:
        UnsupportedModelError: llama.cpp does not split or merge text as this tokenizer does; the message says
            why.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise _unknown("it is not of the tokenizers library (a slow one)")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model["type"] != "BPE":
        raise _unknown(f"it is a {model['type']} tokenizer, not BPE")
    names = [f"[PAD{index}]" for index in range(max(rows, len(tokenizer)))]
    if len(names) > rows:
        raise _unknown(f"it has {len(names)} tokens, and the model has embeddings of {rows}")
    kinds = [gguf.TokenType.UNUSED] * len(names)
    for token, index in model["vocab"].items():
        names[index], kinds[index] = token, gguf.TokenType.NORMAL
    special = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    for token in parts["added_tokens"]:
        names[token["id"]], kinds[token["id"]] = token["content"], special[token["special"]]
    # Older files have "left right" in place of a pair.
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    if model["byte_fallback"]:
        return _pieces(parts, names, kinds, pairs=pairs)
    merges = [f"{left} {right}" for left, right in pairs]
    return Vocabulary("gpt2", _cut_of(parts), names, kinds=kinds, merges=merges)


def _cut_of(parts: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer of bytes splits text."""
    cut = _CUTS.get(tuple(_cuts(parts["pre_tokenizer"])))
    if cut is None:
        raise _unknown(f"it cuts text as llama.cpp has no name for: {_excerpt(parts['pre_tokenizer'])}")
    if any(step["type"] != "NFC" for step in _steps(parts["normalizer"], "normalizers")):
        raise _unknown(f"it changes text before cutting it: {_excerpt(parts['normalizer'])}")
    ignores_merges = bool(parts["model"].get("ignore_merges"))
    # The same cut, by another name.
    if cut == "llama-bpe" and not ignores_merges:
        return "dbrx"
    if ignores_merges != (cut in ("llama-bpe", "tekken")):
        raise _unknown(f"ignore_merges is {ignores_merges}, which llama.cpp does not do with the cut {cut}")
    return cut


def _cuts(pre: dict[str, Any] | None) -> Iterator[str]:
    for step in _steps(pre, "pretokenizers"):
        if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            yield step["pattern"].get("Regex", "a fixed text")
        elif step["type"] == "Digits" and step["individual_digits"]:
            yield "each digit"
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            if step["use_regex"]:
                yield "regex of ByteLevel"
        else:
            yield "something else"


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return part[name]
    return [part]


def _pieces(
    parts: dict[str, Any], names: list[str], kinds: list[gguf.TokenType], pairs: list[list[str]]
) -> Vocabulary:
    """Return the vocabulary of a tokenizer that came from SentencePiece.

    It has pieces with ▁ for a space, and bytes for what has no piece. llama.cpp joins the two neighbours
    whose joint piece has the highest score, so a piece's score is minus the place of its first merge.
    """
    space_first = _puts_space_first(parts)
    places: dict[str, int] = {}
    for place, (left, right) in enumerate(pairs):
        places.setdefault(left + right, place)
    scores = [-float(places.get(name, len(pairs))) for name in names]
    for byte in range(256):
        index = parts["model"]["vocab"].get(f"<0x{byte:02X}>")
        if index is None:
            raise _unknown(f"it falls back to bytes and has no token <0x{byte:02X}>")
        kinds[index] = gguf.TokenType.BYTE
    unknown = parts["model"]["unk_token"]
    if unknown in parts["model"]["vocab"]:
        kinds[parts["model"]["vocab"][unknown]] = gguf.TokenType.UNKNOWN
    return Vocabulary("llama", "default", names, kinds=kinds, scores=scores, space_first=space_first)


def _puts_space_first(parts: dict[str, Any]) -> bool:
    """Return whether a tokenizer of pieces puts a space before the text.

    Raises:
        UnsupportedModelError: it changes or splits text in a way that llama.cpp does not.
    """
    space_first = False
    for step in [
        *_steps(parts["normalizer"], "normalizers"),
        *_steps(parts["pre_tokenizer"], "pretokenizers"),
    ]:
        if step["type"] == "Prepend" and step["prepend"] == "▁":
            space_first = True
        elif step["type"] == "Metaspace" and step["replacement"] == "▁" and not step["split"]:
            space_first |= step["prepend_scheme"] != "never"
        elif step["type"] == "Replace" and (step["pattern"].get("String"), step["content"]) == (" ", "▁"):
            pass
        elif step["type"] == "Split" and step["pattern"].get("String") == " ":
            pass  # nothing is left to split once spaces are ▁
        else:
            raise _unknown(f"it changes or cuts text as llama.cpp does not: {_excerpt(step)}")
    return space_first


def write(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, generation: GenerationConfig
) -> None:
    """Write the tokenizer, its chat template, and the ids that begin and end a text.

    Args:
        writer: of the file.
        tokenizer: the tokenizer.
        rows: of the table of embeddings.
        generation: the model's settings, which may name further ids that end an answer.

    Raises:
        UnsupportedModelError: as in `read`.
    """
    found = read(tokenizer, rows)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.cut)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    if found.model == "gpt2":
        writer.add_token_merges(found.merges)
    else:
        writer.add_token_scores(found.scores)
        writer.add_add_space_prefix(found.space_first)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id)
    for index, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if index is not None:
            add(index)
    # GGUF has room for three ids that end an answer.
    room = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for index, add in zip(_ends(tokenizer, generation), room, strict=False):
        add(index)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.get_chat_template())


def _ends(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> list[int]:
    """Return the ids that end an answer, the tokenizer's own first."""
    given = generation.eos_token_id
    listed = given if isinstance(given, list) else [given]
    return list(dict.fromkeys(index for index in (tokenizer.eos_token_id, *listed) if index is not None))


def _excerpt(part: dict[str, Any] | None) -> str:
    """Return the beginning of a part of the tokenizer's description, for messages."""
    return json.dumps(part, ensure_ascii=False)[:200]


def _unknown(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the tokenizer cannot be written as GGUF: {why}; give --to hf")
