"""What a trained model answers, how sure it is, what it forgot, and how long an answer takes.

Shape legend: B rows, T tokens of a padded row, K last positions, V vocabulary, C classes or choices, N predicted tokens, D width.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.compare.fit import encode_texts
from shadowpeft.compare.tasks.base import Item, Task
from shadowpeft.compare.tasks.scoring import until_stop
from shadowpeft.data.encode import NO_LOSS, Collator, Example, encode_prompt
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.errors import UserError
from shadowpeft.evaluation.answers import greedy_answers
from shadowpeft.reporting.devices import synchronise

BINS = 10
_LOGITS_AT_A_TIME = 2**27
_DIVERGED = "the trained model's logits are not numbers: training diverged at this learning rate (or the base computes no numbers on this device)"

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Answers:
    """A model's answers in the order of the items.

    Attributes:
        answers: an index or a text each.
        probabilities: of all classes or choices, where answers are indices.
        cut: how many prompts lost their beginning, since the model's context is too short for them and an answer.
    """

    answers: list[Any]
    probabilities: list[list[float]] | None = None
    cut: int = 0


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, task: Task, items: Sequence[Item], max_length: int
) -> list[list[int]]:
    """Turn items into what a model reads of them; a text to classify is cut at `max_length` tokens."""
    if task.kind == "classification":
        return encode_texts([item.prompt for item in items], tokenizer, max_length)
    return [encode_prompt(Row({"prompt": item.prompt}, task.name), tokenizer) for item in items]


@torch.inference_mode()
def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    items: Sequence[Item],
    batch_size: int,
    max_length: int,
    most: int | None = None,
    encoded: list[list[int]] | None = None,
) -> Answers:
    """Answer items the way of their task, in batches of like length.

    Args:
        model: attached, detached or bare, in evaluation mode.
        tokenizer: its tokenizer.
        task: says how: by the largest logit, the likeliest choice or greedy generation.
        items: the questions.
        batch_size: items at a time.
        max_length: tokens at which a text to classify is cut.
        most: tokens of a generated answer, in place of the task's.
        encoded: what `encode_questions` makes of the items, where that is at hand.
    """
    prompts = encode_questions(tokenizer, task, items, max_length) if encoded is None else encoded
    if task.kind == "classification":
        return _by_probability(_classify(model, tokenizer, prompts, batch_size))
    limit = arch.context_of(model.config)
    if task.kind == "choice":
        choices = _encode_choices(tokenizer, items)
        shorter, cut = _within(prompts, limit, max(len(ids) for item in choices for ids in item) - 1)
        return replace(_by_probability(_choose(model, tokenizer, choices, shorter, batch_size)), cut=cut)
    new = most or task.max_new_tokens
    shorter, cut = _within(prompts, limit, new)
    texts = greedy_answers(model, tokenizer, shorter, new, batch_size, progress=False, limit=limit)
    return Answers([until_stop(text, task.stop) for text in texts], cut=cut)


def _within(prompts: list[list[int]], limit: int | None, answer: int) -> tuple[list[list[int]], int]:
    """Cut prompts on the left so that an answer fits behind them, and count those that were cut."""
    if limit is None:
        return prompts, 0
    room = max(1, limit - answer)
    return [prompt[-room:] for prompt in prompts], sum(len(prompt) > room for prompt in prompts)


def _by_probability(rows: list[Tensor]) -> Answers:
    shares = [row.float().softmax(-1) for row in rows]
    if any(row.isnan().any() for row in shares):  # so are those of infinite logits
        raise UserError(_DIVERGED)
    probabilities = [row.tolist() for row in shares]
    return Answers([max(range(len(row)), key=row.__getitem__) for row in probabilities], probabilities)


def _classify(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[list[int]], batch_size: int
) -> list[Tensor]:
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    for indices in _like_lengths(texts, batch_size):
        ids_BT, mask_BT = padded([texts[index] for index in indices], padding_id(tokenizer), "right")
        out = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device))
        for index, row in zip(indices, out.logits.float().cpu(), strict=True):
            found[index] = row
    return found


def _encode_choices(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[list[list[int]]]:
    different = list(
        dict.fromkeys(choice for item in items for choice in item.choices)
    )  # mostly the same few letters
    ids = dict(zip(different, tokenizer(different, add_special_tokens=False)["input_ids"], strict=True))
    return [[ids[choice] for choice in item.choices] for item in items]


def _choose(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    choices: list[list[list[int]]],
    prompts: list[list[int]],
    batch_size: int,
) -> list[Tensor]:
    """Return the log-likelihood of each item's choices; where every choice is one token, each prompt runs once."""
    if all(len(ids) == 1 for item in choices for ids in item):
        firsts = [[ids[0] for ids in item] for item in choices]
        sequences, owners = prompts, list(range(len(choices)))
        wanted = [[[first] for first in item] for item in firsts]
    else:
        owners = [index for index, item in enumerate(choices) for _ in item]
        wanted = [[ids] for item in choices for ids in item]
        sequences = [prompts[owner] + ids[0][:-1] for owner, ids in zip(owners, wanted, strict=True)]
    scores = _continuations(model, padding_id(tokenizer), sequences, wanted, batch_size)
    found: list[list[Tensor]] = [[] for _ in choices]
    for owner, score in zip(owners, scores, strict=True):
        found[owner].append(score)
    return [torch.cat(parts) for parts in found]


