"""The statistics of a comparison are right, and the report and pictures say what the rows say, finished or not."""

import json
import re

import numpy as np
import pytest

from shadowpeft.compare import plots
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.report import report, summary, terminal
from shadowpeft.compare.results import Results, short
from shadowpeft.compare.study import Study
from shadowpeft.errors import DataError
from shadowpeft.reporting import stats

MODELS = ("org/gemma-270m", "qwen-0.5b")
ITEMS = {"clinc150": 300, "gsm8k": 200, "mawps": 100, "squad_v2": 250}
GAIN = {"base": -0.3, "lora": 0.0, "dora": 0.005, "shadow": 0.03, "shadow-paper": -0.03, "peft-shadow": -0.06}


def study(tmp_path, **changes) -> Study:
    settings = {
        "model": ",".join(MODELS),
        "tasks": "clinc150,gsm8k",
        "methods": "base,lora,shadow",
        "trials": 2,
        "name": "trial",
    }
    return Study(output=str(tmp_path / "study"), **{**settings, **changes})


def row(
    model,
    task,
    method,
    *,
    seed=0,
    rank=16,
    mode="attached",
    trained_on=None,
    stage="final",
    correct="",
    **changes,
):
    trained_on = trained_on or task
    rate, alpha = 1e-3, 0.3 if "shadow" in method else None
    share = correct.count("1") / len(correct) if correct else None
    made = {
        "study": "trial", "stage": stage, "status": "ok", "error": None, "model": model, "task": task, "trained_on": trained_on,
        "method": method, "mode": mode, "rank": rank, "seed": seed, "learning_rate": rate, "alpha": alpha, "split": "test",
        "metric": "accuracy", "value": share, "metrics": {"accuracy": share}, "items": len(correct or ""), "correct": correct,
        "calibration": None, "trainable": 1000 * rank, "trainable_with_heads": 1200 * rank, "steps": 300, "train_seconds": 40.0,
        "train_tokens_per_second": 5000.0, "peak_gb": 2.5, "adapter_bytes": 4_000_000, "ms_per_answer": 12.5, "forgetting": 0.01,
        "train_loss": 1.0, "config": {}, "versions": {"torch": "2.13"}, "commit": "abc1234", "device": "cpu", "workers": 1, "time": "now",
    }  # fmt: skip
    made |= changes
    made["key"] = Cell(stage, model, trained_on, method, rank, seed, made["learning_rate"], made["alpha"]).key
    return made


def study_rows(
    methods=("base", "lora", "shadow"), seeds=3, ranks=(16,), models=MODELS, tasks=("clinc150", "gsm8k")
):
    """Simulate a study: items of different difficulty, seeds that differ a little, methods that differ by GAIN."""
    rows = []
    for number, (model, task) in enumerate((model, task) for model in models for task in tasks):
        random = np.random.default_rng(number)
        ease = random.beta(2, 1.5, ITEMS[task])
        for method in methods:
            for rank in ranks[:1] if method == "base" else ranks:
                for seed in range(seeds):
                    for mode in ("attached", "detached") if "shadow" in method else ("attached",):
                        gain = (
                            GAIN[method]
                            + 0.02 * np.log2(rank / 16)
                            - (0.15 if mode == "detached" else 0)
                            + random.normal(0, 0.01)
                        )
                        marks = "".join("01"[int(hit)] for hit in random.random(ITEMS[task]) < ease + gain)
                        rows.append(
                            row(
                                model,
                                task,
                                method,
                                mode=mode,
                                rank=rank,
                                seed=seed,
                                correct=marks,
                                **extra(task, method, random),
                            )
                        )
    return rows


