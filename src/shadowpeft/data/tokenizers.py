"""Tokenizers: whether base and shadow have the same one, and the ids that pad a batch and end an answer."""

from collections.abc import Mapping

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.errors import ConfigError

# Tokens that a message names.
_NAMED = 3
# Texts that tokenizers of one vocabulary may still split differently: spaces, line breaks, capitals, digits,
# accents (of one code point and of two), code, other scripts, joined emoji.
_PROBES = (
    "The quick brown fox, aged 1234567, isn't at home...",
    "  two spaces\n\n\tand a tab; trailing  \r\n",
    "naïve café vs. nai\u0308ve cafe\u0301, ﬁne ½ №",
    "def f(x):\n    return x**2 - 3.14e-5  # ok",
    "你好世界。 Привет, мир! \u200f\u05e9\u05dc\u05d5\u05dd 👩\u200d🚀",
)


def refuse_other_tokenizer(base: PreTrainedTokenizerBase, shadow: PreTrainedTokenizerBase) -> None:
    """Raise unless both tokenizers give every id the same token and split text into the same tokens.

    Args:
        base: the base's tokenizer.
        shadow: the tokenizer of the model that will be its shadow.

    Raises:
        ConfigError: they differ; the message names the first tokens that do, or a text that they split
            differently.
    """
    ours, theirs = _tokens_by_id(base), _tokens_by_id(shadow)
    _refuse_other_tokens(ours, theirs)
    for text in _PROBES:
        wanted = base(text, add_special_tokens=False)["input_ids"]
        found = shadow(text, add_special_tokens=False)["input_ids"]
        if wanted != found:
            place = _first_difference(wanted, found)
            raise ConfigError(
                f"base and shadow must have one tokenizer, and theirs cut the text {text!r} differently: "
                f"from token {place} on the base reads {_token_at(place, wanted, ours)}, the shadow "
                f"{_token_at(place, found, theirs)}; choose a shadow with the base's tokenizer"
            )


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items()}


def _refuse_other_tokens(ours: Mapping[int, str], theirs: Mapping[int, str]) -> None:
    differ = [n for n in sorted(ours.keys() | theirs.keys()) if ours.get(n) != theirs.get(n)]
    if not differ:
        return
    named = "; ".join(
        f"id {n} is {_shown(ours.get(n))} to the base and {_shown(theirs.get(n))} to the shadow"
        for n in differ[:_NAMED]
    )
    more = f" (and {len(differ) - _NAMED} more)" if len(differ) > _NAMED else ""
    raise ConfigError(
        f"base and shadow must have one tokenizer, and theirs differ: {named}{more}; choose a shadow with "
        "the base's"
    )


def _first_difference(one: list[int], other: list[int]) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def _token_at(place: int, ids: list[int], tokens: Mapping[int, str]) -> str:
    if place >= len(ids):
        return _shown(None)
    return _shown(tokens.get(ids[place]))


def _shown(token: str | None) -> str:
    return "no token" if token is None else repr(token)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to pad with; any would do, as padding is neither attended to nor learned."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Return the ids that end an answer, `None` if there are none.

    They are the model's own, and the tokenizer's end-of-sequence token, with which training ends every
    completion.
    """
    listed = [tokenizer.eos_token_id]
    if model.generation_config is not None:
        given = model.generation_config.eos_token_id
        listed += given if isinstance(given, list) else [given]
    return sorted({int(token) for token in listed if token is not None}) or None
