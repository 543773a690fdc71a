"""The report of a study says what the records say, finished or not."""

import json
import re

import numpy as np
import pytest
from helpers.study_records import MODELS, record, study, study_records, table_of

from shadowpeft.compare import plots
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.report import report
from shadowpeft.compare.results import Results
from shadowpeft.compare.summary import summary, terminal
from shadowpeft.errors import DataError


def test_items_in_another_order_are_refused(tmp_path):
    """Catches a paired comparison of item 1 with item 7."""
    rows = study_records(methods=("lora", "shadow"))
    for each in rows:
        each["items_digest"] = "one order" if each["method"] == "lora" else "another"
    with pytest.raises(
        DataError,
        match="shadow and lora, org/gemma-270m on clinc150: expected the same items in the same order",
    ):
        report(study(tmp_path), rows, tmp_path)


def test_the_report_says_what_the_rows_say(tmp_path):
    """Catches a figure in the wrong column, line or unit."""
    plan = study(tmp_path)
    rows = study_records()
    rows[0]["metrics"]["nll"] = 2.5
    rows.append(record(MODELS[0], "mawps", "lora", trained_on="gsm8k", correct="1" * 30 + "0" * 70))
    rows.append(record(MODELS[0], "mawps", "shadow", trained_on="gsm8k", correct="1" * 40 + "0" * 60))
    text = report(plan, rows, tmp_path).read_text(encoding="utf-8")
    table = table_of(text, "gemma-270m: clinc150")
    lines = {(line[0], line[1]): dict(zip(table[0], line, strict=True)) for line in table[2:]}
    assert list(lines) == [
        ("base", "attached"),
        ("lora", "attached"),
        ("shadow", "attached"),
        ("shadow", "detached"),
    ]

    mine = [
        each
        for each in rows
        if (each["model"], each["task"], each["method"], each["mode"])
        == (MODELS[0], "clinc150", "shadow", "attached")
    ]
    theirs = [
        each
        for each in rows
        if (each["model"], each["task"], each["method"]) == (MODELS[0], "clinc150", "lora")
    ]
    values = [100 * each["value"] for each in mine]
    found = lines["shadow", "attached"]
    assert found["score"] == f"{np.mean(values):.1f} ± {4.30265 * np.std(values, ddof=1) / 3**0.5:.1f}"
    gap = np.mean(values) - np.mean([100 * each["value"] for each in theirs])
    assert found["to LoRA"] == f"{gap:+.2f}"
    low, high = (float(end) for end in found["95 % items"].split(" to "))
    assert low < gap < high
    assert (found["trainable"], found["/ LoRA's"]) == ("16,000", "1.000")
    assert float(found["ECE"].split(" ± ")[0]) == pytest.approx(
        100 * np.mean([each["calibration"]["ece"] for each in mine]), abs=0.06
    )
    assert lines["lora", "attached"]["to LoRA"] == "-"
    assert "| mawps | shadow | attached | accuracy | 100 | 40.0 | +10.00 | " in text
    assert "| nll | 2.500 | - | - | - |" in text
    assert "accuracy on 300 test items, 3 seeds, rank 16." in text
    assert "## Missing cells\n\nNone." in text
    average = table_of(text, "Averages over tasks and models")[4]
    assert average[:3] == ["shadow", "attached", "4 of 4"]


def test_runs_that_failed_are_told_beside_the_averages(tmp_path):
    """Catches a method that gains by diverging: its failed runs vanish from its average without a word."""
    rows = study_records()
    lost = next(each for each in rows if each["method"] == "lora")
    lost |= {"status": "crashed", "error": "training diverged", "value": None, "correct": None}
    assert "**Final runs that failed and are in no average: 1." in report(
        study(tmp_path), rows, tmp_path
    ).read_text(encoding="utf-8")
    assert "in no average" not in report(study(tmp_path), study_records(), tmp_path).read_text(
        encoding="utf-8"
    )


