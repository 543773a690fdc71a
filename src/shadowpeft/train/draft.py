"""A trained adapter's shadow learns to draft: a head for drafts alone, on the attached model's own answers.

Where a training text goes on otherwise than the attached model would, it teaches drafts that the model would
reject (arXiv 2310.08461). So the texts are the model's own. It does not change while the head learns, so they
are generated once.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.data.encode import NO_LOSS, Example
from shadowpeft.data.packing import Collator
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.errors import UserError
from shadowpeft.evaluation.answers import answer_ids
from shadowpeft.model import ShadowedModel
from shadowpeft.model.draft_loss import Batch, draft_loss, next_tokens
from shadowpeft.train.config import DraftConfig


@dataclass(frozen=True)
class DraftResult:
    """What teaching a shadow to draft came to.

    Attributes:
        answers: how many of the attached model's answers it learnt from.
        tokens: their tokens.
        acceptance_before: share of the tokens of the answers kept for this, each drafted greedily behind the
            tokens before it, that are the attached model's likeliest, without the head.
        acceptance: the same with it.
    """

    answers: int
    tokens: int
    acceptance_before: float
    acceptance: float


def refuse(model: ShadowedModel) -> None:
    """Refuse to teach a shadow that cannot draft, before any work.

    Raises:
        UserError: says why.
    """
    if model.task != "causal-lm":
        raise UserError("a classifier drafts nothing, so its shadow has nothing to learn; leave draft out")
    if not model.new_cache().can_crop_each():
        raise UserError(
            "base or shadow keeps a recurrent state, from which no rejected draft can be taken back: this "
            "shadow cannot draft; leave draft.steps out"
        )


def _refuse_prompts(prompts: Sequence[list[int]]) -> None:
    wanted = "prompts must be two lists of token ids or more, such as tokenizer(text).input_ids"
    if any(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"{wanted}, got texts")
    if len(prompts) < 2:
        raise UserError(f"{wanted}, got {len(prompts)}")


def teach(
    model: ShadowedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    config: DraftConfig,
    seed: int = 0,
    limit: int | None = None,
    progress: bool = True,
) -> DraftResult:
    """Give the active adapter a fresh draft head and train it; nothing else changes by a bit.

    Args:
        model: the shadowed model; left in evaluation mode.
        tokenizer: its tokenizer.
        prompts: token ids, at least two.
        config: the settings.
        seed: decides the head's start, sampled answers and the order of steps.
        limit: tokens that a prompt and its answer may have together; never more than base and shadow take.
        progress: show progress bars, if standard error is a terminal.

    Raises:
        UserError: this shadow cannot draft, or the prompts are too few or are texts.
    """
    refuse(model)
    _refuse_prompts(prompts)
    model.eval()
    torch.manual_seed(seed)
    configs = (model.config, model.adapter.shadow.backbone.config)
    limits = [given for given in (limit, *map(arch.context_of, configs)) if given is not None]
    answers = answer_ids(
        model,
        tokenizer,
        prompts,
        config.max_new_tokens,
        config.answer_batch_size,
        progress=progress,
        limit=min(limits, default=None),
        temperature=config.temperature,
    )
    examples = [
        Example(input_ids=[*prompt, *answer], labels=[NO_LOSS] * len(prompt) + answer)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    # At least one, at most all but one.
    kept = max(1, len(examples) // 10)
    collate = Collator(padding_id(tokenizer))
    measured = [collate(part) for part in _batches(examples[:kept], config.batch_size)]
    examples = examples[kept:]
    before = _acceptance(model, measured)
    head = model.adapter.new_draft_head(config.rank)
    _train(model, examples, collate, config, seed, progress)
    head.requires_grad_(False)
    tokens = sum(label != NO_LOSS for example in examples for label in example["labels"])
    return DraftResult(len(examples), tokens, before, _acceptance(model, measured))


def _train(
    model: ShadowedModel,
    examples: Sequence[Example],
    collate: Collator,
    config: DraftConfig,
    seed: int,
    progress: bool,
) -> None:
    head = model.adapter.draft_head
    assert head is not None
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=config.steps)
    batches = _endless(examples, config.batch_size, seed)
    # With `None`, tqdm shows the bar where standard error is a terminal.
    steps = tqdm(
        range(config.steps), desc="draft", unit="step", disable=None if progress else True, file=sys.stderr
    )
    for _ in steps:
        loss = draft_loss(model, _moved(collate(next(batches)), model), config.loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
        steps.set_postfix({"loss": f"{loss.item():.4g}"})


def _endless(examples: Sequence[Example], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Yield batches of all examples in an order by chance, over and over."""
    order = random.Random(seed)
    while True:
        yield from _batches(order.sample(examples, len(examples)), batch_size)


def _batches(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    return [list(examples[start : start + batch_size]) for start in range(0, len(examples), batch_size)]


def _acceptance(model: ShadowedModel, batches: Sequence[Batch]) -> float:
    """Return the share of labelled tokens whose greedy draft is the attached model's likeliest token."""
    agree = tokens = 0
    for batch in batches:
        labelled_BT = (batch["labels"][:, 1:] != NO_LOSS).to(model.device)
        own_BT, drafted_BT = next_tokens(model, _moved(batch, model))
        agree += int((own_BT == drafted_BT)[:, :-1][labelled_BT].sum())
        tokens += int(labelled_BT.sum())
    return agree / tokens


def _moved(batch: Batch, model: ShadowedModel) -> Batch:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
