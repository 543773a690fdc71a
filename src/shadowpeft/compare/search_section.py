"""The search in a study's report: every trial with its values, and which of them the final runs use."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from shadowpeft.compare.model_names import short
from shadowpeft.compare.records import Record, number
from shadowpeft.compare.results import Results
from shadowpeft.compare.study import Study
from shadowpeft.reporting.tables import UNKNOWN, plural, table

_SECOND = "second seed"


class _Trial(NamedTuple):
    """What identifies a trial."""

    model: str
    task: str
    method: str
    learning_rate: float
    alpha: float | None
    backbone_learning_rate: float | None
    head_learning_rate: float | None


def search_section(results: Results) -> str:
    """Return the section on the search, finished or not; nothing if the study has no trials."""
    if not results.trials:
        return ""
    trials = _trials(results)
    chosen = {_trial_of(record) for record in results.records if record["stage"] == "final"}
    name, has_second = short(results.models), results.study.finalists > 1
    # Most studies search no rate of the backbone or the head: a column is there only if one does.
    has_backbone = any(trial.backbone_learning_rate is not None for trial in trials)
    has_head = any(trial.head_learning_rate is not None for trial in trials)
    in_order = sorted(
        trials.items(), key=lambda entry: results.place(entry[0].model, entry[0].task, entry[0].method)
    )
    rows = []
    for trial, runs in in_order:
        settings = [f"{trial.learning_rate:g}", _optional(trial.alpha)]
        if has_backbone:
            settings.append(_optional(trial.backbone_learning_rate))
        if has_head:
            settings.append(_optional(trial.head_learning_rate))
        metric = next(iter(runs.values())).get("metric") or UNKNOWN
        values = [_value(runs.get("attached")), _value(runs.get("detached"))]
        if has_second:
            values += [_value(runs.get(_SECOND)), _mean_of_both(runs)]
        mark = _mark(trial, trials) if trial in chosen else ""
        rows.append([name(trial.model), trial.task, trial.method, *settings, metric, *values, mark])
    heads = _heads(has_backbone, has_head=has_head, has_second=has_second)
    return f"## Search\n\n{_note(results.study)}\n\n{table(heads, rows)}"


def _heads(has_backbone: bool, *, has_head: bool, has_second: bool) -> list[str]:
    settings, values = ["learning rate", "alpha"], ["attached", "detached"]
    if has_backbone:
        settings.append("backbone's rate")
    if has_head:
        settings.append("head's rate")
    if has_second:
        values += [_SECOND, "mean of both"]
    return ["model", "task", "method", *settings, "metric", *values, ""]


def _mark(trial: _Trial, trials: Iterable[_Trial]) -> str:
    """Say that a trial was chosen, and whether the best rate may lie beyond those tried."""
    rates = {other.learning_rate for other in trials if other[:3] == trial[:3]}
    if len(rates) > 1 and trial.learning_rate in (min(rates), max(rates)):
        return "chosen, at the edge of the rates tried"
    return "chosen"


def _note(study: Study) -> str:
    note = (
        "On the validation split; `loss` is per answer token, lower is better. "
        "Final runs use what is chosen, by the attached model."
    )
    if study.extensions:
        note += (
            " Where the best rate of one method was at the edge of those tried, every method got one more "
            "trial there: at the edge one step beyond, else between the best rate and the better of its "
            "neighbours, of one rate half, and where all failed a step lower."
        )
    if study.finalists > 1:
        note += (
            f" The best {study.finalists} of each method ran from a second seed, too; "
            "among these the mean of both seeds decides."
        )
    return f"{note} {_rule(study)}"


def _rule(study: Study) -> str:
    width = study.tie_standard_errors
    if not width:
        return "The best value is chosen, of equal ones the earlier trial's."
    return (
        f"Values within {width:g} standard {plural(width, 'error')} of the best (of a share p of n answers, "
        "√(p(1-p)/n); of a loss, 0) count as equal, and of equals the lowest learning rate is chosen, "
        "then the lowest alpha, then the lowest rate of the backbone."
    )


def _trials(results: Results) -> dict[_Trial, dict[str, Record]]:
    """Group the records of the search by trial, and there by mode; those of the second seed are apart."""
    trials: dict[_Trial, dict[str, Record]] = {}
    for record in results.trials:
        if record["task"] == record["trained_on"]:
            is_second = record["seed"] == results.study.search_seed + 1
            run = _SECOND if is_second else record["mode"]
            trials.setdefault(_trial_of(record), {})[run] = record
    return trials


def _trial_of(record: Record) -> _Trial:
    """Return the trial of a record, or the one chosen for it; old records have no rates of parts."""
    return _Trial(
        record["model"],
        record["trained_on"],
        record["method"],
        learning_rate=record["learning_rate"],
        alpha=record.get("alpha"),
        backbone_learning_rate=record.get("backbone_learning_rate"),
        head_learning_rate=record.get("head_learning_rate"),
    )


def _optional(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:g}"


def _value(record: Record | None) -> str:
    if record is None:
        return UNKNOWN
    value = number(record, "value")
    if value is not None:
        return _validation(record["metric"], value)
    if record["status"] == "ok":
        return UNKNOWN
    return record["status"]


def _mean_of_both(runs: Mapping[str, Record]) -> str:
    records = [runs[run] for run in ("attached", _SECOND) if run in runs]
    values = [value for record in records if (value := number(record, "value")) is not None]
    if len(values) < 2:
        return UNKNOWN
    return _validation(records[0]["metric"], sum(values) / 2)


def _validation(metric: str, value: float) -> str:
    if metric == "loss":
        return f"{value:.4f}"
    return f"{100 * value:.2f}"