def extra(task, method, random):
    confident = np.linspace(0.05, 0.95, 10)
    bins = [
        [int(n), float(c), float(np.clip(c - 0.1 + random.normal(0, 0.02), 0, 1))]
        for n, c in zip(range(10, 110, 10), confident, strict=True)
    ]
    bins[0] = [0, None, None]
    return {
        "calibration": {"ece": 0.08 + random.normal(0, 0.01), "bins": bins} if task == "clinc150" else None,
        "forgetting": 0.02 + random.normal(0, 0.003),
        "train_seconds": {"base": 0.0, "lora": 40.0, "dora": 60.0}.get(method, 50.0) + random.random(),
        "trainable_with_heads": 1,
    }


def table_of(text: str, heading: str) -> list[list[str]]:
    """Read the first table under a heading."""
    lines = text.split(f"## {heading}\n")[1].split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    cells = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    return cells


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)],
)
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    """Catches a wrong term of the closed form, of odd or even degrees of freedom."""
    assert stats.t_quantile(freedom) == pytest.approx(quantile, abs=1e-4)


def test_the_interval_over_seeds_is_students():
    """Catches the normal quantile in place of t's, the variance over n, and an interval made up of one seed."""
    found = stats.mean_interval([0.70, 0.72, 0.77])
    assert (found.mean, found.margin) == pytest.approx(
        (0.73, 4.30265 * np.std([0.70, 0.72, 0.77], ddof=1) / 3**0.5), abs=1e-6
    )
    assert stats.mean_interval([0.7]) == stats.Estimate(0.7, None, 1)
    assert stats.mean_interval([]) is None
    assert stats.mean_interval([0.5, 0.5]).margin == 0


def simulated(random, seeds, items, spread):
    """Draw the differences of two methods of the same expected score, with an effect of the seed and of the item."""
    ease = random.normal(0, 1.2, items)

    def marks(bias):
        hits = (
            ease + bias + random.normal(0, spread, seeds)[:, None] + random.logistic(0, 0.6, (seeds, items))
            > 0
        )
        return hits.astype(np.int8)

    return marks(random.normal(0, 0.5, items)) - marks(random.normal(0, 0.5, items))


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_intervals_cover_the_truth_as_often_as_they_say(spread):
    """Catches intervals too narrow or too wide; with an effect of seeds, items alone are not enough, which is why both are given."""
    random = np.random.default_rng(5)
    found = [stats.difference(simulated(random, 3, 300, spread), resamples=1000) for _ in range(500)]
    items = np.mean([low <= 0 <= high for low, high in (each.items for each in found)])
    both = np.mean([low <= 0 <= high for low, high in (each.items_and_seeds for each in found)])
    assert 0.93 <= both <= 0.99
    assert 0.92 <= items <= 0.98 if not spread else items < 0.85


def test_the_average_over_cells_covers_the_truth():
    """Catches cells weighed wrongly, and cells of the same items treated as if they were of other ones."""
    random = np.random.default_rng(6)
    hits = {"same": 0, "other": 0}
    for _ in range(400):
        marks = simulated(random, 1, 300, 0.0)
        for name, tasks in {"same": ("a", "a"), "other": ("a", "b")}.items():
            low, high = stats.average([(task, marks) for task in tasks], resamples=1000).items
            hits[name] += int(low <= 0 <= high)
    assert 0.92 <= hits["same"] / 400 <= 0.98
    assert hits["other"] / 400 < 0.9


def test_the_average_counts_every_cell_the_same():
    """Catches an average over items, in which the largest task decides."""
    few, many = np.ones((2, 10), np.int8), np.zeros((2, 990), np.int8)
    found = stats.average([("a", few), ("b", many)])
    assert (found.value, found.cells, found.count) == (0.5, 2, 1000)
    assert found.items == (0.5, 0.5)


def test_identical_methods_do_not_differ():
    """Catches noise from the resampling itself."""
    marks = dict.fromkeys(range(3), "0110100101")
    found = stats.difference(stats.paired(marks, marks))
    assert found.value == 0
    assert found.items[0] <= 0 <= found.items[1]
    assert found.items_and_seeds[0] <= 0 <= found.items_and_seeds[1]