def _continuations(
    model: Any, pad: int, sequences: list[list[int]], wanted: list[list[list[int]]], batch_size: int
) -> list[Tensor]:
    """Return the log-likelihood of each wanted continuation, whose last token is the one that follows its sequence."""
    scores: list[Tensor] = [torch.empty(0)] * len(sequences)
    takes_positions = arch.family_of_config(model.config).takes_positions
    for indices in _like_lengths(sequences, batch_size):
        ids_BT, mask_BT = padded([sequences[index] for index in indices], pad, "left")
        ids_BT, mask_BT = ids_BT.to(model.device), mask_BT.to(model.device)
        positions = {"position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0)} if takes_positions else {}
        longest = max(len(wanted[index][0]) for index in indices)
        out = model(
            input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=longest, use_cache=False, **positions
        )
        logs_BKV = out.logits[:, -longest:].float().log_softmax(-1)  # some detached models give all
        ids_BKC, real_BKC = _aligned([wanted[index] for index in indices], longest)
        picked_BKC = logs_BKV.gather(2, ids_BKC.to(model.device)).cpu()
        for row_C, index in zip((picked_BKC * real_BKC).sum(1), indices, strict=True):
            scores[index] = row_C[: len(wanted[index])]
    return scores


def _aligned(rows: Sequence[list[list[int]]], longest: int) -> tuple[Tensor, Tensor]:
    """Put the tokens of each row's continuations over the last positions, (B, K, C), and tell tokens (1) from padding (0)."""
    most = max(map(len, rows))
    filled = [ids for row in rows for ids in [*row, *([[]] * (most - len(row)))]]
    padded = [[0] * (longest - len(ids)) + ids for ids in filled]
    real = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in filled]
    ids_BKC, real_BKC = (
        torch.tensor(entry).view(len(rows), most, longest).transpose(1, 2) for entry in (padded, real)
    )
    return ids_BKC, real_BKC


