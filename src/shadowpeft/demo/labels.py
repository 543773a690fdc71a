"""The likelihood of each of a fixed set of answers, and which is likeliest, which takes far less work.

Letters of shapes: B prompts, P tokens of a padded prompt, L labels, K pairs of a prompt and a label, N tokens
of a label with its end token, V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.arch import versions
from shadowpeft.evaluation.batches import like_lengths, padded

Progress = Callable[[int], object]


class _Read(NamedTuple):
    """Prompts that a model has read.

    Attributes:
        cache: their keys and values.
        mask_BP: what of them is no padding.
        first_BV: log-probabilities of the token that follows.
    """

    cache: Any
    mask_BP: Tensor
    first_BV: Tensor


@torch.inference_mode()
def label_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], labels: Sequence[str]
) -> Tensor:
    """Return log p(label, end | prompt) for every prompt and label, (B, L).

    Each prompt is read once; its cached keys and values then serve all labels.

    Args:
        model: any causal language model with transformers' interface, in evaluation mode.
        tokenizer: its tokenizer, with end and padding tokens.
        prompts: what to continue, few enough to be one batch.
        labels: the possible answers, as they follow the prompt (with the leading space).
    """
    read = _read(model, tokenizer, [tokenizer(prompt)["input_ids"] for prompt in prompts])
    label_ids = _label_ids(tokenizer, labels)
    every_BL = torch.ones(len(prompts), len(labels), dtype=torch.bool, device=model.device)
    return _scores(model, read, label_ids, every_BL)


@torch.inference_mode()
def likeliest_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    labels: Sequence[str],
    worth_L: Tensor | float = 0.0,
    batch: int = 100,
    progress: Progress = lambda done: None,
) -> list[int]:
    """Return for each prompt the index of the label of the highest log p(label, end | prompt) - worth.

    A label is no likelier than its first token. So the labels of the best first token are scored whole, and
    then those only whose first token leaves them a chance: the answer is that of scoring them all.

    A model that was never taught the format prefers short and common labels. What a label is worth by itself
    is its score for the empty prompt: of the sum, the mean per token and their calibrated forms, the
    calibrated sum suits the embedded base best on the validation split (Zhao et al. 2021, "Calibrate Before
    Use").

    Args:
        model: any causal language model with transformers' interface, in evaluation mode.
        tokenizer: its tokenizer, with end and padding tokens.
        prompts: what to continue.
        labels: the possible answers, as they follow the prompt (with the leading space).
        worth_L: what is taken off each label's score.
        batch: prompts at a time.
        progress: called with the number of prompts finished so far.
    """
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    label_ids = _label_ids(tokenizer, labels)
    chosen, done = [0] * len(prompts), 0
    for indices in like_lengths(prompt_ids, batch):
        read = _read(model, tokenizer, [prompt_ids[index] for index in indices])
        bounds_BL = read.first_BV[:, [ids[0] for ids in label_ids]] - worth_L
        hopeful_BL = bounds_BL == bounds_BL.amax(1, keepdim=True)
        scores_BL = _scores(model, read, label_ids, hopeful_BL) - worth_L
        rest_BL = (bounds_BL > scores_BL.amax(1, keepdim=True)) & ~hopeful_BL
        scores_BL = scores_BL.maximum(_scores(model, read, label_ids, rest_BL) - worth_L)
        for index, best in zip(indices, scores_BL.argmax(1).tolist(), strict=True):
            chosen[index] = best
        done += len(indices)
        progress(done)
    return chosen


def _label_ids(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[list[int]]:
    """Return each label's tokens with the end token."""
    end = tokenizer.eos_token_id
    return [[*tokenizer(label, add_special_tokens=False)["input_ids"], end] for label in labels]


def _read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: list[list[int]]) -> _Read:
    # Padded on the left, every prompt ends in the last column; its logits are of a label's first token.
    ids_BP, mask_BP = padded(prompt_ids, tokenizer.pad_token_id, "left")
    ids_BP, mask_BP = ids_BP.to(model.device), mask_BP.to(model.device)
    positions_BP = (mask_BP.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=ids_BP, attention_mask=mask_BP, position_ids=positions_BP, use_cache=True, logits_to_keep=1
    )
    return _Read(out[versions.CACHE], mask_BP, out.logits[:, -1].log_softmax(-1))


def _scores(model: PreTrainedModel, read: _Read, label_ids: list[list[int]], wanted_BL: Tensor) -> Tensor:
    """Return the scores of the wanted pairs of prompt and label, (B, L), the others minus infinity."""
    scores_BL = torch.full(wanted_BL.shape, -torch.inf, device=wanted_BL.device)
    lengths_L = torch.tensor([len(ids) for ids in label_ids], device=wanted_BL.device)
    for length in lengths_L.unique().tolist():
        rows_K, columns_K = (wanted_BL & (lengths_L == length)).nonzero(as_tuple=True)
        if not len(rows_K):
            continue
        ids_KN = torch.tensor([label_ids[column] for column in columns_K.tolist()], device=wanted_BL.device)
        scores_BL[rows_K, columns_K] = read.first_BV[rows_K, ids_KN[:, 0]]
        if length > 1:
            scores_BL[rows_K, columns_K] += _continue(model, read, rows_K, ids_KN)
    return scores_BL


def _continue(model: PreTrainedModel, read: _Read, rows_K: Tensor, ids_KN: Tensor) -> Tensor:
    """Sum the log-probabilities of each label's tokens after its first: (K,)."""
    # A copy: the model writes the labels' keys and values into the cache that it is given.
    cache = copy.deepcopy(read.cache)
    cache.batch_select_indices(rows_K)
    mask = torch.cat([read.mask_BP[rows_K], torch.ones_like(ids_KN[:, 1:])], 1)
    positions = mask.cumsum(1)[:, 1 - ids_KN.shape[1] :] - 1
    logits = model(
        input_ids=ids_KN[:, :-1],
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        **{versions.CACHE: cache},
    ).logits
    picked = logits.gather(-1, ids_KN[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
    return picked.sum(1)