def test_missing_and_failed_cells_are_named(tmp_path):
    """Catches a table that looks complete without being so, and a failure that a later run made good."""
    rows = study_records()
    lost = next(each for each in rows if each["method"] == "lora" and each["seed"] == 1)
    rows = [each for each in rows if each["key"] != lost["key"]]
    rows.append(
        lost
        | {
            "status": "out-of-memory",
            "error": "CUDA | out\nof memory",
            "value": None,
            "correct": None,
            "metrics": {},
        }
    )
    cured = rows[0] | {"status": "crashed", "error": "disk", "value": None}
    wanted = Cell("cost", MODELS[0], "clinc150", "shadow", 16, 0, 1e-3, 0.3)
    text = report(
        study(tmp_path),
        [cured, *rows],
        tmp_path,
        expected=[
            wanted,
            Cell("final", *(lost[k] for k in ("model", "task", "method", "rank", "seed")), 1e-3),
        ],
    ).read_text(encoding="utf-8")
    assert "2 without a result" in text
    assert f"- `{lost['key']}`: out-of-memory: CUDA | out of memory\n" in text
    assert f"- `{wanted.key}`: not run" in text
    assert "crashed" not in text


def test_no_lora_is_said(tmp_path):
    """Catches a difference to nothing."""
    text = report(
        study(tmp_path, methods="base,shadow"), study_records(methods=("base", "shadow")), tmp_path
    ).read_text(encoding="utf-8")
    assert "no finished runs of LoRA" in text
    assert not re.search(r"[+-]\d+\.\d\d to ", text)


@pytest.mark.parametrize("count", [0, 1, 4, 10, 20])
def test_any_part_of_a_study_makes_a_report(tmp_path, count):
    """Catches a report that falls over an interrupted study."""
    random = np.random.default_rng(count)
    rows = study_records(ranks=(16, 4))
    rows.append(
        rows[0]
        | {
            "stage": "search",
            "status": "crashed",
            "error": "x",
            "value": None,
            "metric": None,
            "metrics": None,
            "key": "other",
        }
    )
    rows = [rows[number] for number in random.permutation(len(rows))[:count]]
    plan = study(tmp_path, ranks="16,4")
    drawn = plots.draw(plan, rows, tmp_path)
    text = report(plan, rows, tmp_path).read_text(encoding="utf-8")
    assert all(f"]({path.name})" in text for path in drawn)
    assert json.loads(json.dumps(summary(plan, rows), allow_nan=False))["missing"]
    assert terminal(summary(plan, rows)).splitlines()[-1].endswith("without a result")


def test_numbers_that_are_none_leave_a_dash(tmp_path):
    """Catches `nan` in the table, and a diverged seed that spoils the mean of the others."""
    rows = study_records(methods=("lora", "shadow"))
    for each in rows:
        each |= {"peak_gb": None, "forgetting": float("nan")}
    rows[0] |= {"value": float("nan")}
    text = report(study(tmp_path), rows, tmp_path).read_text(encoding="utf-8")
    assert "nan" not in text.lower().replace("shenan", "")
    assert "None |" not in text
    values = [each["value"] for each in rows[1:3]]
    assert table_of(text, "gemma-270m: clinc150")[2][3].startswith(f"{100 * np.mean(values):.1f} ±")


def test_skipped_test_rows_are_told(tmp_path):
    """Catches a table that does not say that its test rows are not those of the study before."""
    said = "The test rows are others than those that a study of 1,000 test rows reads."
    assert said in report(study(tmp_path, test_skip=1000), study_records(), tmp_path).read_text(
        encoding="utf-8"
    )
    said = (
        "The test rows are others than those that studies of 1,000, then 500 test rows read, each from "
        "what the ones before left."
    )
    assert said in report(study(tmp_path, test_skip=[1000, 500]), study_records(), tmp_path).read_text(
        encoding="utf-8"
    )
    assert "The test rows are others" not in report(study(tmp_path), study_records(), tmp_path).read_text(
        encoding="utf-8"
    )


