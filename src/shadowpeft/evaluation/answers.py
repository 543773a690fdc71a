"""Answers to the prompts of rows, by greedy generation in batches.

Shapes in names: B is the batch, T the tokens of its longest prompt, with those of the answer in `out_BT`.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.data.encode import encode_prompt
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id, stop_ids
from shadowpeft.errors import DataError
from shadowpeft.evaluation.batches import padded


def encode_prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int | None, max_new_tokens: int
) -> list[list[int]]:
    """Map rows to the token ids that generation starts from.

    Args:
        rows: the rows; their answers are left out.
        tokenizer: the model's tokenizer.
        limit: tokens that prompt and answer may have together, `None` for any number.
        max_new_tokens: tokens of the answer.

    Raises:
        DataError: a prompt cannot be encoded, or with its answer it would exceed the limit.
    """
    prompts = [encode_prompt(row, tokenizer) for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise DataError(
                f"{row.where}: the prompt has {len(prompt)} tokens, which leaves no room for "
                f"{max_new_tokens} new ones within {limit}; shorten the prompt or lower max_new_tokens"
            )
    return prompts


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    progress: bool = True,
    limit: int | None = None,
) -> list[str]:
    """Answer each prompt with the likeliest token at every step; batches hold prompts of similar length.

    Args:
        model: any causal language model; left in the mode (training or not) it was in.
        tokenizer: its tokenizer.
        prompts: token ids.
        max_new_tokens: tokens an answer may have.
        batch_size: prompts at a time.
        progress: show a progress bar, if standard error is a terminal.
        limit: tokens that a prompt and its answer may have together; an answer ends there.
    """
    answers = [""] * len(prompts)
    batches = generated(
        model, tokenizer, prompts, max_new_tokens, batch_size=batch_size, progress=progress, limit=limit
    )
    for indices, new_BT in batches:
        texts = tokenizer.batch_decode(new_BT, skip_special_tokens=True)
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text
    return answers


@torch.inference_mode()
def generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    progress: bool = True,
    limit: int | None = None,
    **settings: Any,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the answers of batches: the indices of their prompts and the new token ids, (B, T).

    Args:
        model: any causal language model; left in the mode (training or not) it was in.
        tokenizer: its tokenizer.
        prompts: token ids.
        max_new_tokens: tokens an answer may have.
        batch_size: prompts at a time.
        progress: show a progress bar, if standard error is a terminal.
        limit: tokens that a prompt and its answer may have together; an answer ends there.
        settings: more arguments of `generate`.
    """
    lengths = [max_new_tokens] * len(prompts)
    if limit is not None:
        lengths = [min(max_new_tokens, limit - len(prompt)) for prompt in prompts]
    pad, was_training = padding_id(tokenizer), model.training
    model.eval()
    for indices in bar(_batches(prompts, lengths, batch_size), "generate", progress):
        # On the left, where no answer begins.
        ids_BT, mask_BT = padded([list(prompts[index]) for index in indices], pad, "left")
        out_BT = model.generate(  # type: ignore[operator]
            ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=lengths[indices[0]],
            pad_token_id=pad,
            eos_token_id=stop_ids(model, tokenizer),
            **settings,
        )
        yield indices, out_BT[:, ids_BT.shape[1] :]
    model.train(was_training)


def _batches(prompts: Sequence[Sequence[int]], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Put the indices of prompts into batches, by length, with one length of answers in each."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = []
    # One batch, one length of answer: else a row's answer would depend on the rows beside it.
    for _, group in itertools.groupby(order, key=lambda index: lengths[index]):
        indices = list(group)
        batches += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return batches


def bar(batches: Iterable, title: str, progress: bool) -> tqdm:
    """Return the batches with a progress bar, shown if it is wanted and standard error is a terminal."""
    # To tqdm, None means: hidden unless a terminal is there.
    return tqdm(batches, desc=title, unit="batch", leave=False, disable=None if progress else True)
