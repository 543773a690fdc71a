"""SQuAD 2.0 and SubjQA."""

import pytest
from helpers.task_rows import (
    SPLITS,
    everything,
    local_rows,
    passages,
    write_sets,
)

from shadowpeft.compare.tasks import Item, squad
from shadowpeft.errors import DataError


def test_squad_without_train_or_halves_is_refused(tmp_path):
    source = write_sets(tmp_path, {"squad_v2": {"validation": passages("validation", 10)}})
    with pytest.raises(
        DataError,
        match=r"squad_v2 has no split 'train', and its validation rows no 'cs224n_part'.*; add train.jsonl",
    ):
        everything("squad_v2", source)


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
    (item,) = everything("subjqa", write_sets(tmp_path, {"subjqa": rows}))["test"]
    assert (item.target, item.group) == (("Great", "Great sound"), "answerable")
    assert item.prompt == "Context: Great sound.\nQuestion: How is the sound?\nAnswer:"