def test_test_rows_that_only_some_tasks_skip_are_told_by_task(tmp_path):
    """Catches a table that says of all tasks what holds for one, or that passes over a task whose rows may
    have been read before."""
    plan = study(tmp_path, test_skip={"gsm8k": [1000, 500], "mawps": [1000, 500]})
    text = report(plan, study_records(), tmp_path).read_text(encoding="utf-8")
    assert (
        "\n\nThe test rows of clinc150 are drawn from all there are. The test rows of gsm8k, mawps are "
        "others than those that studies of "
        "1,000, then 500 test rows read, each from what the ones before left.\n\n"
    ) in text
    alike = study(tmp_path, test_skip={"gsm8k": 1000, "mawps": 1000, "clinc150": 1000})
    said = "\n\nThe test rows are others than those that a study of 1,000 test rows reads.\n\n"
    assert said in report(alike, study_records(), tmp_path).read_text(encoding="utf-8")


def test_several_ranks_make_a_scaling_table_and_a_picture(tmp_path):
    """Catches ranks mixed up in one line."""
    plan = study(tmp_path, ranks="16,4,64")
    rows = study_records(ranks=(16, 4, 64))
    table = table_of(report(plan, rows, tmp_path).read_text(encoding="utf-8"), "Scaling")
    assert [line[4] for line in table[2:5]] == ["4", "16", "64"]
    assert [line[5] for line in table[2:5]] == ["4,000", "16,000", "64,000"]
    results = Results(plan, rows)
    assert {results.size_ratio(line) for line in results.final if line.method == "shadow"} == {1.0}
    assert all(
        (other := results.reference(line)) is None or other.rank == line.rank for line in results.final
    )
    assert {path.name for path in plots.draw(plan, rows, tmp_path)} == {
        "differences.png",
        "parameters.png",
        "training_time.png",
        "calibration.png",
    }


def test_a_grid_that_was_too_narrow_is_told_first(tmp_path):
    """Catches a table that is silent on rates beyond those tried, or speaks while a step is left."""
    rows = study_records(methods=("lora",))
    for rate, value in ((1e-3, 0.6), (3e-4, 0.5)):
        given = {
            "stage": "search",
            "seed": 1000,
            "learning_rate": rate,
            "value": value,
            "split": "validation",
        }
        rows.append(record(MODELS[0], "clinc150", "lora", **given))
    narrow = {
        "methods": "lora", "trials": 2, "extensions": 0,
        "search": {"lora": [{"learning_rate": 1e-3}, {"learning_rate": 3e-4}]},
    }  # fmt: skip

    def lines(**changes) -> list[str]:
        return (
            report(study(tmp_path, **{**narrow, **changes}), rows, tmp_path).read_text("utf-8").splitlines()
        )

    assert lines()[2] == (
        "**Searches whose best learning rate is at the edge of those tried, so it may lie beyond: "
        "lora on gemma-270m, clinc150 (0.001, the highest).**"
    )
    assert lines(extensions=1)[2].startswith("Models: ")


def test_one_task_that_makes_the_average_is_seen(tmp_path):
    """Catches a lead of one task that passes for a lead in general, and the wrong task left out."""
    tasks = ("clinc150", "mawps", "squad_v2")
    rows = study_records(methods=("lora", "shadow"), tasks=tasks)
    for each in rows:
        if each["method"] == "shadow" and each["task"] == "mawps":
            each["correct"] = "1" * each["items"]
            each["value"] = each["metrics"]["accuracy"] = 1.0
    settings = study(tmp_path, tasks=",".join(tasks), methods="lora,shadow")
    text = report(settings, rows, tmp_path).read_text(encoding="utf-8")
    lines = {(line[0], line[2]): line for line in table_of(text, "Differences without one task")[2:]}
    assert {mode: [task for task, other in lines if other == mode] for _, mode in lines} == {
        "attached": list(tasks), "detached": list(tasks),
    }  # fmt: skip
    assert {line[1] for line in lines.values()} == {"shadow"}
    assert {line[3] for line in lines.values()} == {"4"}
    left = {task: float(lines[task, "attached"][4]) for task in tasks}
    assert left["mawps"] < 10 < min(left["clinc150"], left["squad_v2"])
    kept = [each for each in Results(settings, rows).averages(without="mawps") if each.difference]
    assert left["mawps"] == pytest.approx(100 * kept[0].difference.value, abs=0.006)
    two = report(study(tmp_path), study_records(), tmp_path).read_text(encoding="utf-8")
    assert "without one task" not in two
