"""Tasks of a study: prompts, metrics, splits that share nothing, local folders and the hub's layouts."""

import gzip
import json
import random
from pathlib import Path

import datasets
import pytest
from helpers.task_rows import SPLITS, SUBJECTS, hub_rows, local_rows, passages

from shadowpeft.compare.tasks import (
    TASKS,
    Item,
    Source,
    clinc,
    find,
    gsm8k,
    held_out_text,
    mawps,
    mmlu,
    squad,
    stars,
)
from shadowpeft.compare.tasks.scoring import accuracy, until_stop
from shadowpeft.compare.tasks.splits import cut, squeezed
from shadowpeft.data.rows import Row
from shadowpeft.errors import ConfigError, DataError


def write(folder: Path, sets: dict[str, dict[str, list[dict]]], suffix: str = ".jsonl") -> Source:
    for name, splits in sets.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            (folder / name / f"{split}{suffix}").write_bytes(
                gzip.compress(content) if suffix.endswith("gz") else content
            )
    return Source(str(folder))


@pytest.fixture
def local(tmp_path) -> Source:
    return write(tmp_path, local_rows())


@pytest.fixture
def hub(monkeypatch) -> Source:
    stored = hub_rows()

    def load_dataset(path, name=None, *, split, **options):
        dataset = datasets.Dataset.from_list(stored[path, name, split])
        if path == "clinc/clinc_oos":  # the hub's order of intents is its own
            dataset = dataset.cast_column(
                "intent", datasets.ClassLabel(names=["translate", "oos", "accept_reservations"])
            )
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return Source()


def everything(name: str, source: Source) -> dict[str, list[Item]]:
    return {split: find(name).load(split, source) for split in SPLITS}


def all_names(items: dict[str, list[Item]]) -> dict[str, set[str]]:
    return {split: {squeezed(item.prompt) for item in items[split]} for split in items}


def assert_sound(name: str, items: dict[str, list[Item]]) -> None:
    """A task's splits share nothing and are answerable: right answers score 1 in every metric."""
    task, prompts = TASKS[name], all_names(items)
    assert all(prompts.values())
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["test"] & (prompts["train"] | prompts["validation"])
    for split in SPLITS:
        oracle = [item.answer if task.kind == "generation" else item.target for item in items[split]]
        scores = task.score(items[split], oracle)
        assert set(scores.metrics.values()) == {1.0}
        assert task.metric in scores.metrics
        assert scores.correct == [1] * len(items[split])
        if task.kind == "choice":
            assert all(item.answer == item.choices[item.target] for item in items[split])
        if task.kind == "classification":
            assert all(0 <= item.target < len(task.labels) and not item.answer for item in items[split])


# All tasks


@pytest.mark.parametrize("name", TASKS)
def test_every_task_loads_from_a_folder(local, name):
    """Catches rows in two splits, a target that the metric refuses, and a metric that is missing."""
    assert_sound(name, everything(name, local))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_loads_from_the_layout_of_the_hub(hub, name):
    """Catches a field, split or configuration that the hub names otherwise than the folder."""
    assert_sound(name, everything(name, hub))


def test_gzipped_splits_are_the_same(tmp_path, local):
    zipped = write(tmp_path / "zipped", local_rows(), ".jsonl.gz")
    for name in TASKS:
        assert everything(name, zipped) == everything(name, local)


def test_partners_exist_and_are_answered_the_same_way():
    for task in TASKS.values():
        for partner in task.partners:
            assert (find(partner).kind, find(partner).labels) == (task.kind, task.labels)


def test_an_unknown_task_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"unknown task 'gsm8' \(did you mean 'gsm8k'\?\); the tasks are gsm8k, mawps, squad_v2",
    ):
        find("gsm8")


# Splits


