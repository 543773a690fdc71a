"""What a trained model answers, how large its loss is, and how long an answer takes.

Shape legend: B rows, T tokens of a padded row, V vocabulary, N predicted tokens, D width.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.compare.examples import encode_texts
from shadowpeft.compare.tasks.base import Item, Task
from shadowpeft.compare.tasks.scoring import until_stop
from shadowpeft.data.encode import NO_LOSS, Example, encode_prompt
from shadowpeft.data.packing import Collator
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.errors import UserError
from shadowpeft.evaluation.answers import greedy_answers
from shadowpeft.evaluation.batches import like_lengths, padded
from shadowpeft.evaluation.choices import choice_log_likelihoods
from shadowpeft.reporting.devices import synchronise

_LOGITS_AT_A_TIME = 2**27
_DIVERGED = (
    "the trained model's logits are not numbers: training diverged at this learning rate "
    "(or the base computes no numbers on this device)"
)

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Answers:
    """A model's answers in the order of the items.

    Attributes:
        answers: an index or a text each.
        probabilities: of all classes or choices, if answers are indices.
        cut: how many prompts lost their beginning, since with an answer they exceed the model's context.
    """

    answers: list[Any]
    probabilities: list[list[float]] | None = None
    cut: int = 0


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, task: Task, items: Sequence[Item], max_length: int
) -> list[list[int]]:
    """Return the token ids that a model reads of each item; a text to classify is cut at `max_length`."""
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
    """Answer items in the way of their task, in batches of similar length.

    Args:
        model: attached, detached or bare, in evaluation mode.
        tokenizer: its tokenizer.
        task: decides how: by the largest logit, the likeliest choice or greedy generation.
        items: the questions.
        batch_size: items at a time.
        max_length: tokens at which a text to classify is cut.
        most: tokens of a generated answer, in place of the task's.
        encoded: what `encode_questions` returns for the items, if it is known already.

    Raises:
        UserError: the model's logits are not numbers.
    """
    prompts = encoded
    if prompts is None:
        prompts = encode_questions(tokenizer, task, items, max_length)
    pad = padding_id(tokenizer)
    if task.kind == "classification":
        return _likeliest(_classify(model, prompts, pad=pad, batch_size=batch_size))
    limit = arch.context_of(model.config)
    if task.kind == "choice":
        choices = _encode_choices(tokenizer, items)
        shorter, cut = _within(prompts, limit, max(len(ids) for item in choices for ids in item) - 1)
        scores = choice_log_likelihoods(model, shorter, choices, pad=pad, batch_size=batch_size)
        return replace(_likeliest(scores), cut=cut)
    new = most or task.max_new_tokens
    shorter, cut = _within(prompts, limit, new)
    texts = greedy_answers(
        model, tokenizer, shorter, max_new_tokens=new, batch_size=batch_size, progress=False, limit=limit
    )
    return Answers([until_stop(text, task.stop) for text in texts], cut=cut)


def _within(prompts: list[list[int]], limit: int | None, answer: int) -> tuple[list[list[int]], int]:
    """Cut prompts on the left so that an answer fits behind them, and count those that were cut."""
    if limit is None:
        return prompts, 0
    room = max(1, limit - answer)
    return [prompt[-room:] for prompt in prompts], sum(len(prompt) > room for prompt in prompts)


def _likeliest(logits: list[Tensor]) -> Answers:
    """Return the index of each item's largest logit, and the probabilities of all."""
    shares = [row.float().softmax(-1) for row in logits]
    if any(row.isnan().any() for row in shares):  # infinite logits, too, have a softmax of NaN
        raise UserError(_DIVERGED)
    probabilities = [row.tolist() for row in shares]
    return Answers([max(range(len(row)), key=row.__getitem__) for row in probabilities], probabilities)


def _classify(model: Any, texts: list[list[int]], pad: int, batch_size: int) -> list[Tensor]:
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    for indices in like_lengths(texts, batch_size):
        ids_BT, mask_BT = padded([texts[index] for index in indices], pad, "right")
        out = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device))
        for index, row in zip(indices, out.logits.float().cpu(), strict=True):
            found[index] = row
    return found


def _encode_choices(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[list[list[int]]]:
    # Each choice is encoded once: they are mostly the same few letters.
    different = list(dict.fromkeys(choice for item in items for choice in item.choices))
    ids = dict(zip(different, tokenizer(different, add_special_tokens=False)["input_ids"], strict=True))
    return [[ids[choice] for choice in item.choices] for item in items]


@torch.inference_mode()
def token_loss(
    model: Any, head: Head, examples: Sequence[Example], pad: int, batch_size: int, causal: bool
) -> float:
    """Average the cross-entropy over all labelled tokens, through a head on the model's last hidden state.

    Args:
        model: a language model or classifier, attached or bare; its own head is not used.
        head: maps hidden states after the final norm to logits over the vocabulary.
        examples: token ids and labels.
        pad: id to pad with.
        batch_size: rows at a time.
        causal: whether the model is a language model; its own logits are then left out.

    Raises:
        UserError: the loss is not a number.
    """
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    tokens, collate = 0, Collator(pad)
    for indices in like_lengths([example["input_ids"] for example in examples], batch_size):
        batch = collate([examples[index] for index in indices])
        targets_BT = batch["labels"][:, 1:]
        predicted_BT = targets_BT != NO_LOSS
        targets_N = targets_BT[predicted_BT].to(model.device)
        ids_BT, mask_BT = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        hidden_BTD = last_hidden(model, ids_BT, mask_BT, causal=causal)
        hidden_ND = hidden_BTD[:, :-1][predicted_BT.to(model.device)]
        total += _summed_loss(head, hidden_ND, targets_N)
        tokens += len(targets_N)
    loss = total.item() / tokens
    if not math.isfinite(loss):
        raise UserError(_DIVERGED)
    return loss


def last_hidden(model: Any, ids_BT: Tensor, mask_BT: Tensor, causal: bool) -> Tensor:
    """Return the last hidden state after the final norm, (B, T, D): what a language-model head reads."""
    few_logits = {"logits_to_keep": 1} if causal else {}
    out = model(
        input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True, use_cache=False, **few_logits
    )
    return out.hidden_states[-1]


def _summed_loss(head: Head, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Sum the cross-entropy in pieces, since the logits of all tokens at once may not fit in memory."""
    total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
    # The size of the vocabulary, and with it that of a piece, is known after the first one.
    start, step = 0, 1024
    while start < len(targets_N):
        logits_NV = head(hidden_ND[start : start + step])
        total += F.cross_entropy(logits_NV.float(), targets_N[start : start + step], reduction="sum")
        start, step = start + step, max(1, _LOGITS_AT_A_TIME // logits_NV.shape[-1])
    return total


def windows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    """Return the first tokens of each text, all labelled; texts of fewer than two tokens are left out."""
    ids = [encoded[:length] for encoded in encode_texts(texts, tokenizer, length)]
    return [Example(input_ids=row, labels=row) for row in ids if len(row) > 1]


def ms_per_answer(
    ask: Callable[[Item], Any], items: Sequence[Item], device: torch.device, warm_up: int = 3
) -> float:
    """Return the median time of an answer to one item, in milliseconds; the first few do not count."""
    times = []
    for index, item in enumerate([*items[:warm_up], *items]):
        synchronise(device)
        began = time.perf_counter()
        ask(item)
        synchronise(device)
        if index >= min(warm_up, len(items)):
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)
