"""Answers with what the model says of each of their tokens: what routing is calibrated on.

Shape legend: B rows of a batch, T new tokens, V vocabulary, L labels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.data.encode import context_length
from shadowpeft.data.rows import Row, reference_answer
from shadowpeft.data.tokenizers import padding_id, stop_ids
from shadowpeft.errors import ConfigError, DataError
from shadowpeft.evaluation.answers import bar, encode_prompts, generated
from shadowpeft.evaluation.choices import choice_log_likelihoods
from shadowpeft.evaluation.questions import questions_of
from shadowpeft.route.scores import TokenScores


class Scored(NamedTuple):
    """One answer.

    Attributes:
        answer: its text.
        expected: the right one.
        right: whether it is right.
        tokens: what the model says of its tokens.
    """

    answer: str
    expected: str
    right: bool
    tokens: TokenScores


def scored_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    batch_size: int = 8,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    progress: bool = True,
) -> list[Scored]:
    """Answer rows with the likeliest token at every step, and say how likely each was.

    What is right is what `evaluate` counts as an exact match.

    Args:
        model: any causal language model; left in the mode (training or not) it was in.
        tokenizer: its tokenizer.
        rows: rows that have an answer.
        batch_size: rows at a time.
        max_length: tokens that prompt and answer may have together; by default the model's limit.
        max_new_tokens: tokens of an answer; by default one more than the longest one expected.
        progress: show a progress bar, if standard error is a terminal.

    Raises:
        DataError: a row has no answer or cannot be encoded, its prompt leaves no room for an answer, or the
            model's logits are not numbers.
        ConfigError: `max_length` is beyond the model.
    """
    expected = expected_answers(rows)
    limit = context_length(arch.context_of(model.config), tokenizer, max_length)
    questions = questions_of(rows, tokenizer, limit, max_new_tokens)
    texts, tokens = [""] * len(rows), [TokenScores(())] * len(rows)
    recorder = _Recorder()
    batches = generated(
        model,
        tokenizer,
        questions.prompts,
        questions.max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        limit=limit,
        logits_processor=LogitsProcessorList([recorder]),
        # A penalty of the model's folder would bend the probabilities that a score reads.
        repetition_penalty=1.0,
    )
    ends = stop_ids(model, tokenizer) or []
    for indices, new_BT in batches:
        decoded = tokenizer.batch_decode(new_BT, skip_special_tokens=True)
        found = recorder.take(_lengths(new_BT, ends))
        for index, text, scores in zip(indices, decoded, found, strict=True):
            texts[index], tokens[index] = text, scores
    _refuse_nan(rows, tokens)
    rights = questions.are_right(texts)
    return [Scored(*each) for each in zip(questions.contents(texts), expected, rights, tokens, strict=True)]


def expected_answers(rows: Sequence[Row]) -> list[str]:
    """Return the answers that are expected.

    Raises:
        DataError: a row has none.
    """
    found = []
    for row in rows:
        answer = reference_answer(row)
        if answer is None:
            raise DataError(
                f"{row.where}: expected a row with the right answer, got one without; add a completion or "
                "the assistant's message"
            )
        found.append(answer.strip())
    return found


class _Recorder(LogitsProcessor):
    """Notes, at every step of a greedy generation, what the distribution says of the token chosen."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logs_BV = scores.float().log_softmax(-1)
        top_B2 = logs_BV.topk(2).values
        # A token of probability 0 adds nothing, but 0 times -inf is NaN.
        entropy_B = -(logs_BV.exp() * logs_BV.clamp(min=-1000)).sum(-1)
        self._steps.append(torch.stack([top_B2[:, 0], top_B2[:, 0] - top_B2[:, 1], entropy_B]))
        return scores

    def take(self, lengths: Sequence[int]) -> list[TokenScores]:
        """Return what was noted of a batch of answers of these lengths, and begin anew."""
        noted_3BT = torch.stack(self._steps, -1).cpu()
        self._steps = []
        logprobs_BT, margins_BT, entropies_BT = noted_3BT.tolist()
        columns = zip(logprobs_BT, margins_BT, entropies_BT, lengths, strict=True)
        return [TokenScores(*(tuple(row[:length]) for row in rows)) for *rows, length in columns]


def _lengths(new_BT: Tensor, ends: Sequence[int]) -> list[int]:
    """Return how many tokens each answer has, the one that ends it among them."""
    is_end_BT = torch.isin(new_BT.cpu(), torch.tensor(ends, dtype=new_BT.dtype))
    before_B = (is_end_BT.cumsum(1) == 0).sum(1)
    return (before_B + 1).clamp(max=new_BT.shape[1]).tolist()


def _refuse_nan(rows: Sequence[Row], tokens: Sequence[TokenScores]) -> None:
    for row, scores in zip(rows, tokens, strict=True):
        if any(value != value for value in scores.logprobs):
            raise DataError(
                f"{row.where}: the model's logits are not numbers, so that no answer can be scored"
            )


def scored_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    labels: Sequence[str],
    batch_size: int = 8,
    progress: bool = True,
) -> list[Scored]:
    """Answer rows with the likeliest of a few labels, each with the token that ends it.

    The probability of a label is its share of what all labels have together.

    Args:
        model: any causal language model; left in the mode (training or not) it was in.
        tokenizer: its tokenizer, with an end-of-sequence token.
        rows: rows that have an answer.
        labels: the possible answers as they follow the prompt, such as " play music".
        batch_size: rows at a time.
        progress: show a progress bar, if standard error is a terminal.

    Raises:
        ConfigError: there are fewer than two labels, or two are equal.
        DataError: a row has no answer, or one that is no label, or cannot be encoded.
    """
    names = [label.strip() for label in labels]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"labels must hold two or more different answers, got {', '.join(names) or 'none'}")
    expected = expected_answers(rows)
    for row, answer in zip(rows, expected, strict=True):
        if answer not in names:
            raise DataError(
                f"{row.where}: expected one of the {len(names)} labels as the answer, got {answer!r}"
            )
    limit = context_length(arch.context_of(model.config), tokenizer, None)
    end = tokenizer.eos_token_id
    ids = [[*tokenizer(label, add_special_tokens=False)["input_ids"], end] for label in labels]
    prompts = encode_prompts(rows, tokenizer, limit, max(map(len, ids)))
    pad, was_training = padding_id(tokenizer), model.training
    model.eval()
    logs: list[Tensor] = []
    with torch.inference_mode():
        for start in bar(range(0, len(rows), batch_size), "choose", progress):
            some = prompts[start : start + batch_size]
            size = batch_size * len(labels)
            logs += choice_log_likelihoods(model, some, [ids] * len(some), pad=pad, batch_size=size)
    model.train(was_training)
    return [_chosen(logs_L, names, answer) for logs_L, answer in zip(logs, expected, strict=True)]


def _chosen(logs_L: Tensor, names: Sequence[str], expected: str) -> Scored:
    shares_L = logs_L.double().log_softmax(-1)
    (first, second), (best, _) = (part.tolist() for part in shares_L.topk(2))
    entropy = -(shares_L.exp() * shares_L).sum().item()
    answer = names[best]
    return Scored(answer, expected, answer == expected, TokenScores((first,), (first - second,), (entropy,)))
