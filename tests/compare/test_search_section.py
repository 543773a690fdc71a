"""The search in a study's report."""

from helpers.study_records import MODELS, record, study, study_records, table_of

from shadowpeft.compare.report import report


def test_the_search_is_told(tmp_path):
    """Catches a choice that nobody can check."""
    rows = study_records(methods=("lora", "shadow"), tasks=("clinc150",))
    for rate, value in ((1e-3, 0.61), (3e-3, 0.59)):
        rows.append(
            record(
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
    rows.append(record(MODELS[0], "gsm8k", "shadow", stage="search", seed=1000, **loss))
    text = report(study(tmp_path), rows, tmp_path).read_text(encoding="utf-8")
    assert (
        "| gemma-270m | clinc150 | lora | 0.001 | - | accuracy | 61.00 | - | chosen, at the edge of "
        "the rates tried |" in text
    )
    assert "| gemma-270m | clinc150 | lora | 0.003 | - | accuracy | 59.00 | - |  |" in text
    assert "| gemma-270m | gsm8k | shadow | 0.001 | 0.3 | loss | 1.2346 | - |  |" in text


def test_the_rule_of_the_choice_is_told(tmp_path):
    """Catches a table in which something else than the best value is chosen and nothing says why."""
    rows = [record(MODELS[0], "clinc150", "lora", stage="search", seed=1000, value=0.6, split="validation")]

    def said(**changes) -> str:
        return (
            report(study(tmp_path, **changes), rows, tmp_path)
            .read_text(encoding="utf-8")
            .split("## Search")[1]
        )

    assert "Values within 1 standard error of the best" in said()
    order = "the lowest learning rate is chosen, then the lowest alpha, then the lowest rate of the backbone."
    assert order in said(tie_standard_errors=2.5)
    assert "Values within 2.5 standard errors of the best" in said(tie_standard_errors=2.5)
    assert "The best value is chosen, of equal ones the earlier trial's." in said(tie_standard_errors=0)
    assert "standard error" not in said(tie_standard_errors=0)


def test_how_a_grid_is_extended_is_told(tmp_path):
    rows = [record(MODELS[0], "clinc150", "lora", stage="search", seed=1000, value=0.6, split="validation")]

    def said(**changes) -> str:
        return report(study(tmp_path, **changes), rows, tmp_path).read_text(encoding="utf-8")

    note, head = (
        "every method got one more trial there",
        ", and up to 2 more where the best rate of one method",
    )
    assert note in said(extensions=2)
    assert head in said(extensions=2)
    assert note not in said(extensions=0)
    assert ", and up to" not in said(extensions=0)


def test_rates_of_the_backbone_are_told(tmp_path):
    """Catches trials that differ in nothing else shown as one, and a table of old rows that is not what it
    was."""
    final = study_records(methods=("lora", "shadow"), tasks=("clinc150",))
    final = [
        made | {"backbone_learning_rate": 1e-4} if made["method"] == "shadow" else made for made in final
    ]
    trial = {"stage": "search", "seed": 1000, "learning_rate": 1e-3, "split": "validation"}
    for rate, value in ((None, 0.61), (1e-4, 0.63)):
        made = record(MODELS[0], "clinc150", "shadow", value=value, **trial)
        final.append(made | {"backbone_learning_rate": rate, "key": f"{made['key']} {rate}"})
    table = table_of(report(study(tmp_path), final, tmp_path).read_text(encoding="utf-8"), "Search")
    assert table[0][3:6] == ["learning rate", "alpha", "backbone's rate"]
    assert [line[3:] for line in table[2:]] == [
        ["0.001", "0.3", "-", "accuracy", "61.00", "-", ""],
        ["0.001", "0.3", "0.0001", "accuracy", "63.00", "-", "chosen"],
    ]
    old = [
        {name: value for name, value in made.items() if name != "backbone_learning_rate"} for made in final
    ]
    table = table_of(report(study(tmp_path), old, tmp_path).read_text(encoding="utf-8"), "Search")
    assert table[0][3:6] == ["learning rate", "alpha", "metric"]


def test_rates_of_the_head_are_told(tmp_path):
    """Catches trials that differ in the head's rate alone shown as one."""
    final = study_records(methods=("lora", "shadow"), tasks=("clinc150",))
    final = [made | {"head_learning_rate": 3e-3} if made["method"] == "lora" else made for made in final]
    trial = {"stage": "search", "seed": 1000, "learning_rate": 1e-3, "split": "validation", "alpha": None}
    for rate, value in ((None, 0.61), (3e-3, 0.63)):
        made = record(MODELS[0], "clinc150", "lora", value=value, **trial)
        final.append(made | {"head_learning_rate": rate, "key": f"{made['key']} {rate}"})
    table = table_of(report(study(tmp_path), final, tmp_path).read_text(encoding="utf-8"), "Search")
    assert table[0][3:6] == ["learning rate", "alpha", "head's rate"]
    assert [line[5] for line in table[2:]] == ["-", "0.003"]


def test_second_seeds_are_told(tmp_path):
    """Catches a second run that hides the first in the table of trials, a mean of one run, and a choice whose
    way is not told."""
    rows = study_records(methods=("lora",), tasks=("clinc150",))
    trial = {"stage": "search", "split": "validation"}
    for seed, rate, value in (
        (1000, 1e-3, 0.61),
        (1000, 3e-3, 0.63),
        (1000, 1e-2, 0.1),
        (1001, 3e-3, 0.02),
        (1001, 1e-3, 0.6),
    ):
        rows.append(
            record(MODELS[0], "clinc150", "lora", seed=seed, learning_rate=rate, value=value, **trial)
        )
    for seed, value in ((1000, 1.25), (1001, 1.75)):
        rows.append(record(MODELS[0], "gsm8k", "lora", seed=seed, metric="loss", value=value, **trial))
    lost = {"status": "crashed", "value": None, "metric": None}
    rows.append(record(MODELS[1], "gsm8k", "lora", seed=1000, metric="loss", value=1.25, **trial))
    rows.append(record(MODELS[1], "gsm8k", "lora", seed=1001, **lost, **trial))
    text = report(study(tmp_path, trials=3, finalists=2), rows, tmp_path).read_text(encoding="utf-8")
    assert (
        "3 settings of each method tried on the validation split, and up to 1 more where the best rate "
        "of one method was at the edge, the best 2 again from a second seed and chosen among by the mean"
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
    assert "second seed" not in report(study(tmp_path, trials=3), rows, tmp_path).read_text(encoding="utf-8")
