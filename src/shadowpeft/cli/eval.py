"""`shadowpeft eval`."""

from dataclasses import asdict
from typing import Literal


def run(
    model: str,
    data: str,
    adapter: str | None = None,
    split: str = "test",
    detached: bool = False,
    base: bool = False,
    batch_size: int = 8,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    exact_match: bool = True,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measure loss, perplexity and exact match of a base and its adapter, of the shadow alone, or of the base alone.

    Args:
        model: folder or hub id of the base, or of an exported model.
        data: rows to measure on: a .jsonl or .jsonl.gz file, a data set folder or a hub id.
        adapter: folder of the adapter; without it the base is measured.
        split: split of a data set folder or hub id.
        detached: measure the shadow alone.
        base: measure the base alone.
        batch_size: rows at a time.
        max_length: tokens a row may have before it is cut; by default what the model takes.
        max_new_tokens: tokens of a generated answer; by default one more than the longest answer in the data.
        exact_match: generate answers and compare them; false to measure the losses alone.
        dtype: type of the weights; auto for the one they are stored in.
        device: auto, cpu, cuda, cuda:1, mps.
        json: print the result as JSON.
    """
    from shadowpeft.cli import _models
    from shadowpeft.errors import ConfigError
    from shadowpeft.evaluate import evaluate
    from shadowpeft.rows import read_rows

    if batch_size < 1 or (max_new_tokens is not None and max_new_tokens < 1):
        raise ConfigError("batch_size and max_new_tokens must be 1 or more")
    rows = read_rows(data, split)
    loaded, tokenizer = _models.load(model, adapter, detached, base, dtype, device)
    result = evaluate(loaded, tokenizer, rows, batch_size, max_length, max_new_tokens, exact_match)
    _models.print_result(asdict(result), json)
