"""The examples of a run: its rows are read, checked and encoded before the model's weights are loaded."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from shadowpeft.config import refuse_depth, refuse_frozen
from shadowpeft.errors import ConfigError, DataError
from shadowpeft.train import draft_vocabulary
from shadowpeft.train.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shadowpeft.data.encode import Example
    from shadowpeft.data.rows import Row


class Examples(NamedTuple):
    """What a run trains and evaluates on.

    Attributes:
        tokenizer: the base's tokenizer.
        train: the examples to train on, packed where the settings say so.
        held_out: the examples to evaluate on, never packed; empty for no evaluation.
        prompts: what the shadow learns to draft behind; empty if it does not.
        draft_vocabulary: the tokens that the shadow drafts; `None` for all.
    """

    tokenizer: "PreTrainedTokenizerBase"
    train: "list[Example]"
    held_out: "list[Example]"
    prompts: Sequence[list[int]] = ()
    draft_vocabulary: list[int] | None = None


def read(config: TrainConfig) -> Examples:
    """Read and encode all rows, so that a bad one is found before the model is loaded.

    Raises:
        UserError: a row, the tokenizer, or the configuration of base or shadow cannot be used.
    """
    from shadowpeft import arch
    from shadowpeft.data.encode import context_length, encode_all
    from shadowpeft.data.packing import pack
    from shadowpeft.model import preflight, sources

    refuse_frozen(config.shadow, is_explicit=sources.is_explicit(config.shadow_model))
    rows, held_out = _rows(config)
    found = preflight.inspect(
        config.model, config.shadow_model, needs_family=True, needs_packing=config.packing
    )
    refuse_depth(config.shadow.resolved().inject_from, arch.depth_of(found.config))
    limit = context_length(found.positions, found.tokenizer, config.max_length)
    examples = encode_all(rows, found.tokenizer, limit)
    eval_examples = encode_all(held_out, found.tokenizer, limit) if held_out else []
    _check_ids([*examples, *eval_examples], config.model, found.config.vocab_size)
    vocabulary = _draft_vocabulary(config, examples, found.tokenizer, found.config.vocab_size)
    prompts = []
    if config.draft.steps:
        prompts = prompts_of(examples, config.draft.prompts, limit, config.seed)
    if config.packing:
        examples = pack(examples, limit)
    return Examples(found.tokenizer, examples, eval_examples, prompts, vocabulary)


def _draft_vocabulary(
    config: TrainConfig, examples: "Sequence[Example]", tokenizer: "PreTrainedTokenizerBase", vocab_size: int
) -> list[int] | None:
    if config.draft_vocabulary is None:
        return None
    if config.draft_vocabulary >= vocab_size:
        raise ConfigError(
            f"draft_vocabulary must be below {vocab_size}, the number of tokens that {config.model} knows, "
            f"got {config.draft_vocabulary}; leave it out to draft all of them"
        )
    return draft_vocabulary.most_frequent(
        examples, config.draft_vocabulary, tokenizer.all_special_ids, vocab_size
    )


def prompts_of(examples: "Sequence[Example]", most: int, limit: int, seed: int) -> list[list[int]]:
    """Draw examples and return the tokens before what is learnt of them; of a text learnt whole, half of it.

    Args:
        examples: not packed.
        most: how many, if there are so many.
        limit: tokens of a prompt and its answer together; a prompt that leaves no room is left out.
        seed: decides which.

    Raises:
        DataError: there are fewer than two.
    """
    prompts = [prompt for example in examples if len(prompt := _prompt(example)) < limit]
    if len(prompts) < 2:
        raise DataError(
            "a shadow learns to draft from answers to two prompts at least, and of the training data's "
            f"{len(prompts)} leave room for an answer within {limit} tokens; give more rows, raise "
            "max_length, or leave draft.steps out"
        )
    random.Random(seed).shuffle(prompts)
    return prompts[:most]


def _prompt(example: "Example") -> list[int]:
    from shadowpeft.data.encode import NO_LOSS

    ids = example["input_ids"]
    first = next((place for place, label in enumerate(example["labels"]) if label != NO_LOSS), 0)
    # Of a text that is learnt whole the first token may count or not.
    return ids[:first] if first > 1 else ids[: max(1, len(ids) // 2)]


def _rows(config: TrainConfig) -> "tuple[Sequence[Row], Sequence[Row]]":
    """Return the rows to train on and the rows to evaluate on."""
    from shadowpeft.data.rows import parse_form, read_rows, split_rows

    rows = read_rows(config.data)
    if config.eval_data is not None:
        return rows, read_rows(config.eval_data, split="test")
    if config.eval_fraction:
        for row in rows[:2]:  # one that is wrong is told before there are too few
            parse_form(row)
        return split_rows(rows, config.eval_fraction, config.seed)
    return rows, []


def _check_ids(examples: "Sequence[Example]", model: str, vocab_size: int) -> None:
    """Refuse a tokenizer that gives ids which the model has no embedding for."""
    largest = max(max(example["input_ids"]) for example in examples)
    if largest >= vocab_size:
        raise ConfigError(
            f"the tokenizer of {model} gives the id {largest}, but the model knows only {vocab_size} tokens"
        )
