"""The draft vocabulary of a run: the tokens that its answers are made of, by how often they occur."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shadowpeft.data.encode import Example


def most_frequent(
    examples: "Sequence[Example]", size: int, special: Iterable[int], vocab_size: int
) -> list[int]:
    """Return the most frequent labelled tokens, and the special ones beside them.

    Where fewer than `size` tokens occur, the lowest ids follow: a byte-pair tokenizer gives them to what is
    most common in its own training text.

    Args:
        examples: what is trained on.
        size: how many tokens, without the special ones.
        special: ids that are taken whether they occur or not, such as those of ends.
        vocab_size: how many tokens the base knows.
    """
    from shadowpeft.data.encode import NO_LOSS

    special = {token for token in special if token < vocab_size}
    counts: Counter[int] = Counter()
    for example in examples:
        counts.update(example["labels"])
    # Equally frequent ones in the order of their ids, so that a run repeated has the same.
    seen = sorted(counts, key=lambda token: (-counts[token], token))
    ranked = dict.fromkeys((*seen, *range(vocab_size)))
    wanted = (token for token in ranked if token != NO_LOSS and token not in special)
    return sorted({*special, *(token for token, _ in zip(wanted, range(size), strict=False))})
