"""How long one answer takes, the models taking turns."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from shadowpeft.data.rows import Row

TOKENS = 4


@torch.inference_mode()
def time_answers(
    models: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    progress: Callable[[int, int], object],
) -> dict[str, list[float]]:
    """Time greedy generation of one answer at a time, in milliseconds.

    Every model makes the same number of tokens, so that a model of long answers is not called slow. The
    models take turns, so that a machine that becomes slower slows them all.

    Args:
        models: what answers, by name; `base` is among them.
        tokenizer: their tokenizer.
        rows: the rows whose prompts are answered.
        progress: called with the number of rows answered and the number of all.

    Returns:
        by model, one time for each row.
    """
    taken: dict[str, list[float]] = {name: [] for name in models}
    # The first row is answered twice: its first answers only warm up.
    for number, row in enumerate([rows[0], *rows]):
        inputs = tokenizer(row.fields["prompt"], return_tensors="pt").to(models["base"].device)
        for name, model in models.items():
            start = time.perf_counter()
            model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
            taken[name].append(1000 * (time.perf_counter() - start))
        progress(number, len(rows))
    return {name: times[1:] for name, times in taken.items()}


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie."""
    return sorted(values)[round(share * (len(values) - 1))]
