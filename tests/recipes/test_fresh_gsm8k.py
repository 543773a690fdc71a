"""The recipe that draws fresh test rows of GSM8K."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from helpers.noted_cells import (
    write,
)

from shadowpeft.compare.tasks import RowSource, find
from shadowpeft.compare.tasks.splits import squeezed

RECIPES = Path(__file__).parents[2] / "recipes" / "compare"


@pytest.fixture
def published(tmp_path) -> Path:
    """A gsm8k folder of 60 train rows. Fresh are 51: six are validation rows, two the same question.

    Also one a question of the test split.
    """
    rows = [
        {"question": f"{i} + {i}?", "answer": f"Add.\n#### {2 * i}", "final": str(2 * i)} for i in range(60)
    ]
    rows[50] = {**rows[2], "question": " 2 +  2?"}
    write(tmp_path / "published" / "gsm8k" / "train.jsonl", rows)
    write(tmp_path / "published" / "gsm8k" / "test.jsonl", [rows[3], {**rows[1], "question": "1 - 1?"}])
    return tmp_path / "published" / "gsm8k"


@pytest.fixture
def fresh(published, tmp_path, monkeypatch):
    """Run the recipe on the folder."""

    def write_fresh(
        test_rows: int, out: Path = tmp_path / "fresh" / "gsm8k", before: tuple[int, ...] = ()
    ) -> Path:
        drawn = ["--drawn-before", *map(str, before)] if before else []
        monkeypatch.setattr(
            sys, "argv", ["fresh_gsm8k.py", str(published), str(out), f"--test-rows={test_rows}", *drawn]
        )
        runpy.run_path(str(RECIPES / "fresh_gsm8k.py"), run_name="__main__")
        return out

    return write_fresh


def prompts(folder: Path) -> dict[str, set[str]]:
    """Read every split as a study does."""
    source = RowSource(str(folder.parent))
    return {
        split: {squeezed(item.prompt) for item in find("gsm8k").load(split, source)}
        for split in ("train", "validation", "test")
    }


@pytest.mark.parametrize("test_rows", [20, 51])
def test_fresh_test_rows_were_trained_on_and_never_read(published, fresh, test_rows):
    """Catches a test row that was a validation or test row before, a question in two splits.

    Also rows that are lost or in another order.
    """
    out = fresh(test_rows)
    old, new = prompts(published), prompts(out)
    assert len(new["test"]) == test_rows
    assert new["test"] < old["train"]
    assert new["validation"] <= old["validation"]
    written = {
        split: (out / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        for split in ("train", "test")
    }
    lines = (published / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line not in written["test"]] == written["train"]
    assert [line for line in lines if line not in written["train"]] == written["test"]
    questions = {
        split: {squeezed(json.loads(line)["question"]) for line in rows} for split, rows in written.items()
    }
    assert not questions["train"] & questions["test"], "the loader would drop it from train without a word"


def test_later_draws_leave_out_what_was_drawn_before(published, fresh, tmp_path):
    """Catches a test row that an earlier draw's study has read, and one of them among the train rows."""
    draws, before = [], ()
    for number, rows in enumerate((20, 15, 16)):
        draws.append(fresh(rows, tmp_path / str(number) / "gsm8k", before))
        before = (*before, rows)
    tests = [prompts(out)["test"] for out in draws]
    assert len(set.union(*tests)) == 51
    assert set.union(*tests) < prompts(published)["train"]
    for number, out in enumerate(draws):
        assert not (prompts(out)["train"] | prompts(out)["validation"]) & set.union(*tests[: number + 1])
    with pytest.raises(
        SystemExit,
        match=r"--test-rows must be 1 to 16, the train rows that no study has measured on, got 17$",
    ):
        fresh(17, tmp_path / "more" / "gsm8k", (20, 15))
    with pytest.raises(
        SystemExit,
        match=r"--drawn-before must be 1 to 31, the train rows that no study has measured on, got 40$",
    ):
        fresh(1, tmp_path / "more" / "gsm8k", (20, 40))


def test_fresh_test_rows_are_the_same_every_time_and_overwrite_nothing(fresh, tmp_path):
    """Catches rows that another draw reads again, a folder that is lost, and more rows than there are."""
    out = fresh(20)
    again = fresh(20, tmp_path / "again" / "gsm8k")
    before = (out / "test.jsonl").read_bytes()
    assert (again / "test.jsonl").read_bytes() == before
    with pytest.raises(
        SystemExit,
        match=r"^fresh_gsm8k.py: \S+gsm8k is there already and is not overwritten; choose another folder$",
    ):
        fresh(10)
    assert (out / "test.jsonl").read_bytes() == before
    for wrong in (52, 0):
        with pytest.raises(
            SystemExit,
            match=f"--test-rows must be 1 to 51, the train rows that no study has measured on, got {wrong}$",
        ):
            fresh(wrong, tmp_path / "more" / "gsm8k")
    with pytest.raises(
        SystemExit, match=r"expected a folder named gsm8k, as --data-dir needs it, got \S+mine; rename it$"
    ):
        fresh(10, tmp_path / "mine")
