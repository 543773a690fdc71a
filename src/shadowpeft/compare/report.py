"""The report of a study, table.md: averages, what is missing, and a section for every cell."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.cell_section import cell_section
from shadowpeft.compare.choice import edges
from shadowpeft.compare.model_names import short
from shadowpeft.compare.records import Record
from shadowpeft.compare.results import Average, Results
from shadowpeft.compare.search_section import search_section
from shadowpeft.compare.study import Study
from shadowpeft.reporting.tables import nats, one_line, percent, plural, points, ratio, table, whole
from shadowpeft.storage import atomic

NAME = "table.md"
_PLOTS = {
    "differences.png": "differences to LoRA",
    "parameters.png": "score over trainable parameters",
    "training_time.png": "score over training time",
    "calibration.png": "calibration of the detached models",
}
_READING = (
    "Scores are percentages; ± is a 95 % interval over training seeds (Student's t). "
    "Differences are to LoRA on the same\n"
    "test items and seeds, in points of items answered correctly. "
    "Their first interval is a paired bootstrap over test items: the models at hand,\n"
    "other items. The second counts other items and other seeds, and is the one to judge a method by; "
    "a single seed gives none. Forgetting is the\n"
    "rise of the loss on held-out text against the untuned base, in nats per token. "
    "Trainable parameters are the adapter's, without\n"
    "classification head."
)
_AVERAGES = (
    "method", "mode", "cells", "score", "LoRA there", "to LoRA", "95 % items", "95 % items and seeds",
    "parameters / LoRA's", "forgetting", "to LoRA's",
)  # fmt: skip
_WITHOUT = ("without", "method", "mode", "cells", "to LoRA", "95 % items", "95 % items and seeds")
_SCALING = (
    "model", "task", "method", "mode", "rank", "trainable", "seeds", "score", "to LoRA", "95 % items",
    "95 % items and seeds", "forgetting",
)  # fmt: skip


def report(
    study: Study, records: Iterable[Record], folder: str | Path, expected: Sequence[Cell] | None = None
) -> Path:
    """Write table.md of a study, finished or not, and link the plots that are in the folder.

    Args:
        study: the study.
        records: its records so far.
        folder: where to write.
        expected: the cells of the whole study; those without a record are listed as missing.

    Returns:
        The file.

    Raises:
        DataError: records that should be comparable are of different items.
        CheckpointError: the file cannot be written.
    """
    results, folder = Results(study, records, expected), Path(folder)
    parts = [_head(results), _summary(results), _without_a_task(results), _missing(results)]
    parts += [cell_section(results, model, task) for model in results.models for task in results.tasks]
    parts += [_scaling(results), search_section(results), _plots(folder)]
    content = "\n\n".join(part for part in parts if part) + "\n"
    atomic.write_together(folder, {NAME: atomic.text(content)})
    return folder / NAME


def _plots(folder: Path) -> str:
    plots = [f"![{title}]({name})" for name, title in _PLOTS.items() if (folder / name).exists()]
    if not plots:
        return ""
    return "\n\n".join(["## Plots", *plots])


def _head(results: Results) -> str:
    study, name = results.study, short(results.models)
    facts = [
        _at_edge(results),
        f"Models: {', '.join(map(name, results.models))}. Tasks: {', '.join(results.tasks)}.",
        f"Every run: {study.steps:,} steps of {study.batch_size} rows; final runs from {study.seeds} "
        f"{plural(study.seeds, 'seed')}; {study.trials} {plural(study.trials, 'setting')} of each method "
        f"tried on the validation split{_extended(study)}{_second_seed(study)}.",
        _left_out(study),
        _made_with(results.records),
    ]
    if not any(result.method == "lora" for result in results.final):
        facts.append("**There are no finished runs of LoRA, so no differences can be given.**")
    return "\n\n".join([f"# Study {study.name}", *filter(None, facts), _READING])


def _at_edge(results: Results) -> str:
    """Name the searches whose best rate may lie beyond those tried; nothing if there are none."""
    found, name = edges(results.study, results.records), short(results.models)
    if not found:
        return ""
    named = "; ".join(
        f"{at.method} on {name(at.model)}, {at.task} ({at.learning_rate:g}, the {at.side})" for at in found
    )
    return (
        f"**Searches whose best learning rate is at the edge of those tried, so it may lie beyond: {named}.**"
    )


def _extended(study: Study) -> str:
    if not study.extensions:
        return ""
    return f", and up to {study.extensions} more where the best rate of one method was at the edge"


def _second_seed(study: Study) -> str:
    if study.finalists == 1:
        return ""
    return f", the best {study.finalists} again from a second seed and chosen among by the mean of both"


def _made_with(records: Sequence[Record]) -> str:
    """Name the devices, commits and versions that the records were made with."""
    facts = []
    for field in ("device", "commit"):
        found = sorted({str(record[field]) for record in records if record.get(field)})
        if found:
            facts.append(f"{field} {', '.join(found)}")
    pairs = (pair for record in records for pair in (record.get("versions") or {}).items())
    versions = sorted({f"{library} {version}" for library, version in pairs})
    if versions:
        facts.append(", ".join(versions))
    if not facts:
        return ""
    return f"Made with {'; '.join(facts)}."


def _left_out(study: Study) -> str:
    """Say which test rows are left out, for each task if tasks differ in it; nothing if none are."""
    tasks: dict[tuple[int, ...], list[str]] = {}
    for task in study.tested:
        tasks.setdefault(study.skips_of(task), []).append(task)
    if len(tasks) > 1:
        return " ".join(
            _drawn(skips, f"The test rows of {', '.join(names)}") for skips, names in tasks.items()
        )
    return "".join(_drawn(skips, "The test rows") for skips in tasks if skips)


def _drawn(skips: Sequence[int], rows: str) -> str:
    if not skips:
        return f"{rows} are drawn from all there are."
    counts = ", then ".join(f"{skip:,}" for skip in skips)
    if len(skips) == 1:
        return f"{rows} are others than those that a study of {counts} test rows reads."
    return (
        f"{rows} are others than those that studies of {counts} test rows read, "
        "each from what the ones before left."
    )


def _summary(results: Results) -> str:
    averages = results.averages()
    if not averages:
        return "## Averages\n\nThere are no final results yet."
    planned = len(results.models) * len(results.tasks)
    note = (
        f"At rank {results.rank}; every cell (a model and a task) counts the same. Each line is over the "
        'cells and seeds that the method and LoRA both have; "LoRA there" is LoRA\'s score on those.'
    )
    if lost := results.lost():
        note += (
            f"\n\n**Final runs that failed and are in no average: {len(lost)}. "
            "One that diverged counts against its method: see below.**"
        )
    averaged = table(_AVERAGES, [_average(average, planned) for average in averages])
    return f"## Averages over tasks and models\n\n{note}\n\n{averaged}"


def _without_a_task(results: Results) -> str:
    """Say what is left of each difference without one task, which may have made it."""
    if len(results.tasks) < 3:
        return ""
    rows = [
        [task, average.method, average.mode, str(len(average.results)), *points(average.difference)]
        for task in results.tasks
        for average in results.averages(without=task)
        if average.difference
    ]
    if not rows:
        return ""
    return f"## Differences without one task\n\n{table(_WITHOUT, rows)}"


def _average(average: Average, planned: int) -> list[str]:
    return [
        average.method,
        average.mode,
        f"{len(average.results)} of {planned}",
        percent(average.value),
        percent(average.reference),
        *points(average.difference),
        ratio(average.size_ratio),
        nats(average.forgetting),
        nats(average.forgetting_difference),
    ]


def _missing(results: Results) -> str:
    missing = results.missing()
    if not missing:
        return "## Missing cells\n\nNone."
    lines = [f"- `{cell}`: {one_line(why)}" for cell, why in missing]
    return "\n".join([f"## Missing cells\n\n{len(missing)} without a result:\n", *lines])


def _scaling(results: Results) -> str:
    if len(results.ranks) < 2:
        return ""
    name = short(results.models)
    rows = [
        [
            name(result.model),
            result.task,
            result.method,
            result.mode,
            str(result.rank),
            whole(result.mean("trainable")),
            str(len(result.records)),
            percent(result.estimate("value")),
            *points(results.difference(result)),
            nats(result.estimate("forgetting")),
        ]
        for result in results.select()
        if result.rank in results.ranks and result.method not in ("base", "full")
    ]
    note = "The rank is LoRA's; every method has the trainable parameters of that LoRA."
    return f"## Scaling\n\n{note}\n\n{table(_SCALING, rows)}"
