"""`shadowpeft eval`: measure on rows of text (`--data`), or on standard tasks (`--lm-eval`)."""

from dataclasses import asdict

from shadowpeft.cli._choice import Dtype, ModelChoice
from shadowpeft.errors import ConfigError


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
    dtype: Dtype = "auto",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measure a base with its adapter, the shadow alone, or the base alone: loss, perplexity and exact match
    on rows of text, or the scores of standard tasks.

    Args:
        model: folder or hub id of the base, or of an exported model; of a multimodal checkpoint its language
            model is taken, which reads text alone.
        data: rows to measure on: a .jsonl or .jsonl.gz file, a data set folder or a hub id.
        lm_eval: in place of data, tasks of lm-evaluation-harness with commas between them,
            such as arc_easy,hellaswag or mmlu_*.
        adapter: folder or hub id of the adapter; without it the base is measured.
        split: split of a data set folder or hub id.
        detached: measure the shadow alone.
        base: measure the base alone.
        batch_size: rows at a time.
        max_length: tokens a row may have before it is cut; by default what the model takes.
        max_new_tokens: tokens of a generated answer; by default one more than the longest answer in the data,
            or what the task says.
        exact_match: generate answers and compare them; false to measure the losses alone.
        limit: with lm_eval, rows of each task; all by default.
        num_fewshot: with lm_eval, examples in each prompt; by default what the task says.
        include_path: with lm_eval, folder with task files (YAML) of your own.
        dtype: type of the weights; auto for the one they are stored in.
        device: auto, cpu, cuda, cuda:1, mps.
        json: print the result as JSON.
    """
    _refuse_idle(
        data,
        lm_eval,
        for_rows={"split": split != "test", "exact_match": not exact_match},
        for_tasks={
            "limit": limit is not None,
            "num_fewshot": num_fewshot is not None,
            "include_path": include_path is not None,
        },
    )
    _refuse_small([batch_size, max_new_tokens, limit], num_fewshot)
    choice = ModelChoice(model, adapter, detached, base=base, dtype=dtype, device=device)
    if data is not None:
        on_rows(
            choice,
            data,
            split,
            batch_size=batch_size,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            exact_match=exact_match,
            json=json,
        )
    if lm_eval is not None:
        on_tasks(
            choice,
            lm_eval,
            include_path,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            json=json,
        )


def on_rows(
    choice: ModelChoice,
    data: str,
    split: str,
    batch_size: int,
    max_length: int | None,
    max_new_tokens: int | None,
    exact_match: bool,
    json: bool,
) -> None:
    """Print loss, perplexity and exact match on rows of text; the arguments are the flags of `run`."""
    from shadowpeft.cli import _models
    from shadowpeft.data.rows import read_rows
    from shadowpeft.evaluation.evaluate import evaluate

    rows = read_rows(data, split)
    model, tokenizer = _models.load(choice)
    measured = evaluate(
        model,
        tokenizer,
        rows,
        batch_size=batch_size,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        exact_match=exact_match,
    )
    _models.print_result(asdict(measured), json)


def on_tasks(
    choice: ModelChoice,
    tasks: str,
    include_path: str | None,
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
    max_length: int | None,
    max_new_tokens: int | None,
    json: bool,
) -> None:
    """Print the metrics of tasks of lm-evaluation-harness.

    `tasks` holds the names given with `--lm-eval`; the other arguments are the flags of `run`.
    """
    from shadowpeft.cli import _models
    from shadowpeft.evaluation import harness

    names = [name for word in tasks.split(",") if (name := word.strip())]
    if not names:
        raise ConfigError("--lm-eval needs the name of a task, such as arc_easy")
    loaded = harness.load_tasks(names, include_path)
    model, tokenizer = _models.load(choice)
    scores = harness.run_harness(
        model,
        tokenizer,
        loaded,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
    )
    if json:
        _models.print_result(scores, as_json=True)
    else:
        print(harness.table(scores))


def _refuse_idle(
    data: str | None, lm_eval: str | None, for_rows: dict[str, bool], for_tasks: dict[str, bool]
) -> None:
    """Refuse `--data` with `--lm-eval`, neither of them, and a flag that has no meaning with the one given.

    Args:
        data: the flag `--data`.
        lm_eval: the flag `--lm-eval`.
        for_rows: for each flag that only `--data` knows, whether it was given.
        for_tasks: the same for `--lm-eval`.
    """
    if data is not None and lm_eval is not None:
        raise ConfigError("give either --data or --lm-eval, got both")
    if data is not None:
        source, others = "--data", for_tasks
    elif lm_eval is not None:
        source, others = "--lm-eval", for_rows
    else:
        raise ConfigError("give either --data or --lm-eval, got neither")
    idle = [name for name, given in others.items() if given]
    if idle:
        raise ConfigError(f"{', '.join(idle)} has no meaning with {source}; leave it out")


def _refuse_small(numbers: list[int | None], num_fewshot: int | None) -> None:
    if any(number is not None and number < 1 for number in numbers) or (num_fewshot or 0) < 0:
        raise ConfigError("batch_size, max_new_tokens and limit must be 1 or more, num_fewshot 0 or more")