@pytest.mark.parametrize("name", ["gsm8k", "squad_v2", "mmlu", "amazon5", "newsgroups20", "arc_easy"])
def test_validation_depends_on_nothing_but_the_rows(tmp_path, name):
    """Catches a split by a global random state or by the order of rows, which would choose settings on other rows in each run."""
    found = []
    for seed in (0, 1):
        random.seed(seed)
        rows = local_rows()[name]
        for split in rows.values():
            random.shuffle(split)
        found.append(all_names(everything(name, write(tmp_path / str(seed), {name: rows}))))
    assert found[0] == found[1]


def rows_of(units: list[str]) -> list[Row]:
    return [
        Row({"unit": unit, "label": unit[0], "number": number}, f"row {number}")
        for number, unit in enumerate(units)
    ]


def by_unit(row: Row) -> str:
    return row.fields["unit"]


def test_a_cut_takes_a_tenth_in_whole_units():
    """Catches one article or one repeated text on both sides."""
    rows = rows_of([f"unit {n // 3}" for n in range(300)])
    train, validation = cut("any", rows, by_unit)
    assert (len(train), len(validation)) == (270, 30)
    assert not {by_unit(row) for row in train} & {by_unit(row) for row in validation}
    assert [row.fields["number"] for row in train] == sorted(row.fields["number"] for row in train)


def test_a_cut_is_the_same_in_every_process():
    """Catches Python's own hash of strings, which differs from run to run, and a changed rule, which makes old results incomparable."""
    _, validation = cut("any", rows_of([f"unit {number}" for number in range(30)]), by_unit)
    assert [by_unit(row) for row in validation] == ["unit 7", "unit 8", "unit 15"]


def test_a_cut_leaves_every_label_in_train():
    """Catches a class that is in validation alone, and small classes that never add up to a tenth."""
    rows = rows_of([f"{letter}{n}" for letter in "abcdefghij" for n in range(2)] + ["k"])
    train, validation = cut("any", rows, by_unit, lambda row: row.fields["label"])
    assert {row.fields["label"] for row in train} == set("abcdefghijk")
    assert len(validation) == 2


def test_a_cut_of_too_few_rows_is_refused():
    with pytest.raises(
        DataError,
        match="small: a validation split is cut from the training rows, which needs 2 texts of a kind, got 1",
    ):
        cut("small", rows_of(["a", "a"]), by_unit)


def test_repeats_stay_in_the_latest_split(tmp_path):
    """Catches training on a test question that differs in case and spaces alone."""
    rows = local_rows()["mawps"]
    rows["train"] += [
        {"question": f" {rows['test'][0]['question'].upper()}  ", "answer": 1},
        {**rows["validation"][0]},
    ]
    rows["validation"].append(rows["test"][1])
    items = everything("mawps", write(tmp_path, {"mawps": rows}))
    assert {split: len(items[split]) for split in SPLITS} == {"train": 25, "validation": 7, "test": 8}


def test_the_same_question_of_two_subjects_counts_as_one(tmp_path):
    """Catches a comparison of whole prompts, whose first line names the subject."""
    rows = local_rows()["mmlu"]
    rows["dev"].append({**rows["test"][0], "subject": "another"})
    assert len(everything("mmlu", write(tmp_path, {"mmlu": rows}))["train"]) == 4 + 20


# Folders and hub


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "gsm8k",
            None,
            r"the data folder .* has no set 'gsm8k', only amazon5, arc_challenge, .*; add .*gsm8k.train.jsonl or leave --data-dir out",
        ),
        (
            "gsm8k",
            "test",
            r"the data folder .*gsm8k has no split 'test' \(test.jsonl or test.jsonl.gz\), only train.jsonl; add it",
        ),
        (
            "squad_v2",
            "validation",
            r"the data folder .*squad_v2 has no split 'validation' .*, only nothing; add it",
        ),
        ("wiki_en", "validation", r"the data folder .*wiki_en has no split 'validation'"),
    ],
)
def test_a_missing_set_or_split_is_named(local, tmp_path, name, split, message):
    for path in (tmp_path / name).iterdir():
        if split in (None, path.name.partition(".")[0]):
            path.unlink()
    if split is None:
        (tmp_path / name).rmdir()
    with pytest.raises(DataError, match=message):
        held_out_text(local, 1) if name == "wiki_en" else everything(name, local)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"there is no data folder .*nowhere; give --data-dir a folder with one folder a data set",
    ):
        everything("sst5", Source(str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no way"),
        ValueError("no config"),
        RuntimeError("no scripts"),
        datasets.exceptions.DatasetNotFoundError("none"),
    ],
)
def test_a_missing_hub_is_one_sentence(monkeypatch, error):
    """Catches a trace of the hub's client where a sentence is due."""

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError,
        match=r"openai/gsm8k cannot be loaded from the hub \(.*\); .*--data-dir with a folder that holds gsm8k/train",
    ):
        everything("gsm8k", Source())