def test_pairing_narrows_the_interval():
    """Catches methods resampled apart: for items hard for both, that is twice as wide."""
    random = np.random.default_rng(0)
    ease = random.beta(0.5, 0.5, 1000)
    first, second = ((random.random(1000) < ease).astype(np.int8) for _ in range(2))
    low, high = stats.difference((first - second)[None]).items
    apart = 1.96 * (first.var() / 1000 + second.var() / 1000) ** 0.5
    assert high - low < 0.8 * 2 * apart


def test_the_bootstrap_is_that_of_drawing_items_one_by_one():
    """Catches a wrong multinomial: many distinct values, in several pieces, against plain resampling."""
    random = np.random.default_rng(0)
    cells = [
        ("a", random.integers(-1, 2, (7, 400)).astype(np.int8) * random.integers(0, 2, 400)) for _ in range(2)
    ]
    shares = sum(cell.mean(0) for _, cell in cells) / 2
    drawn = shares[random.integers(0, 400, (10_000, 400))].mean(1)
    assert stats.average(cells).items == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=2e-3)


def test_twenty_thousand_items_take_no_memory():
    """Catches a matrix of resamples by items, which would be 1.6 GB."""
    import tracemalloc

    cell = np.random.default_rng(0).integers(-1, 2, (3, 20_000)).astype(np.int8)
    tracemalloc.start()
    stats.difference(cell)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_one_seed_gives_no_interval_over_seeds():
    found = stats.difference(np.array([[1, 0, 0, -1, 1]], np.int8))
    assert found.items_and_seeds is None
    assert found.seeds == 1


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        ({0: "0110"}, {0: "011"}, "got 3 and 4 items"),
        ({0: "01", 1: "011"}, {0: "01", 1: "011"}, "got 2 and 3 items"),
        ({0: ""}, {0: ""}, "got 0 items"),
        ({0: "01"}, {1: "01"}, "expected seeds that both methods have"),
        ({0: "0x"}, {0: "01"}, "got 'x'"),
    ],
)
def test_marks_that_do_not_pair_are_refused(own, other, message):
    with pytest.raises(DataError, match=message):
        stats.paired(own, other)


def test_items_in_another_order_are_refused(tmp_path):
    """Catches a paired comparison of item 1 with item 7."""
    rows = study_rows(methods=("lora", "shadow"))
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
    rows = study_rows()
    rows[0]["metrics"]["nll"] = 2.5
    rows.append(row(MODELS[0], "mawps", "lora", trained_on="gsm8k", correct="1" * 30 + "0" * 70))
    rows.append(row(MODELS[0], "mawps", "shadow", trained_on="gsm8k", correct="1" * 40 + "0" * 60))
    text = report(plan, rows, tmp_path).read_text()
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


def test_the_average_is_over_the_cells_that_lora_has(tmp_path):
    """Catches an average that compares a method on easy tasks with LoRA on hard ones."""
    rows = [
        each
        for each in study_rows()
        if (each["method"], each["model"], each["task"]) != ("lora", MODELS[0], "gsm8k")
    ]
    found = summary(study(tmp_path), rows)
    shadow = next(
        each for each in found["averages"] if (each["method"], each["mode"]) == ("shadow", "attached")
    )
    cells = [
        each
        for each in found["cells"]
        if (each["method"], each["mode"]) == ("shadow", "attached") and each["difference"]
    ]
    assert (shadow["cells"], shadow["difference"]["cells"]) == (3, 3)
    assert shadow["difference"]["value"] == pytest.approx(shadow["value"]["mean"] - shadow["lora"]["mean"])
    assert shadow["difference"]["value"] == pytest.approx(
        np.mean([each["difference"]["value"] for each in cells])
    )
    average = table_of(report(study(tmp_path), rows, tmp_path).read_text(), "Averages over tasks and models")[
        4
    ]
    assert average[:3] == ["shadow", "attached", "3 of 4"]
    assert {entry["cell"] for entry in found["missing"]} == {
        f"final {MODELS[0]} gsm8k lora rank=16 seed={seed}" for seed in range(3)
    }


