"""Prompts to answers: greedy generation on rows, the longest prompts first."""

import itertools
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.data.encode import encode_prompt
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id, stop_ids
from shadowpeft.errors import DataError


def encode_prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int, max_new_tokens: int
) -> list[list[int]]:
    """Map rows to the token ids that generation starts from.

    Args:
        rows: the rows; their answers are left out.
        tokenizer: the model's tokenizer.
        limit: tokens the model takes.
        max_new_tokens: tokens of the answer.

    Raises:
        DataError: a prompt cannot be encoded, or with its answer it would exceed the limit.
    """
    prompts = [encode_prompt(row, tokenizer) for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        if len(prompt) + max_new_tokens > limit:
            raise DataError(
                f"{row.where}: the prompt has {len(prompt)} tokens, which leaves no room for {max_new_tokens} new ones within {limit}; "
                "shorten the prompt or lower max_new_tokens"
            )
    return prompts


@torch.inference_mode()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    progress: bool = True,
    limit: int | None = None,
) -> list[str]:
    """Answer each prompt with the likeliest token at every step; batches hold prompts of like length, padded on the left.

    Args:
        model: any causal language model; left in the mode (training or not) it was in.
        tokenizer: its tokenizer.
        prompts: token ids.
        max_new_tokens: tokens an answer may have.
        batch_size: prompts at a time.
        progress: show a bar on stderr where someone watches.
        limit: tokens that a prompt and its answer may have together; an answer ends there.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    room = [
        max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt)) for prompt in prompts
    ]
    # One batch, one length of answer: else a row's answer would depend on the rows beside it.
    groups = [list(group) for _, group in itertools.groupby(order, key=lambda index: room[index])]
    batches = [
        group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)
    ]
    answers = [""] * len(prompts)
    pad, was_training = padding_id(tokenizer), model.training
    model.eval()
    for indices in bar(batches, "generate", progress):
        width = max(len(prompts[index]) for index in indices)
        padding = [width - len(prompts[index]) for index in indices]
        ids_BT = torch.tensor(
            [[pad] * gap + list(prompts[index]) for gap, index in zip(padding, indices, strict=True)]
        )
        mask_BT = torch.tensor([[0] * gap + [1] * (width - gap) for gap in padding])
        out_BT = model.generate(  # type: ignore[operator]
            ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=room[indices[0]],
            pad_token_id=pad,
            eos_token_id=stop_ids(model, tokenizer),
        )
        for index, text in zip(
            indices, tokenizer.batch_decode(out_BT[:, width:], skip_special_tokens=True), strict=True
        ):
            answers[index] = text
    model.train(was_training)
    return answers


def bar(batches: Sequence, title: str, progress: bool) -> tqdm:
    """Show progress over batches, where it is wanted and standard error is a terminal."""
    return tqdm(batches, desc=title, unit="batch", leave=False, disable=None if progress else True)
