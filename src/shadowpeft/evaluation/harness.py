"""Standard tasks of EleutherAI's lm-evaluation-harness, which asks our models and scores their answers."""

import contextlib
import copy
import difflib
import importlib.util
import io
import logging
import numbers
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.data.encode import context_length
from shadowpeft.data.tokenizers import stop_ids
from shadowpeft.errors import ConfigError, DataError, UserError
from shadowpeft.reporting.provenance import version_of

# Names of tasks that a message suggests.
_SUGGESTIONS = 3


def load_tasks(
    names: Sequence[str], include_path: str | Path | None = None, progress: bool = True
) -> list[Any]:
    """Find tasks and groups of the harness by name or pattern (`mmlu_*`), and read their data.

    Args:
        names: the tasks.
        include_path: folder with further task files (YAML), which take precedence over the harness's own.
        progress: show progress bars, if standard error is a terminal.

    Returns:
        The harness's own task and group objects, for `run_harness`.

    Raises:
        UserError: the harness is not installed.
        ConfigError: there is no such task, or no such folder.
        DataError: the data of a task cannot be read or reached.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("standard tasks need lm-evaluation-harness; pip install 'shadowpeft[lm-eval]'")
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(
            f"there is no folder {include_path}; include_path must be a folder with task files (YAML) of the "
            "harness"
        )
    include_path = None if include_path is None else str(include_path)
    import yaml
    from datasets.exceptions import DatasetsError

    with _hushed(progress):
        manager, found = _find(names, include_path)
        try:
            loaded = manager.load(found)
        except (OSError, ValueError, KeyError, ImportError, DatasetsError, yaml.YAMLError) as error:
            raise DataError(
                f"the data or the definition of the tasks {', '.join(names)} cannot be loaded: {error}"
            ) from error
    # A task or group that belongs to a loaded group is reached through it.
    within = {task.task_name for group in loaded["groups"].values() for task in group.get_all_tasks()}
    within |= {inner.name for group in loaded["groups"].values() for inner in group.get_all_groups()}
    return [
        entry for kind in ("groups", "tasks") for name, entry in loaded[kind].items() if name not in within
    ]


def run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Any],
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a shadowed model, a bare base or a detached model on tasks of the harness.

    The harness sets the seeds of the random generators.

    Args:
        model: any causal language model; left in the mode (training or not) it was in.
        tokenizer: its tokenizer.
        tasks: what `load_tasks` returned.
        limit: rows of each task; all by default.
        num_fewshot: examples in each prompt; by default the task's own number. Tasks whose number is 0 keep
            it.
        batch_size: rows at a time.
        max_length: tokens of an input; by default the model's limit. A longer input loses its beginning, with
            a warning.
        max_new_tokens: tokens of a generated answer; by default the task's own number.
        progress: show progress bars, if standard error is a terminal.

    Returns:
        `tasks`: by name of a task or group its `metrics`, their `stderr` (`None` if the harness has none),
        `rows`, `version` and `num_fewshot`; and the `versions` of the libraries.

    Raises:
        ConfigError: a setting is out of range, or a task does not fit the model.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if batch_size < 1 or (limit is not None and limit < 1) or (num_fewshot is not None and num_fewshot < 0):
        raise ConfigError(
            f"batch_size and limit must be 1 or more, num_fewshot 0 or more; got {batch_size}, {limit}, "
            f"{num_fewshot}"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the harness needs a tokenizer with an end token (eos_token), and this one has none"
        )
    room = context_length(arch.context_of(model.config), tokenizer, max_length)
    leaves = _leaves(tasks)
    with _as_measured(model, tokenizer), _as_given(leaves), _hushed(progress) as cut:
        # The harness gives the tokenizer a padding token, so it gets a copy. Its log-likelihoods are in
        # float32, as many would tie once rounded to bfloat16.
        wrapped = HFLM(
            model,
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),
            max_length=room,
            batch_size=batch_size,
            softmax_dtype="float32",
        )
        _refuse_unfit(leaves, room, max_new_tokens, wrapped.max_gen_toks)
        generation = None if max_new_tokens is None else {"max_gen_toks": max_new_tokens}
        found = simple_evaluate(
            wrapped,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            gen_kwargs=generation,
            log_samples=False,
            # Else it reads thousands of task files, though the tasks are already here.
            task_manager=TaskManager(include_defaults=False),
        )
    if cut:
        warnings.warn(
            f"inputs were longer than {room} tokens and lost their beginning; the harness said: {cut[0]}",
            stacklevel=2,
        )
    names = ("lm_eval", "transformers", "torch", "datasets")
    return {"tasks": _plain(found), "versions": {name: version_of(name) for name in names}}


def table(result: dict[str, Any]) -> str:
    """Return the result of `run_harness` as a table of aligned lines, one for each metric."""
    lines = [["task", "rows", "examples", "metric", "value", "standard error"]]
    for name, task in result["tasks"].items():
        counts = [str(task["rows"]), _shown(task["num_fewshot"])]
        for metric, value in task["metrics"].items():
            numbers = [_shown(value, ".4f"), _shown(task["stderr"][metric], ".4f")]
            lines.append([name, *counts, metric, *numbers])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in lines
    )


def _shown(number: float | None, form: str = "") -> str:
    return "-" if number is None else format(number, form)


def _find(names: Sequence[str], include_path: str | None) -> tuple[Any, list[str]]:
    """Return the harness's task manager and the names that the given ones stand for."""
    from lm_eval.tasks import TaskManager

    # First without the harness's own thousands of task files, which take seconds to read.
    if include_path is not None:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= set(manager.all_subtasks):
            return manager, list(dict.fromkeys(names))
    manager = TaskManager(include_path=include_path)
    found: list[str] = []
    for name in names:
        matching = manager.match_tasks([name])
        if not matching:
            message = f"the harness has no task {name!r}"
            if include_path is not None:
                message += f", and none in a readable task file of {include_path}"
            near = difflib.get_close_matches(name, manager.all_tasks, _SUGGESTIONS)
            if near:
                message += f"; near it are: {', '.join(near)}"
            raise ConfigError(message)
        found += matching
    return manager, list(dict.fromkeys(found))


