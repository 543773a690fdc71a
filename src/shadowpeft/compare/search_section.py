"""The search in a study's report: every trial with its values, and which of them the final runs use."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from shadowpeft.compare.results import Results, Row, read, short
from shadowpeft.compare.study import Study
from shadowpeft.reporting.tables import table

_SECOND = "second seed"


class _Trial(NamedTuple):
    """What a trial is told by."""

    model: str
    task: str
    method: str
    learning_rate: float
    alpha: float | None
    backbone_learning_rate: float | None


def search_section(results: Results) -> str:
    """Tell of the search, finished or not; of a study without trials nothing."""
    if not results.trials:
        return ""
    trials = _trials(results)
    chosen = {_trial_of(row) for row in results.rows if row["stage"] == "final"}
    name, twice = short(results.models), results.study.finalists > 1
    apart = any(
        trial.backbone_learning_rate is not None for trial in trials
    )  # as most studies have none, it gets a column where it is
    lines = []
    for trial, runs in sorted(
        trials.items(), key=lambda pair: results.place(pair[0].model, pair[0].task, pair[0].method)
    ):
        settings = [
            f"{trial.learning_rate:g}",
            _optional(trial.alpha),
            *[_optional(trial.backbone_learning_rate)] * apart,
        ]
        metric = next(iter(runs.values())).get("metric") or "-"
        values = [_value(runs.get(run)) for run in ("attached", "detached", *[_SECOND] * twice)]
        values += [_mean_of_both(runs)] * twice
        mark = (
            ""
            if trial not in chosen
            else "chosen, at the edge of the rates tried"
            if _at_edge(trial, trials)
            else "chosen"
        )
        lines.append([name(trial.model), trial.task, trial.method, *settings, metric, *values, mark])
    settings, seconds = (
        ["learning rate", "alpha", *["backbone's rate"] * apart],
        [_SECOND, "mean of both"] * twice,
    )
    heads = ["model", "task", "method", *settings, "metric", "attached", "detached", *seconds, ""]
    return f"## Search\n\n{_note(results.study)}\n\n{table(heads, lines)}"


def _note(study: Study) -> str:
    note = "On the validation split; `loss` is per answer token, lower is better. Final runs use what is chosen, by the attached model."
    if study.finalists > 1:
        note += f" The best {study.finalists} of each method ran from a second seed, too; among these the mean of both seeds decides."
    return f"{note} {_rule(study)}"


def _rule(study: Study) -> str:
    width = study.tie_standard_errors
    if not width:
        return "The best value is chosen, of equal ones the earlier trial's."
    return (
        f"Values within {width:g} standard error{'s' * (width != 1)} of the best (of a share p of n answers, √(p(1-p)/n); of a loss, 0) "
        "count as equal, and of equals the lowest learning rate is chosen, then the lowest alpha, then the lowest rate of the backbone."
    )


def _trials(results: Results) -> dict[_Trial, dict[str, Row]]:
    """Put the rows of the search in order: by trial, and there by mode; the second seed's is apart."""
    trials: dict[_Trial, dict[str, Row]] = {}
    for row in results.trials:
        if row["task"] == row["trained_on"]:
            is_second = row["seed"] == results.study.search_seed + 1
            trials.setdefault(_trial_of(row), {})[_SECOND if is_second else row["mode"]] = row
    return trials


def _trial_of(row: Row) -> _Trial:
    """Tell the trial that a row is of, or that was chosen for it; rows from before there was a rate of the backbone do not have it."""
    place = row["model"], row["trained_on"], row["method"]
    return _Trial(*place, row["learning_rate"], row.get("alpha"), row.get("backbone_learning_rate"))


def _at_edge(trial: _Trial, trials: Iterable[_Trial]) -> bool:
    rates = {other.learning_rate for other in trials if other[:3] == trial[:3]}
    return len(rates) > 1 and trial.learning_rate in (min(rates), max(rates))


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _value(row: Row | None) -> str:
    if row is None:
        return "-"
    value = read(row, "value")
    if value is None:
        return row["status"] if row["status"] != "ok" else "-"
    return _validation(row["metric"], value)


def _mean_of_both(runs: Mapping[str, Row]) -> str:
    rows = [runs[run] for run in ("attached", _SECOND) if run in runs]
    values = [value for row in rows if (value := read(row, "value")) is not None]
    return _validation(rows[0]["metric"], sum(values) / 2) if len(values) == 2 else "-"


def _validation(metric: str, value: float) -> str:
    return f"{value:.4f}" if metric == "loss" else f"{100 * value:.2f}"