def test_the_average_is_over_the_seeds_that_lora_has(tmp_path):
    """Catches a score that a lost seed moves by itself, so that it no longer differs from LoRA's by the difference shown."""
    rows = study_rows()
    lost = [("lora", MODELS[0], "gsm8k", 1), ("shadow", MODELS[1], "clinc150", 2)]
    rows = [each for each in rows if (each["method"], each["model"], each["task"], each["seed"]) not in lost]
    found = {(each["method"], each["mode"]): each for each in summary(study(tmp_path), rows)["averages"]}
    for each in (found["shadow", "attached"], found["shadow", "detached"]):
        assert each["value"]["count"] == each["lora"]["count"] == 10
        assert each["difference"]["value"] == pytest.approx(each["value"]["mean"] - each["lora"]["mean"])
    assert found["lora", "attached"]["value"]["count"] == 11
    assert found["lora", "attached"]["lora"] is None


def test_runs_that_failed_are_told_beside_the_averages(tmp_path):
    """Catches a method that gains by diverging: its failed runs vanish from its average without a word."""
    rows = study_rows()
    lost = next(each for each in rows if each["method"] == "lora")
    lost |= {"status": "crashed", "error": "training diverged", "value": None, "correct": None}
    assert (
        "**Final runs that failed and are in no average: 1."
        in report(study(tmp_path), rows, tmp_path).read_text()
    )
    assert "in no average" not in report(study(tmp_path), study_rows(), tmp_path).read_text()


def test_missing_and_failed_cells_are_named(tmp_path):
    """Catches a table that looks complete without being so, and a failure that a later run made good."""
    rows = study_rows()
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
    ).read_text()
    assert "2 without a result" in text
    assert f"- `{lost['key']}`: out-of-memory: CUDA | out of memory\n" in text
    assert f"- `{wanted.key}`: not run" in text
    assert "crashed" not in text


def test_no_lora_is_said(tmp_path):
    """Catches a difference to nothing."""
    text = report(
        study(tmp_path, methods="base,shadow"), study_rows(methods=("base", "shadow")), tmp_path
    ).read_text()
    assert "no finished runs of LoRA" in text
    assert not re.search(r"[+-]\d+\.\d\d to ", text)


@pytest.mark.parametrize("count", [0, 1, 4, 10, 20])
def test_any_part_of_a_study_makes_a_report(tmp_path, count):
    """Catches a report that falls over an interrupted study."""
    random = np.random.default_rng(count)
    rows = study_rows(ranks=(16, 4))
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
    text = report(plan, rows, tmp_path).read_text()
    assert all(f"]({path.name})" in text for path in drawn)
    assert json.loads(json.dumps(summary(plan, rows), allow_nan=False))["missing"]
    assert terminal(summary(plan, rows)).splitlines()[-1].endswith("without a result")


def test_numbers_that_are_none_leave_a_dash(tmp_path):
    """Catches `nan` in the table, and a diverged seed that spoils the mean of the others."""
    rows = study_rows(methods=("lora", "shadow"))
    for each in rows:
        each |= {"peak_gb": None, "forgetting": float("nan")}
    rows[0] |= {"value": float("nan")}
    text = report(study(tmp_path), rows, tmp_path).read_text()
    assert "nan" not in text.lower().replace("shenan", "")
    assert "None |" not in text
    values = [each["value"] for each in rows[1:3]]
    assert table_of(text, "gemma-270m: clinc150")[2][3].startswith(f"{100 * np.mean(values):.1f} ±")