def test_squad_without_train_or_halves_is_refused(tmp_path):
    source = write(tmp_path, {"squad_v2": {"validation": passages("validation", 10)}})
    with pytest.raises(
        DataError,
        match=r"squad_v2 has no split 'train', and its validation rows no 'cs224n_part'.*; add train.jsonl",
    ):
        everything("squad_v2", source)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        (
            "amazon5",
            "stars",
            6,
            r"amazon5: the test split holds 1 label unseen in training \(6\); add training rows of them",
        ),
        ("newsgroups20", "group", "alt.unknown", r"unseen in training \(alt.unknown\)"),
        (
            "clinc150",
            "intent",
            "weather",
            r"clinc150: the test split holds 1 label unseen in training \(weather\)",
        ),
    ],
)
def test_labels_unseen_in_training_are_named(tmp_path, name, field, value, message):
    rows = local_rows()[name]
    rows["test"][0][field] = value
    with pytest.raises(DataError, match=message):
        everything(name, write(tmp_path, {name: rows}))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "gsm8k",
            {"question": "How many?"},
            r"train.jsonl:41: expected 'answer' to be str, got no such field; the fields are question",
        ),
        (
            "gsm8k",
            {"question": "How many?", "answer": "four"},
            r"train.jsonl:41: expected an answer that ends in '#### NUMBER', got 'four'",
        ),
        (
            "mawps",
            {"question": "How many?", "answer": "four"},
            r"train.jsonl:26: expected a number for an answer, got 'four'",
        ),
        (
            "arc_easy",
            {"question": "Which?", "choices": ["a", "b"], "answer": 2},
            r"expected 2 to 8 choices and the index of one, got 2 and 2",
        ),
        (
            "arc_easy",
            {"question": "Which?", "choices": ["a", "b"], "answer": True},
            "expected 'answer' to be int, got bool True",
        ),
        (
            "subjqa",
            {"question": "Who?", "context": "He.", "answers": {"text": "He"}},
            "expected 'answers' to hold a list 'text'",
        ),
        (
            "clinc150",
            {"text": "hello", "intent": "new"},
            r"train split holds 1 label not among the 151 of the task \(new\)",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, row, message):
    rows = local_rows()[name]
    rows["train"].append(row)
    with pytest.raises(DataError, match=message):
        everything(name, write(tmp_path, {name: rows}))


def test_held_out_text(local, hub):
    """Catches headings and stubs, on which perplexity means little."""
    assert held_out_text(local, 1) == [("long " * 60).strip()]
    assert len(held_out_text(local, 9)) == 2
    assert held_out_text(hub, 9) == [("long " * 60).strip()]


# GSM8K and MAWPS


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 7", 7),
        ("#### 1,234,567", 1234567),
        ("#### $1,200.50.", 1200.5),
        ("#### -5", -5),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("#### 5.0", 5),
        ("#### .5", 0.5),
        ("#### 7 because 3 + 4", 7),
        ("#### 3\n#### 4 apples", 4),
        ("12 and then ####", 12),
        ("The answer is 18.", 18),
        ("16-3=13", 13),
        ("between 10-15", 15),
        ("f(2)-1", 1),
        ("it fell to -3 degrees", -3),
        ("16 - 3", 3),
        ("no number", None),
        ("", None),
    ],
)
def test_the_final_number(text, number):
    assert gsm8k.final_number(text) == number


