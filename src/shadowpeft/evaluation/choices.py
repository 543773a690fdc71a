"""The likelihood of given answers: what a multiple-choice question is answered by.

Shape legend: B rows, T tokens of a padded row, K last positions, V vocabulary, C choices.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shadowpeft import arch
from shadowpeft.evaluation.batches import like_lengths, padded

Ids = list[int]


class _Scored(NamedTuple):
    """One row to run, with the continuations that are scored on it.

    Attributes:
        sequence: the row: a prompt and all but the last token of its continuations.
        continuations: token ids, equally many each; the last one follows the sequence.
        owner: index of the question.
    """

    sequence: Ids
    continuations: list[Ids]
    owner: int


def choice_log_likelihoods(
    model: Any, prompts: Sequence[Ids], choices: Sequence[list[Ids]], pad: int, batch_size: int
) -> list[Tensor]:
    """Return the log-likelihood of each question's choices, (C,) each, as continuations of its prompt.

    Args:
        model: a causal language model in evaluation mode.
        prompts: token ids of each question.
        choices: token ids of each question's choices.
        pad: id to pad with.
        batch_size: rows at a time.
    """
    rows = _rows(prompts, choices)
    found: list[list[Tensor]] = [[] for _ in choices]
    for row, scores_C in zip(
        rows, _log_likelihoods(model, rows, pad=pad, batch_size=batch_size), strict=True
    ):
        found[row.owner].append(scores_C)
    return [torch.cat(parts) for parts in found]


def _rows(prompts: Sequence[Ids], choices: Sequence[list[Ids]]) -> list[_Scored]:
    """Return the rows to run: one per prompt if every choice is a single token, else one per choice."""
    if all(len(ids) == 1 for question in choices for ids in question):
        return [
            _Scored(prompt, question, owner)
            for owner, (prompt, question) in enumerate(zip(prompts, choices, strict=True))
        ]
    return [
        _Scored(prompt + ids[:-1], [ids], owner)
        for owner, (prompt, question) in enumerate(zip(prompts, choices, strict=True))
        for ids in question
    ]


def _log_likelihoods(model: Any, rows: Sequence[_Scored], pad: int, batch_size: int) -> list[Tensor]:
    """Return the log-likelihoods of each row's continuations, (C,) each."""
    scores: list[Tensor] = [torch.empty(0)] * len(rows)
    takes_positions = arch.family_of_config(model.config).takes_positions
    for indices in like_lengths([row.sequence for row in rows], batch_size):
        batch = [rows[index] for index in indices]
        # Padded on the left, so that the tokens to score are the last positions of every row.
        ids_BT, mask_BT = padded([row.sequence for row in batch], pad, "left")
        ids_BT, mask_BT = ids_BT.to(model.device), mask_BT.to(model.device)
        positions = {"position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0)} if takes_positions else {}
        longest = max(len(row.continuations[0]) for row in batch)
        out = model(
            input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=longest, use_cache=False, **positions
        )
        # Some detached models return the logits of all positions.
        logs_BKV = out.logits[:, -longest:].float().log_softmax(-1)
        ids_BKC, real_BKC = _aligned([row.continuations for row in batch], longest)
        picked_BKC = logs_BKV.gather(2, ids_BKC.to(model.device)).cpu()
        for row_C, index in zip((picked_BKC * real_BKC).sum(1), indices, strict=True):
            scores[index] = row_C[: len(rows[index].continuations)]
    return scores


def _aligned(rows: Sequence[list[Ids]], longest: int) -> tuple[Tensor, Tensor]:
    """Place the tokens of each row's continuations at the last positions.

    Returns:
        The token ids and whether each is a token (1) or padding (0), (B, K, C) each.
    """
    most = max(map(len, rows))
    filled = [ids for row in rows for ids in [*row, *([[]] * (most - len(row)))]]
    ids = [[0] * (longest - len(tokens)) + tokens for tokens in filled]
    real = [[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in filled]
    shape = len(rows), most, longest
    return torch.tensor(ids).view(shape).transpose(1, 2), torch.tensor(real).view(shape).transpose(1, 2)