def test_the_untuned_base_is_compared_with_every_seed(tmp_path):
    """Catches a base with its one row set against LoRA's first seed alone."""
    rows = [each for each in study_rows() if each["method"] != "base" or each["seed"] == 0]
    rows = [each | {"steps": 0} if each["method"] == "base" else each for each in rows]
    results = Results(study(tmp_path), rows)
    base = next(line for line in results.lines if line.method == "base")
    assert results.difference(base).seeds == 3


def test_costs_come_from_runs_timed_alone(tmp_path):
    """Catches times of runs that shared a device where better ones exist."""
    rows = study_rows(methods=("lora", "shadow"))
    changes = {
        "value": 50.0,
        "metric": "train_ms_per_step",
        "train_tokens_per_second": 9999.0,
        "ms_per_answer": 7.0,
        "split": "none",
        "correct": None,
    }
    rows.append(row(MODELS[0], "clinc150", "shadow", stage="cost", **changes))
    text = report(study(tmp_path), rows, tmp_path).read_text()
    assert "| shadow | attached | 15.0 | 9,999 | 2.50 | 4.00 | 7.0 | alone |" in text
    assert re.search(
        r"\| lora \| attached \| 40\.\d \| 5,000 \| 2.50 \| 4.00 \| 12.5 \| in the study \|", text
    )


def test_the_search_is_told(tmp_path):
    """Catches a choice that nobody can check."""
    rows = study_rows(methods=("lora", "shadow"), tasks=("clinc150",))
    for rate, value in ((1e-3, 0.61), (3e-3, 0.59)):
        rows.append(
            row(
                MODELS[0],
                "clinc150",
                "lora",
                stage="search",
                seed=1000,
                learning_rate=rate,
                value=value,
                split="validation",
            )
        )
    loss = {"metric": "loss", "value": 1.23456, "learning_rate": 1e-3, "split": "validation"}
    rows.append(row(MODELS[0], "gsm8k", "shadow", stage="search", seed=1000, **loss))
    text = report(study(tmp_path), rows, tmp_path).read_text()
    assert (
        "| gemma-270m | clinc150 | lora | 0.001 | - | accuracy | 61.00 | - | chosen, at the edge of the rates tried |"
        in text
    )
    assert "| gemma-270m | clinc150 | lora | 0.003 | - | accuracy | 59.00 | - |  |" in text
    assert "| gemma-270m | gsm8k | shadow | 0.001 | 0.3 | loss | 1.2346 | - |  |" in text


def test_the_rule_of_the_choice_is_told(tmp_path):
    """Catches a table in which something else than the best value is chosen and nothing says why."""
    rows = [row(MODELS[0], "clinc150", "lora", stage="search", seed=1000, value=0.6, split="validation")]

    def said(**changes) -> str:
        return report(study(tmp_path, **changes), rows, tmp_path).read_text().split("## Search")[1]

    assert "Values within 1 standard error of the best" in said()
    order = "the lowest learning rate is chosen, then the lowest alpha, then the lowest rate of the backbone."
    assert order in said(tie_standard_errors=2.5)
    assert "Values within 2.5 standard errors of the best" in said(tie_standard_errors=2.5)
    assert "The best value is chosen, of equal ones the earlier trial's." in said(tie_standard_errors=0)
    assert "standard error" not in said(tie_standard_errors=0)


def test_rates_of_the_backbone_are_told(tmp_path):
    """Catches trials that differ in nothing else shown as one, and a table of old rows that is not what it was."""
    final = study_rows(methods=("lora", "shadow"), tasks=("clinc150",))
    final = [
        made | {"backbone_learning_rate": 1e-4} if made["method"] == "shadow" else made for made in final
    ]
    trial = {"stage": "search", "seed": 1000, "learning_rate": 1e-3, "split": "validation"}
    for rate, value in ((None, 0.61), (1e-4, 0.63)):
        made = row(MODELS[0], "clinc150", "shadow", value=value, **trial)
        final.append(made | {"backbone_learning_rate": rate, "key": f"{made['key']} {rate}"})
    table = table_of(report(study(tmp_path), final, tmp_path).read_text(), "Search")
    assert table[0][3:6] == ["learning rate", "alpha", "backbone's rate"]
    assert [line[3:] for line in table[2:]] == [
        ["0.001", "0.3", "-", "accuracy", "61.00", "-", ""],
        ["0.001", "0.3", "0.0001", "accuracy", "63.00", "-", "chosen"],
    ]
    old = [
        {name: value for name, value in made.items() if name != "backbone_learning_rate"} for made in final
    ]
    table = table_of(report(study(tmp_path), old, tmp_path).read_text(), "Search")
    assert table[0][3:6] == ["learning rate", "alpha", "metric"]


