"""Measures on rows of text, for any causal language model: loss, perplexity and exact match."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.data.encode import NO_LOSS, Example, context_length, encode_all
from shadowpeft.data.packing import Collator
from shadowpeft.data.rows import Row, reference_answer
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.errors import DataError
from shadowpeft.evaluation.answers import bar, greedy_answers
from shadowpeft.evaluation.questions import questions_of
from shadowpeft.model import ShadowedModel
from shadowpeft.model.outputs import ShadowedCausalLMOutput


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropies per predicted token.

    Attributes:
        tokens: how many tokens were predicted.
        loss: of the model's own head.
        shadow_loss: of the shadow's head; `None` if no shadow ran.
    """

    tokens: int
    loss: float
    shadow_loss: float | None


@dataclass(frozen=True)
class Evaluation:
    """Measures of one model on one set of rows.

    Attributes:
        rows: how many rows there were.
        tokens: how many tokens were predicted for the loss.
        loss: mean cross-entropy per predicted token.
        perplexity: its exponential.
        shadow_loss: the same of the shadow's head; `None` if no shadow ran.
        exact_match: share of the answered rows whose answer greedy generation reproduces, but for white space
            at both ends and an empty block of thoughts that the chat template opens answers with; `None` if
            it was not measured.
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
        max_length: tokens a row may have before it is cut; by default the model's limit.
        max_new_tokens: tokens an answer may have, beside what the chat template opens it with; by default one
            more than the longest reference answer, or what the prompt leaves.
        exact_match: generate answers and compare them; without it only the losses are measured.
        progress: show progress bars, if standard error is a terminal.

    Raises:
        DataError: a row cannot be encoded, or its prompt leaves no room for an answer.
        ConfigError: `max_length` is beyond the model.
    """
    limit = context_length(arch.context_of(model.config), tokenizer, max_length)
    pad = padding_id(tokenizer)
    examples = encode_all(rows, tokenizer, limit)
    asked = [row for row in rows if reference_answer(row) is not None]
    matches, questions = None, None
    # A prompt that is too long is found before the work on the losses.
    if exact_match and asked:
        questions = questions_of(asked, tokenizer, limit, max_new_tokens)
    losses = measure_losses(model, _batches(examples, Collator(pad), batch_size), progress)
    if questions is not None:
        answers = greedy_answers(
            model,
            tokenizer,
            questions.prompts,
            max_new_tokens=questions.max_new_tokens,
            batch_size=batch_size,
            progress=progress,
            limit=limit,
        )
        matches = sum(questions.are_right(answers)) / len(answers)
    return Evaluation(
        rows=len(rows),
        tokens=losses.tokens,
        loss=losses.loss,
        # Not math.exp, which raises if the result is too large for a float.
        perplexity=torch.tensor(losses.loss, dtype=torch.float64).exp().item(),
        shadow_loss=losses.shadow_loss,
        exact_match=matches,
        answered_rows=len(asked),
    )


@torch.inference_mode()
def measure_losses(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Any]], progress: bool = True
) -> Losses:
    """Measure the mean cross-entropy per predicted token over all rows, whatever the batches.

    Args:
        model: any causal language model; left in the mode (training or not) it was in.
        batches: the model's arguments, `labels` among them.
        progress: show a progress bar, if standard error is a terminal.

    Raises:
        DataError: no row has a token to predict, or a batch has no labels.
    """
    own, shadow, tokens = 0.0, 0.0, 0
    shadowed, was_training = False, model.training
    model.eval()
    for batch in bar(batches, "loss", progress):
        if "labels" not in batch:
            raise DataError(f"a batch has no labels, only {', '.join(batch)}; let the collator make them")
        inputs = {name: _moved(value, model.device) for name, value in batch.items()}
        tokens += int((inputs["labels"][:, 1:] != NO_LOSS).sum())
        own_of_batch, shadow_of_batch = _summed_losses(model, inputs)
        own += own_of_batch
        if shadow_of_batch is not None:
            shadow, shadowed = shadow + shadow_of_batch, True
    model.train(was_training)
    if not tokens:
        raise DataError("no row has a token to predict; rows need an answer or more than one token of text")
    return Losses(tokens, own / tokens, shadow / tokens if shadowed else None)


def by_length(examples: Sequence[Example]) -> list[Example]:
    """Sort examples by length: batches of examples of like length have little padding."""
    return sorted(examples, key=lambda example: len(example["input_ids"]))


def _batches(
    examples: Sequence[Example], collator: Collator, batch_size: int
) -> list[dict[str, torch.Tensor]]:
    ordered = by_length(examples)
    return [collator(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _summed_losses(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[float, float | None]:
    """Return the summed loss of a batch and, for a shadowed model, that of its shadow. No logits are kept."""
    lean = (
        {"skip_logits": True, "num_items_in_batch": torch.ones((), device=model.device)}
        if isinstance(model, ShadowedModel)
        else {}
    )
    out = model(**inputs, **lean, use_cache=False)
    if (
        isinstance(out, ShadowedCausalLMOutput)
        and out.attached_loss is not None
        and out.shadow_loss is not None
    ):
        return out.attached_loss.item(), out.shadow_loss.item()
    targets_BT = inputs["labels"][:, 1:]
    predicted_BT = targets_BT != NO_LOSS
    loss = F.cross_entropy(
        out.logits[:, :-1][predicted_BT].float(), targets_BT[predicted_BT], reduction="sum"
    )
    return loss.item(), None
