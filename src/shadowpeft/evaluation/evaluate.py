"""How good a model is on rows of text: loss, perplexity, and the share of answers it gives exactly. For any causal language model."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.config import ShadowConfig
from shadowpeft.data.encode import NO_LOSS, Collator, Example, context_length, encode_all, encode_prompt
from shadowpeft.data.rows import Row, reference_answer
from shadowpeft.errors import DataError
from shadowpeft.model import ShadowedModel
from shadowpeft.model.outputs import ShadowedCausalLMOutput


@dataclass(frozen=True)
class Losses:
    """Cross-entropy per predicted token.

    Attributes:
        tokens: how many tokens were predicted.
        loss: of the model's own head.
        shadow_loss: of the shadow's head; `None` where no shadow ran.
    """

    tokens: int
    loss: float
    shadow_loss: float | None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        rows: how many rows there were.
        tokens: how many tokens were predicted for the loss.
        loss: cross-entropy per token.
        perplexity: its exponential.
        shadow_loss: cross-entropy per token of the shadow's head; `None` where no shadow ran.
        exact_match: share of the rows with an answer that greedy generation reproduces, white space at both ends aside.
        answered_rows: how many rows have an answer to compare with.
    """

    rows: int
    tokens: int
    loss: float
    perplexity: float
    shadow_loss: float | None
    exact_match: float | None
    answered_rows: int


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    batch_size: int = 8,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    exact_match: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Measure a shadowed model, a bare base or a detached model on rows.

    Args:
        model: any causal language model; left in the mode (training or not) it was in.
        tokenizer: its tokenizer.
        rows: what to measure on.
        batch_size: rows at a time.
        max_length: tokens a row may have before it is cut; by default what the model takes.
        max_new_tokens: tokens an answer may have; by default one more than the longest reference answer, or what the prompt leaves.
        exact_match: generate answers and compare them; without it only the losses are measured.
        progress: show bars on stderr where someone watches.

    Raises:
        DataError: a row cannot be encoded, or its prompt leaves no room for an answer.
        ConfigError: `max_length` is beyond the model.
    """
    limit = context_length(arch.context_of(model.config), tokenizer, max_length)
    pad = padding_id(tokenizer)
    examples = encode_all(rows, tokenizer, limit)
    referenced = [(row, answer) for row in rows if (answer := reference_answer(row)) is not None]
    matches, prompts = None, []
    if exact_match:  # a prompt that is too long is found before the work on the losses
        prompts = encode_prompts([row for row, _ in referenced], tokenizer, limit, max_new_tokens or 1)
    losses = token_losses(model, examples, Collator(pad), batch_size, progress)
    if prompts:
        longest = max(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for _, answer in referenced)
        answers = greedy_answers(model, tokenizer, prompts, max_new_tokens or 1 + longest, batch_size, progress, limit)
        right = sum(given.strip() == wanted.strip() for given, (_, wanted) in zip(answers, referenced, strict=True))
        matches = right / len(referenced)
    # Not math.exp, which raises where the result is too large for a float.
    perplexity = torch.tensor(losses.loss, dtype=torch.float64).exp().item()
    return Evaluation(len(rows), losses.tokens, losses.loss, perplexity, losses.shadow_loss, matches, len(referenced))


@torch.inference_mode()
def token_losses(model: PreTrainedModel, examples: Sequence[Example], collator: Collator, batch_size: int, progress: bool = True) -> Losses:
    """Measure the cross-entropy per token over all examples, whatever the batches.

    Raises:
        DataError: no example has a token to predict.
    """
    own, shadow, tokens = 0.0, 0.0, 0
    shadowed, was_training = False, model.training
    model.eval()
    for batch in _batches(sorted(examples, key=lambda example: len(example["input_ids"])), batch_size, "loss", progress):
        inputs = {name: tensor.to(model.device) for name, tensor in collator(batch).items()}
        tokens += int((inputs["labels"][:, 1:] != NO_LOSS).sum())
        own_of_batch, shadow_of_batch = _summed_losses(model, inputs)
        own += own_of_batch
        if shadow_of_batch is not None:
            shadow, shadowed = shadow + shadow_of_batch, True
    model.train(was_training)
    if not tokens:
        raise DataError("no row has a token to predict; rows need an answer or more than one token of text")
    return Losses(tokens, own / tokens, shadow / tokens if shadowed else None)


def encode_prompts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int, max_new_tokens: int) -> list[list[int]]:
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
    room = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt)) for prompt in prompts]
    # One batch, one length of answer: else a row's answer would depend on the rows beside it.
    groups = [list(group) for _, group in itertools.groupby(order, key=lambda index: room[index])]
    batches = [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]
    answers = [""] * len(prompts)
    pad, was_training = padding_id(tokenizer), model.training
    model.eval()
    for indices in _bar(batches, "generate", progress):
        width = max(len(prompts[index]) for index in indices)
        padding = [width - len(prompts[index]) for index in indices]
        ids_BT = torch.tensor([[pad] * gap + list(prompts[index]) for gap, index in zip(padding, indices, strict=True)])
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
        for index, text in zip(indices, tokenizer.batch_decode(out_BT[:, width:], skip_special_tokens=True), strict=True):
            answers[index] = text
    model.train(was_training)
    return answers


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Choose an id to pad with; any will do, as padding is neither attended to nor learned."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Collect the ids that end an answer: those of the model, and the tokenizer's end token, which training puts after completions."""
    given = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = given if isinstance(given, list) else [given]
    return sorted({int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None}) or None


def finite(value: Any) -> Any:
    """Replace the floats that JSON has no word for, NaN and the infinities, by `None`, in nested lists and dictionaries too."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summed_losses(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[float, float | None]:
    """Sum the loss over a batch, of a shadow that answers, too; a shadowed model need not hold the logits of either head for it."""
    lean = {"skip_logits": True, "num_items_in_batch": torch.ones((), device=model.device)} if isinstance(model, ShadowedModel) else {}
    out = model(**inputs, **lean, use_cache=False)
    if isinstance(out, ShadowedCausalLMOutput) and isinstance(model, ShadowedModel):
        assert out.loss is not None
        assert out.shadow_loss is not None
        settings = model.adapters[model.active_adapter].settings
        assert isinstance(settings, ShadowConfig)
        shadow = out.shadow_loss.item()
        distil, share = 0.0 if out.distil_loss is None else out.distil_loss.item(), settings.shadow_distil
        return out.loss.item() - settings.resolved().shadow_loss_weight * ((1 - share) * shadow + share * distil), shadow
    targets_BT = inputs["labels"][:, 1:]
    predicted_BT = targets_BT != NO_LOSS
    loss = F.cross_entropy(out.logits[:, :-1][predicted_BT].float(), targets_BT[predicted_BT], reduction="sum")
    return loss.item(), None


def _batches(items: Sequence, size: int, title: str, progress: bool) -> tqdm:
    return _bar([items[start : start + size] for start in range(0, len(items), size)], title, progress)


def _bar(batches: Sequence, title: str, progress: bool) -> tqdm:
    return tqdm(batches, desc=title, unit="batch", leave=False, disable=None if progress else True)