def _like_lengths(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def padded(rows: Sequence[list[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids on the left or right; gives ids and mask, (B, T)."""
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    if side == "left":
        ids_BT = [[pad] * gap + row for gap, row in zip(gaps, rows, strict=True)]
        mask_BT = [[0] * gap + [1] * (width - gap) for gap in gaps]
    else:
        ids_BT = [row + [pad] * gap for gap, row in zip(gaps, rows, strict=True)]
        mask_BT = [[1] * (width - gap) + [0] * gap for gap in gaps]
    return torch.tensor(ids_BT), torch.tensor(mask_BT)


def calibration(probabilities: Sequence[Sequence[float]], correct: Sequence[int]) -> dict[str, Any]:
    """Compare how sure a model is (its largest probability) with how often it is right, in ten bins of equal width.

    Returns:
        `ece`, the mean gap weighted by the bins' sizes, and `bins`: size, mean confidence and accuracy of each (0 where empty).
    """
    members: list[list[tuple[float, int]]] = [[] for _ in range(BINS)]
    for row, right in zip(probabilities, correct, strict=True):
        confidence = max(row)
        members[min(int(confidence * BINS), BINS - 1)].append((confidence, right))
    bins = [(len(b), _mean([c for c, _ in b]), _mean([r for _, r in b])) for b in members]
    ece = sum(n * abs(confidence - accuracy) for n, confidence, accuracy in bins) / max(1, len(correct))
    return {"ece": ece, "bins": [list(entry) for entry in bins]}


def negative_log_likelihood(probabilities: Sequence[Sequence[float]], targets: Sequence[int]) -> float:
    """Average -log of the probability of the right answer: finer than accuracy where few items are measured."""
    picked = [
        row[target] if 0 <= target < len(row) else 0.0
        for row, target in zip(probabilities, targets, strict=True)
    ]
    return -torch.tensor(picked, dtype=torch.float64).clamp(min=1e-12).log().mean().item()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@torch.inference_mode()
def token_loss(
    model: Any, head: Head, examples: Sequence[Example], pad: int, batch_size: int, causal: bool
) -> float:
    """Average the cross-entropy over all labelled tokens, through a given head on the model's last hidden state.

    Args:
        model: a language model or classifier, attached or bare; its own head is not used.
        head: maps hidden states after the final norm to logits over the vocabulary.
        examples: ids and labels.
        pad: id to pad with.
        batch_size: rows at a time.
        causal: whether the model is a language model, whose own logits are then left out.
    """
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    tokens, collate = 0, Collator(pad)
    for indices in _like_lengths([example["input_ids"] for example in examples], batch_size):
        batch = collate([examples[index] for index in indices])
        targets_BT = batch["labels"][:, 1:]
        predicted_BT = targets_BT != NO_LOSS
        targets_N = targets_BT[predicted_BT].to(model.device)
        hidden_BTD = last_hidden(
            model, batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device), causal
        )
        hidden_ND = hidden_BTD[:, :-1][predicted_BT.to(model.device)]
        total += _summed_loss(head, hidden_ND, targets_N)
        tokens += len(targets_N)
    loss = total.item() / tokens
    if not math.isfinite(loss):
        raise UserError(_DIVERGED)
    return loss


def last_hidden(model: Any, ids_BT: Tensor, mask_BT: Tensor, causal: bool) -> Tensor:
    """Return the last hidden state after the final norm, (B, T, D): what a language-model head reads."""
    few = {"logits_to_keep": 1} if causal else {}
    return model(
        input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True, use_cache=False, **few
    ).hidden_states[-1]


def _summed_loss(head: Head, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
    start, step = 0, 1024
    while start < len(targets_N):
        logits_NV = head(hidden_ND[start : start + step])
        total += F.cross_entropy(logits_NV.float(), targets_N[start : start + step], reduction="sum")
        start, step = start + step, max(1, _LOGITS_AT_A_TIME // logits_NV.shape[-1])
    return total


def windows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    """Take the first tokens of each text, all of them labelled; texts of fewer than two tokens are left out."""
    ids = [encoded[:length] for encoded in encode_texts(texts, tokenizer, length)]
    return [Example(input_ids=row, labels=row) for row in ids if len(row) > 1]


def ms_per_answer(
    ask: Callable[[Item], Any], items: Sequence[Item], device: torch.device, warm_up: int = 3
) -> float:
    """Time answers one item at a time and return the median in milliseconds; the first few are not counted."""
    times = []
    for number, item in enumerate([*items[:warm_up], *items]):
        synchronise(device)
        began = time.perf_counter()
        ask(item)
        synchronise(device)
        if number >= min(warm_up, len(items)):
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)