def test_second_seeds_are_told(tmp_path):
    """Catches a second run that hides the first in the table of trials, a mean of one run, and a choice whose way is not told."""
    rows = study_rows(methods=("lora",), tasks=("clinc150",))
    trial = {"stage": "search", "split": "validation"}
    for seed, rate, value in (
        (1000, 1e-3, 0.61),
        (1000, 3e-3, 0.63),
        (1000, 1e-2, 0.1),
        (1001, 3e-3, 0.02),
        (1001, 1e-3, 0.6),
    ):
        rows.append(row(MODELS[0], "clinc150", "lora", seed=seed, learning_rate=rate, value=value, **trial))
    for seed, value in ((1000, 1.25), (1001, 1.75)):
        rows.append(row(MODELS[0], "gsm8k", "lora", seed=seed, metric="loss", value=value, **trial))
    lost = {"status": "crashed", "value": None, "metric": None}
    rows.append(row(MODELS[1], "gsm8k", "lora", seed=1000, metric="loss", value=1.25, **trial))
    rows.append(row(MODELS[1], "gsm8k", "lora", seed=1001, **lost, **trial))
    text = report(study(tmp_path, trials=3, finalists=2), rows, tmp_path).read_text()
    assert (
        "3 settings of each method tried on the validation split, the best 2 again from a second seed and chosen among by the mean"
        in text
    )
    assert "among these the mean of both seeds decides" in text
    table = table_of(text, "Search")
    assert table[0][6:] == ["attached", "detached", "second seed", "mean of both", ""]
    assert [line[6:10] for line in table[2:]] == [
        ["61.00", "-", "60.00", "60.50"],
        ["63.00", "-", "2.00", "32.50"],
        ["10.00", "-", "-", "-"],
        ["1.2500", "-", "1.7500", "1.5000"],
        ["1.2500", "-", "crashed", "-"],
    ]
    assert "second seed" not in report(study(tmp_path, trials=3), rows, tmp_path).read_text()


def test_skipped_test_rows_are_told(tmp_path):
    """Catches a table that does not say that its test rows are not those of the study before."""
    said = "The test rows are others than those that a study of 1,000 test rows reads."
    assert said in report(study(tmp_path, test_skip=1000), study_rows(), tmp_path).read_text()
    said = "The test rows are others than those that studies of 1,000, then 500 test rows read, each from what the ones before left."
    assert said in report(study(tmp_path, test_skip=[1000, 500]), study_rows(), tmp_path).read_text()
    assert "The test rows are others" not in report(study(tmp_path), study_rows(), tmp_path).read_text()


def test_test_rows_that_only_some_tasks_skip_are_told_by_task(tmp_path):
    """Catches a table that says of all tasks what holds for one, or that passes over a task whose rows may have been read before."""
    plan = study(tmp_path, test_skip={"gsm8k": [1000, 500], "mawps": [1000, 500]})
    text = report(plan, study_rows(), tmp_path).read_text()
    assert (
        "\n\nThe test rows of clinc150 are drawn from all there are. The test rows of gsm8k, mawps are others than those that studies of "
        "1,000, then 500 test rows read, each from what the ones before left.\n\n"
    ) in text
    alike = study(tmp_path, test_skip={"gsm8k": 1000, "mawps": 1000, "clinc150": 1000})
    said = "\n\nThe test rows are others than those that a study of 1,000 test rows reads.\n\n"
    assert said in report(alike, study_rows(), tmp_path).read_text()