def test_gsm8k_reads_the_final_number_alone():
    """Catches marking by the wording, and numbers of a next question that the model made up."""
    items = [Item("", 1200.0)] * 4
    answers = ["it is 1,200.00", " 5\n#### 1200\nQuestion: How many?\nAnswer: 7\n#### 7", "1200.01", "12 00"]
    assert gsm8k.TASK.score(items, answers).correct == [1, 1, 0, 0]
    assert gsm8k.TASK.score(items, answers).metrics == {"exact_match": 0.5}


def test_gsm8k_teaches_the_solution_without_calculator(local):
    item = next(item for item in gsm8k.TASK.load("test", local) if item.target == 6)
    assert item.prompt == "Question: test text number 3\nAnswer:"
    assert item.answer == " He has 2*3=6.\n#### 6"


def test_mawps_takes_rounded_fractions():
    items = [Item("", 5 / 6)] * 3
    assert mawps.TASK.score(items, ["#### 0.8333", "0.83", "5"]).correct == [1, 0, 0]


# SQuAD and SubjQA


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        (" The Normans.", ("Normans",), 1, 1.0),
        ("an  apple, a day", ("apple day",), 1, 1.0),
        ("theatre", ("atre",), 0, 0.0),
        ("10th century", ("in the 10th century", "the 11th century"), 0, 0.8),
        ("x y", ("z", "x y"), 1, 1.0),
        ("x x y", ("x x z",), 0, 2 / 3),
        ("unanswerable", (), 1, 1.0),
        ("Unanswerable.", (), 1, 1.0),
        ("", (), 1, 1.0),
        ("Normans", (), 0, 0.0),
        ("unanswerable", ("Normans",), 0, 0.0),
        ("", ("Normans",), 0, 0.0),
        ("the", ("Normans",), 0, 0.0),
        ("Normans", ("the",), 0, 0.0),
    ],
)
def test_squad_scores_as_the_official_script(answer, golds, exact, f1):
    assert squad.exact_and_f1(answer, golds) == (exact, pytest.approx(f1))


def test_squad_tells_answerable_and_unanswerable_apart():
    items = [
        Item("", ("Rollo",), group="answerable"),
        Item("", ("the x b",), group="answerable"),
        Item("", (), group="unanswerable"),
    ]
    scores = squad.score(items, [" Rollo\nQuestion: who", "b", "nobody"])
    assert scores.correct == [1, 0, 0]
    assert scores.metrics == pytest.approx(
        {
            "exact_match": 1 / 3,
            "f1": (1 + 2 / 3) / 3,
            "exact_match_answerable": 0.5,
            "exact_match_unanswerable": 0.0,
            "f1_answerable": (1 + 2 / 3) / 2,
            "f1_unanswerable": 0.0,
        }
    )


def test_squad_keeps_articles_together_and_teaches_the_refusal(local):
    """Catches questions on one article in train and validation."""
    items = everything("squad_v2", local)
    contexts = {split: {item.prompt.partition("\n")[0] for item in items[split]} for split in SPLITS}
    assert [len(contexts[split]) for split in SPLITS] == [9, 1, 10]
    assert not contexts["train"] & contexts["validation"]
    assert {item.answer for item in items["train"]} == {" the passage", " unanswerable"}
    assert items["test"][1].prompt == "Context: The passage of test 0.\nQuestion: test text number 1\nAnswer:"


def test_subjqa_merges_its_annotators(tmp_path):
    """Catches one question counted once for every annotator, with contradicting answers."""
    rows = local_rows()["subjqa"]
    one = {"context": "Great sound. ANSWERNOTFOUND", "question": "How is the sound?", "title": "B00"}
    rows["test"] = [{**one, "answers": {"text": text}} for text in ([], ["Great"], ["Great sound"], ["."])]
    (item,) = everything("subjqa", write(tmp_path, {"subjqa": rows}))["test"]
    assert (item.target, item.group) == (("Great", "Great sound"), "answerable")
    assert item.prompt == "Context: Great sound.\nQuestion: How is the sound?\nAnswer:"


