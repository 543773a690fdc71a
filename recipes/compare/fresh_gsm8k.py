"""Write a gsm8k folder with test rows that no study has measured on.

    python recipes/compare/fresh_gsm8k.py DATA/gsm8k OUT/gsm8k --test-rows 1300 [--drawn-before 1300]

DATA/gsm8k is the published set (train.jsonl, test.jsonl), all of whose test rows have been read.
OUT/gsm8k/test.jsonl gets rows of its train split that `shadowpeft compare` has trained on and never measured
on; the validation rows that it cuts off there have been read and are not among them. All other rows, with
those validation rows, are OUT/gsm8k/train.jsonl, in their order; no question is in both files. The validation
rows of the new folder are among those of the published one. If such test rows have been read too,
`--drawn-before` says how many were drawn (several
numbers: one draw after the other). They are left out of both files, and the draw is made from the others. A
base may have seen the published train split in its pretraining: compare methods on these rows, and do not
compare a figure on them with one on the published test split.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from shadowpeft.compare.tasks.gsm8k import HUB, TASK, word_problem
from shadowpeft.compare.tasks.source import RowSource, get
from shadowpeft.compare.tasks.splits import squeezed
from shadowpeft.data.rows import Row
from shadowpeft.errors import UserError
from shadowpeft.storage import atomic

SEED = 0


def part(data_dir: Path, test_rows: int, drawn_before: Iterable[int] = ()) -> tuple[list[Row], list[Row]]:
    """Part the published train rows into new (train, test) rows, without those of earlier draws."""
    source = RowSource(str(data_dir))
    rows = source.rows(TASK.name, "train", HUB)
    questions = [squeezed(word_problem(get(row, "question", str))) for row in rows]
    trained_on, times = {squeezed(item.prompt) for item in TASK.load("train", source)}, Counter(questions)
    # A question that occurs twice stays in train with both rows: the loader would drop one that is also in
    # test.
    fresh = [
        number for number, question in enumerate(questions) if question in trained_on and times[question] == 1
    ]
    earlier, drawn = set[int](), set[int]()
    for flag, wanted in (*(("--drawn-before", count) for count in drawn_before), ("--test-rows", test_rows)):
        earlier, left = earlier | drawn, [number for number in fresh if number not in earlier | drawn]
        if not 0 < wanted <= len(left):
            raise UserError(
                f"{flag} must be 1 to {len(left):,}, the train rows that no study has measured on, "
                f"got {wanted:,}"
            )
        drawn = set(random.Random(SEED).sample(left, wanted))
    return [row for number, row in enumerate(rows) if number not in earlier | drawn], [
        rows[number] for number in sorted(drawn)
    ]


def lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row.fields, ensure_ascii=False) + "\n" for row in rows)


def write(published: Path, out: Path, test_rows: int, drawn_before: Iterable[int] = ()) -> None:
    for folder in (published, out):
        if folder.name != TASK.name:
            raise UserError(
                f"expected a folder named {TASK.name}, as --data-dir needs it, got {folder}; rename it"
            )
    if out.exists():
        raise UserError(f"{out} is there already and is not overwritten; choose another folder")
    train, test = part(published.parent, test_rows, drawn_before)
    atomic.write_together(
        out, {"train.jsonl": atomic.text(lines(train)), "test.jsonl": atomic.text(lines(test))}
    )
    print(f"{out}: {len(train):,} train rows, {len(test):,} test rows")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("published", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--test-rows", type=int, required=True)
    parser.add_argument("--drawn-before", type=int, nargs="+", default=[])
    try:
        write(**vars(parser.parse_args()))
    except UserError as error:
        raise SystemExit(f"fresh_gsm8k.py: {error}") from None


if __name__ == "__main__":
    main()