def test_several_ranks_make_a_scaling_table_and_a_picture(tmp_path):
    """Catches ranks mixed up in one line."""
    plan = study(tmp_path, ranks="16,4,64")
    rows = study_rows(ranks=(16, 4, 64))
    table = table_of(report(plan, rows, tmp_path).read_text(), "Scaling")
    assert [line[4] for line in table[2:5]] == ["4", "16", "64"]
    assert [line[5] for line in table[2:5]] == ["4,000", "16,000", "64,000"]
    results = Results(plan, rows)
    assert {results.size_ratio(line) for line in results.lines if line.method == "shadow"} == {1.0}
    assert all(
        (other := results.reference(line)) is None or other.rank == line.rank for line in results.lines
    )
    assert {path.name for path in plots.draw(plan, rows, tmp_path)} == {
        "differences.png",
        "parameters.png",
        "training_time.png",
        "calibration.png",
    }


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("models/gemma-270m", "org/qwen-0.5b"), ["gemma-270m", "qwen-0.5b"]),
        (("./gemma-270m",), ["gemma-270m"]),
        (("src/embedded/model",), ["embedded/model"]),
        (("a/one/model", "two/model/", "org/qwen"), ["one/model", "two/model", "qwen"]),
        (("a/one/model", "b/one/model"), ["a/one/model", "b/one/model"]),
        (("one/qwen", "two/qwen", "c/d/e/gemma"), ["one/qwen", "two/qwen", "e/gemma"]),
        (("qwen", "one/qwen"), ["qwen", "one/qwen"]),
        (("qwen", "./qwen"), ["qwen", "./qwen"]),
        (("model",), ["model"]),
        ((".", "/"), [".", "/"]),
    ],
)
def test_labels_of_models_tell_them_apart(names, labels):
    """Catches two models under one name, a name that says nothing, and more of a path than it takes."""
    assert [short(names)(name) for name in names] == labels
    assert short(names)("of/another/study") == "of/another/study"


def test_long_names_stay_in_their_pictures(tmp_path, monkeypatch):
    """Catches titles and labels that reach out of the picture or into each other."""
    models = tuple(
        f"models/a-language-model-of-a-{size}-name-and-of-many-billions-of-parameters-instruct"
        for size in ("long", "longer")
    )
    plan, kept = study(tmp_path, model=",".join(models), ranks="4,16"), []
    monkeypatch.setattr(plots.plt, "close", kept.append)
    drawn = plots.draw(plan, study_rows(models=models, ranks=(4, 16)), tmp_path)
    assert [path.name for path in drawn] == [
        "differences.png",
        "parameters.png",
        "training_time.png",
        "calibration.png",
    ]
    for figure in kept:
        figure.draw_without_rendering()  # in the size that it is measured in, not that of the file
        places = figure.axes[0].get_yticklabels() if figure is kept[0] else []
        texts = [figure._suptitle, *(axes.title for axes in figure.axes), *places]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes), (
            figure._suptitle.get_text()
        )
        assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes), (
            figure._suptitle.get_text()
        )
        assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])


def test_the_terminal_shows_the_averages(tmp_path):
    text = terminal(summary(study(tmp_path), study_rows()))
    assert [line.split()[0] for line in text.splitlines()] == ["method", "base", "lora", "shadow", "shadow"]
    assert all(len(line) < 100 for line in text.splitlines())


def test_the_forest_shows_the_points_whatever_two_seeds_make_of_an_interval():
    """Catches a picture 400 points wide in which no difference can be seen."""
    wide = stats.Difference(0.01, (-0.02, 0.04), (-2.3, 1.8), 2, 1000, 1)
    low, high = plots._span([wide])
    assert -10 < low < -2
    assert 4 < high < 10