# Choices and classes


def test_mmlu_asks_in_the_standard_form(local):
    item = mmlu.TASK.load("test", local)[2]
    assert item.prompt == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "test text number 2\nA. choice 2 0\nB. choice 2 1\nC. choice 2 2\nD. choice 2 3\nAnswer:"
    )
    assert (item.answer, item.target, item.choices, item.group) == (
        " C",
        2,
        (" A", " B", " C", " D"),
        "abstract_algebra",
    )
    science = find("arc_easy").load("test", local)[0]
    assert science.prompt.startswith(
        "The following are multiple choice questions (with answers).\n\ntest text number 0\nA. "
    )
    assert science.choices == (" A", " B", " C")


def test_mmlu_weights_by_question_and_by_subject():
    items = [Item("", 0, group="law")] * 3 + [Item("", 1, group="virology")]
    assert mmlu.score(items, [0, 0, 0, 0]).metrics == {"accuracy": 0.75, "accuracy_macro": 0.5}


def test_mmlu_trains_on_what_there_is(local, hub):
    """Catches validation rows in training where the folder has no auxiliary training set."""
    here, there = everything("mmlu", local), everything("mmlu", hub)
    assert [len(here[split]) for split in SPLITS] == [24, 10, 10]
    assert {item.group for item in here["validation"]} == set(SUBJECTS)
    assert [len(there[split]) for split in SPLITS] == [10, 10, 10]
    assert all(" auxiliary text " not in item.prompt for item in there["validation"])


def test_stars_count_from_one_here_and_from_zero_on_the_hub(local, hub):
    """Catches classes off by one between training on the hub and testing on a folder."""
    for source in (local, hub):
        for name in ("amazon5", "sst5"):
            by_text = {
                item.prompt.removeprefix("Fine. "): item.target for item in find(name).load("test", source)
            }
            assert [by_text[f"test text number {index}"] for index in range(5)] == [0, 1, 2, 3, 4]
    assert stars.AMAZON_TASK.load("test", local)[0].prompt == "Fine. test text number 0"


def test_newsgroups_drops_empty_posts(tmp_path):
    rows = local_rows()["newsgroups20"]
    for split in ("train", "test"):
        rows[split].append({"text_stripped": " \n", "text": "From: me", "group": "sci.med"})
    items = everything("newsgroups20", write(tmp_path, {"newsgroups20": rows}))
    assert sum(map(len, items.values())) == 120
    assert all(item.prompt for split in SPLITS for item in items[split])


def test_clinc_tells_scopes_apart():
    items = [
        Item("", 3, group="in-scope"),
        Item("", 4, group="in-scope"),
        Item("", 150, group="out-of-scope"),
    ]
    metrics = clinc.score(items, [3, 150, 150]).metrics
    assert metrics == pytest.approx({"accuracy": 2 / 3, "accuracy_in_scope": 0.5, "recall_out_of_scope": 1.0})
    assert "accuracy_in_scope" not in clinc.score(items[2:], [0]).metrics


def test_clinc_maps_the_hub_by_name(hub):
    """Catches the hub's label numbers taken for ours: there out-of-scope is in the middle."""
    items = clinc.TASK.load("test", hub)[:3]
    assert [clinc.LABELS[item.target] for item in items] == ["translate", "oos", "accept_reservations"]
    assert [item.group for item in items] == ["in-scope", "out-of-scope", "in-scope"]
    assert len(set(clinc.LABELS)) == 151
    assert clinc.LABELS[:-1] == tuple(sorted(clinc.LABELS[:-1]))


def test_accuracy_and_stops():
    assert accuracy([Item("", 1), Item("", 0)], [1, 1]).correct == [1, 0]
    assert until_stop("\n one\n two\nQuestion: three", ("\nQuestion:", "four")) == "one\n two"
    assert until_stop(" one ", ()) == "one"
