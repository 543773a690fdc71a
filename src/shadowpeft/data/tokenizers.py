"""Whether base and shadow read the same tokens: a shadow of another tokenizer would hear noise, and say it."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.errors import ConfigError

_NAMED = 3
# What tokenizers of one vocabulary may still cut differently: spaces, line breaks, capitals, digits, accents (in one code point and in
# two), code, other scripts, joined emoji.
_PROBES = (
    "The quick brown fox, aged 1234567, isn't at home...",
    "  two spaces\n\n\tand a tab; trailing  \r\n",
    "naïve café vs. nai\u0308ve cafe\u0301, ﬁne ½ №",
    "def f(x):\n    return x**2 - 3.14e-5  # ok",
    "你好世界。 Привет, мир! \u200f\u05e9\u05dc\u05d5\u05dd 👩\u200d🚀",
)


def refuse_other_tokenizer(base: PreTrainedTokenizerBase, shadow: PreTrainedTokenizerBase) -> None:
    """Raise unless both tokenizers give every id the same token and cut text into the same tokens.

    Args:
        base: the base's tokenizer.
        shadow: that of the model which is to be its shadow.

    Raises:
        ConfigError: they differ; the message names the first tokens that do, or a text that they cut differently.
    """
    ours, theirs = (
        {number: token for token, number in tokenizer.get_vocab().items()} for tokenizer in (base, shadow)
    )
    differ = [
        number for number in sorted(ours.keys() | theirs.keys()) if ours.get(number) != theirs.get(number)
    ]
    if differ:
        named = "; ".join(
            f"id {n} is {_shown(ours.get(n))} to the base and {_shown(theirs.get(n))} to the shadow"
            for n in differ[:_NAMED]
        )
        more = f" (and {len(differ) - _NAMED} more)" if len(differ) > _NAMED else ""
        raise ConfigError(
            f"base and shadow must have one tokenizer, and theirs differ: {named}{more}; choose a shadow with the base's"
        )
    for text in _PROBES:
        cut, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (base, shadow))
        if cut != other:
            place = next(
                (i for i, (a, b) in enumerate(zip(cut, other, strict=False)) if a != b),
                min(len(cut), len(other)),
            )
            raise ConfigError(
                f"base and shadow must have one tokenizer, and theirs cut the text {text!r} differently: from token {place} on the base "
                f"reads {_shown(ours.get(_at(cut, place)))}, the shadow {_shown(theirs.get(_at(other, place)))}; choose a shadow with the "
                "base's tokenizer"
            )


def _at(ids: list[int], place: int) -> int:
    return ids[place] if place < len(ids) else -1


def _shown(token: str | None) -> str:
    return "no token" if token is None else repr(token)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Choose an id to pad with; any will do, as padding is neither attended to nor learned."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Collect the ids that end an answer: those of the model, and the tokenizer's end token, which training puts after completions."""
    given = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = given if isinstance(given, list) else [given]
    return sorted({int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None}) or None
