"""The likelihood of each of a fixed set of answers, fair to a model that was never taught their format.

Letters of shapes: B prompts, P tokens of a padded prompt, L labels, N tokens of a label with its end token,
V vocabulary.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.arch import versions

Progress = Callable[[int], object]


@torch.inference_mode()
def label_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    labels: Sequence[str],
    batch: int = 50,
    progress: Progress = lambda done: None,
) -> Tensor:
    """Return log p(label, end | prompt) for every prompt and label, (B, L).

    Each prompt runs once; its cached keys and values are then repeated for the labels.

    Args:
        model: any causal language model with transformers' interface, in evaluation mode.
        tokenizer: its tokenizer, with end and padding tokens.
        prompts: what to continue.
        labels: the possible answers, as they follow the prompt (with the leading space).
        batch: prompts at a time.
        progress: called with the number of prompts finished so far.
    """
    end = tokenizer.eos_token_id
    label_ids = [tokenizer(label, add_special_tokens=False)["input_ids"] + [end] for label in labels]
    scores = []
    for start in range(0, len(prompts), batch):
        scores.append(_score_batch(model, tokenizer, list(prompts[start : start + batch]), label_ids))
        progress(min(start + batch, len(prompts)))
    return torch.cat(scores)


def calibrated_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scores_BL: Tensor,
    labels: Sequence[str],
    empty: str,
) -> Tensor:
    """Return log p(label | prompt) - log p(label | empty): without what a label is worth by itself.

    A model that was never taught the format prefers short and common labels. Of the sum, the mean per token
    and their calibrated forms, this one suits the embedded base best on the validation split (Zhao et al.
    2021, "Calibrate Before Use").

    Args:
        model: the model that made the scores.
        tokenizer: its tokenizer.
        scores_BL: what `label_scores` gave.
        labels: the same labels.
        empty: the prompt with nothing in it.
    """
    return scores_BL - label_scores(model, tokenizer, [empty], labels)


def _score_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], label_ids: list[list[int]]
) -> Tensor:
    # Padded on the left, every prompt ends in the last column; its logits are of a label's first token.
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    mask_BP = encoded["attention_mask"]
    positions_BP = (mask_BP.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=encoded["input_ids"], attention_mask=mask_BP, position_ids=positions_BP, use_cache=True
    )
    first_BV = out.logits[:, -1].log_softmax(-1)
    scores_BL = torch.empty(len(prompts), len(label_ids), device=model.device)
    for length, members in _by_length(label_ids).items():
        ids_LN = torch.tensor([label_ids[i] for i in members], device=model.device)
        scores_BL[:, members] = first_BV[:, ids_LN[:, 0]]
        if length > 1:
            # A copy: the model writes the labels' keys and values into the cache that it is given.
            cache = copy.deepcopy(out[versions.CACHE])
            cache.batch_repeat_interleave(len(members))
            scores_BL[:, members] += _continue(model, cache, mask_BP, ids_LN)
    return scores_BL


def _continue(model: PreTrainedModel, cache: object, mask_BP: Tensor, ids_LN: Tensor) -> Tensor:
    """Sum the log-probabilities of each label's tokens after its first, for every prompt: (B, L)."""
    prompts, (labels, length) = len(mask_BP), ids_LN.shape
    ids = ids_LN.repeat(prompts, 1)
    mask = torch.cat([mask_BP.repeat_interleave(labels, 0), torch.ones_like(ids[:, 1:])], 1)
    positions = mask.cumsum(1)[:, 1 - length :] - 1
    logits = model(
        input_ids=ids[:, :-1],
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        **{versions.CACHE: cache},
    ).logits
    picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return picked.sum(1).view(prompts, labels)


def _by_length(label_ids: list[list[int]]) -> dict[int, list[int]]:
    groups = defaultdict(list)
    for number, ids in enumerate(label_ids):
        groups[len(ids)].append(number)
    return groups
