"""Tokenizers of every kind that is written as GGUF, trained on few words, and texts that are hard to cut."""

from collections.abc import Callable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The quick brown fox doesn't jump over 1234567 lazy dogs.",
    "  two spaces,\n\nthree\n\n\nlines\tand a tab ",
    "I'LL say: we've 3.14% — naïve café, 北京 🙂!",
    "x = {'a': [1, 22, 333]}  # a comment\r\n",
    "the the the THE The tHe",
    "",
    " ",
    "1 12 123 1234 12345",
    "...!!! ?!\n \n  \n",
    "a",
    "camelCase HTTPServer's iPhone/\n//x ÉTÉété",
]
_CORPUS = [
    *TEXTS,
    "the lazy dog and the brown fox jump over the quick comment",
    "we say what they say: three lines of the comment",
] * 3
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s"
_CASED = (
    _WORD % ("*", "+%s") + "|" + _WORD % ("+", "*%s") + r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]


def _bytes(
    cuts: list[pre_tokenizers.PreTokenizer],
    by_regex: bool = False,
    ignore_merges: bool = False,
    across: bool = False,
) -> PreTrainedTokenizerFast:
    """Merges of bytes, as in GPT-2 and after it; `across` merges what the cuts part, so that a cut that is
    missing shows."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizers.NFC()
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_regex)
    cut = pre_tokenizers.Sequence([*cuts, as_bytes])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_split(r" ?\S+|\s+"), as_bytes]) if across else cut
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=600 if across else 380,
            special_tokens=_SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.pre_tokenizer = cut
    tokenizer.add_tokens(["<think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=_CHATML
    )


def _pieces(space_first: bool) -> PreTrainedTokenizerFast:
    """Pieces with ▁ for a space and bytes for the rest, as transformers converts them from SentencePiece."""
    trained = Tokenizer(models.BPE())
    steps = [normalizers.Replace(" ", "▁")]
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if space_first else steps)
    ascii_only = [text.encode("ascii", "ignore").decode() for text in _CORPUS]
    trained.train_from_iterator(
        ascii_only, trainers.BpeTrainer(vocab_size=160, show_progress=False, max_token_length=12)
    )
    merges = _merges(trained)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    singles = sorted({char for pair in merges for part in pair for char in part} | {"▁"})
    names += list(dict.fromkeys([*("".join(pair) for pair in merges), *singles]))
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        chat_template=_CHATML,
    )


def _merges(trained: Tokenizer) -> list[tuple[str, str]]:
    """Return merges as transformers' conversion makes them.

    They are all ways to put a piece together from two, in the order of the pieces.
    """
    pieces = [name for name, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    known = set(pieces)
    cuts = ((piece, place) for piece in pieces for place in range(1, len(piece)))
    return [
        (piece[:place], piece[place:])
        for piece, place in cuts
        if piece[:place] in known and piece[place:] in known
    ]


def _split(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(regex), "isolated")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt-2": lambda: _bytes([], by_regex=True),
    "qwen2": lambda: _bytes([_split(_MODERN % "")]),
    "llama 3": lambda: _bytes([_split(_MODERN % "{1,3}")], ignore_merges=True),
    "cl100k": lambda: _bytes([_split(_MODERN % "{1,3}")], across=True),
    "o200k": lambda: _bytes([_split(_CASED % (_ENDINGS, _ENDINGS, "{1,3}"))], across=True),
    "tekken": lambda: _bytes([_split(_CASED % ("", "", ""))], ignore_merges=True, across=True),
    "smollm": lambda: _bytes([pre_tokenizers.Digits(individual_digits=True)], by_regex=True),
    "sentencepiece": lambda: _pieces(space_first=False),
    "sentencepiece with a space": lambda: _pieces(space_first=True),
}
_made: dict[str, PreTrainedTokenizerFast] = {}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of a kind, once."""
    if kind not in _made:
        _made[kind] = TOKENIZERS[kind]()
    return _made[kind]
