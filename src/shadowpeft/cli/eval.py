"""`shadowpeft eval`."""

from dataclasses import asdict
from typing import Literal


def run(
    model: str,
    data: str | None = None,
    lm_eval: str | None = None,
    adapter: str | None = None,
    split: str = "test",
    detached: bool = False,
    base: bool = False,
    batch_size: int = 8,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    exact_match: bool = True,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measure a base and its adapter, the shadow alone, or the base alone: loss, perplexity and exact match on rows, or standard tasks.

    Args:
        model: folder or hub id of the base, or of an exported model.
        data: rows to measure on: a .jsonl or .jsonl.gz file, a data set folder or a hub id.
        lm_eval: in place of data, tasks of lm-evaluation-harness with commas between them, such as arc_easy,hellaswag or mmlu_*.
        adapter: folder of the adapter; without it the base is measured.
        split: split of a data set folder or hub id.
        detached: measure the shadow alone.
        base: measure the base alone.
        batch_size: rows at a time.
        max_length: tokens a row may have before it is cut; by default what the model takes.
        max_new_tokens: tokens of a generated answer; by default one more than the longest answer in the data, or what the task says.
        exact_match: generate answers and compare them; false to measure the losses alone.
        limit: with lm_eval, rows of each task; all by default.
        num_fewshot: with lm_eval, examples in each prompt; by default what the task says.
        include_path: with lm_eval, folder with task files (YAML) of your own.
        dtype: type of the weights; auto for the one they are stored in.
        device: auto, cpu, cuda, cuda:1, mps.
        json: print the result as JSON.
    """
    from shadowpeft.cli import _models
    from shadowpeft.data.rows import read_rows
    from shadowpeft.errors import ConfigError
    from shadowpeft.evaluation import harness
    from shadowpeft.evaluation.evaluate import evaluate

    if (data is None) == (lm_eval is None):
        raise ConfigError(f"give either --data or --lm-eval, got {'neither' if data is None else 'both'}")
    for_rows = {"split": split != "test", "exact_match": not exact_match}
    for_tasks = {
        "limit": limit is not None,
        "num_fewshot": num_fewshot is not None,
        "include_path": include_path is not None,
    }
    idle = [name for name, given in (for_tasks if lm_eval is None else for_rows).items() if given]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} has no meaning with {'--data' if lm_eval is None else '--lm-eval'}; leave it out"
        )
    if (
        any(number is not None and number < 1 for number in (batch_size, max_new_tokens, limit))
        or (num_fewshot or 0) < 0
    ):
        raise ConfigError("batch_size, max_new_tokens and limit must be 1 or more, num_fewshot 0 or more")
    if lm_eval is None:
        assert data is not None
        rows = read_rows(data, split)
        loaded, tokenizer = _models.load(model, adapter, detached, base, dtype, device)
        result = evaluate(loaded, tokenizer, rows, batch_size, max_length, max_new_tokens, exact_match)
        _models.print_result(asdict(result), json)
        return
    names = [name for word in lm_eval.split(",") if (name := word.strip())]
    if not names:
        raise ConfigError("--lm-eval needs the name of a task, such as arc_easy")
    tasks = harness.load_tasks(names, include_path)
    loaded, tokenizer = _models.load(model, adapter, detached, base, dtype, device)
    scores = harness.run_harness(
        loaded, tokenizer, tasks, limit, num_fewshot, batch_size, max_length, max_new_tokens
    )
    if json:
        _models.print_result(scores, as_json=True)
    else:
        print(harness.table(scores))