def _leaves(tasks: Sequence[Any]) -> list[Any]:
    """Return the single tasks, those of groups included."""
    from lm_eval.api.group import Group

    leaves = []
    for entry in tasks:
        if isinstance(entry, Group):
            leaves += entry.get_all_tasks()
        else:
            leaves.append(entry)
    return leaves


def _refuse_unfit(tasks: Sequence[Any], room: int, asked: int | None, default: int) -> None:
    """Raise for a task that runs generated code, needs more than text, or leaves no room for a prompt.

    Args:
        tasks: single tasks.
        room: tokens of prompt and answer together.
        asked: tokens of an answer that the user asked for.
        default: tokens of an answer if neither the user nor the task says.

    Raises:
        ConfigError: the message names the task.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    for task in tasks:
        if task.config.unsafe_code:
            raise ConfigError(
                f"task {task.task_name} runs the code that a model writes, which is not done here; leave it "
                "out"
            )
        if task.config.doc_to_image is not None or task.config.doc_to_audio is not None:
            raise ConfigError(
                f"task {task.task_name} shows pictures or plays sounds, which a language model does not "
                "take; leave it out"
            )
        if task.OUTPUT_TYPE == "generate_until":
            settings = task.config.generation_kwargs or {}
            tokens = asked or normalize_gen_kwargs(settings, default)["max_gen_toks"]
            if tokens >= room:
                raise ConfigError(
                    f"task {task.task_name} generates up to {tokens} tokens, which leaves no room for a "
                    f"prompt within {room}; set a smaller max_new_tokens"
                )


def _plain(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Reduce the harness's results to numbers.

    The harness names a metric with its filter: `acc,none` becomes `acc`; any other filter stays in the name.
    """
    tasks = {}
    for name, entry in found["results"].items():
        values = {key.replace(",none", ""): value for key, value in entry.items() if "," in key}
        metrics = {key: _number(value) for key, value in values.items() if "_stderr" not in key}
        errors = {
            key.replace("_stderr", ""): _number(value) for key, value in values.items() if "_stderr" in key
        }
        tasks[name] = {
            "metrics": metrics,
            "stderr": {metric: errors.get(metric) for metric in metrics},
            "rows": entry["sample_len"],
            "version": found["versions"].get(name),
            "num_fewshot": found["n-shot"].get(name),
        }
    return tasks


def _number(value: Any) -> float | None:
    if isinstance(value, numbers.Real):
        return float(value)
    return None


@contextlib.contextmanager
def _as_measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Set the model's generation as the measurement needs it, and restore it and the mode afterwards.

    Answers end where training taught them to. Their length is the task's, over which the model's own would
    win.
    """
    training, generation = model.training, model.generation_config
    model.generation_config = copy.deepcopy(generation)
    model.generation_config.update(eos_token_id=stop_ids(model, tokenizer), max_new_tokens=None)
    try:
        yield
    finally:
        model.generation_config = generation
        model.train(training)


@contextlib.contextmanager
def _as_given(tasks: Sequence[Any]) -> Iterator[None]:
    """Undo the harness's changes to the settings of tasks, which would hold for the next run."""
    given = [
        (task.config, task.config.num_fewshot, copy.deepcopy(task.config.generation_kwargs)) for task in tasks
    ]
    try:
        yield
    finally:
        for config, examples, generation in given:
            config.num_fewshot, config.generation_kwargs = examples, generation


class _CutInputs(logging.Handler):
    """A handler that keeps the harness's messages on inputs that it cuts."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # "Left truncation applied", "Truncating ... tokens" and the like.
        if "runcat" in message:
            self.said.append(message)


@contextlib.contextmanager
def _hushed(progress: bool) -> Iterator[list[str]]:
    """Hide the harness's log and, unless wanted, its progress bars; yield its messages on cut inputs."""
    logger, heard = logging.getLogger("lm_eval"), _CutInputs()
    propagated = logger.propagate
    logger.addHandler(heard)
    logger.propagate = False
    # Standard output is kept for results, whatever the harness prints there.
    screen: TextIO = io.StringIO()
    if progress and sys.stderr.isatty():
        screen = sys.stderr
    try:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            yield heard.said
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagated
