"""Make a small data folder for `make study-smoke` without a network.

    python recipes/compare/smoke_data.py DIR

`clinc150` holds the subset of CLINC150 that ships in the package (CC BY 3.0, see its README), in the layout
of the full set; `gsm8k` holds word problems of one addition, made here; `wiki_en` holds plain sentences, made
here, to measure forgetting on.
"""

import argparse
import json
import random
from pathlib import Path

from shadowpeft.embedded import CLINC150

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn")
THINGS = ("apples", "books", "coins", "eggs", "pens", "shells")
ROWS = {"train": 600, "validation": 60, "test": 60}
PLACES = ("the river", "the old town", "a garden", "the harbour", "a small school", "the market")


def requests(split: str) -> list[dict]:
    rows = map(json.loads, (CLINC150 / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        {
            "text": row["prompt"].removeprefix("Request: ").removesuffix("\nIntent:"),
            "intent": row["intent"],
            "oos": row["intent"] == "oos",
        }
        for row in rows
    ]


def sums(draw: random.Random) -> dict[str, list[dict]]:
    """Make different problems for every split: names, things and numbers are drawn without repetition."""
    known = [
        (name, thing, a, b) for name in NAMES for thing in THINGS for a in range(1, 10) for b in range(1, 10)
    ]
    drawn = iter(draw.sample(known, sum(ROWS.values())))
    return {split: [problem(*next(drawn)) for _ in range(count)] for split, count in ROWS.items()}


def problem(name: str, thing: str, a: int, b: int) -> dict:
    question = f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have?"
    return {
        "question": question,
        "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}",
        "final": str(a + b),
    }


def texts(draw: random.Random, count: int = 40) -> list[dict]:
    sentences = [
        f"{name} walked to {place} with {n} {thing}."
        for name in NAMES
        for place in PLACES
        for thing in THINGS
        for n in (2, 7)
    ]
    return [{"id": number, "text": " ".join(draw.sample(sentences, 8))} for number in range(count)]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    draw = random.Random(0)
    for split, rows in sums(draw).items():
        write(folder / "clinc150" / f"{split}.jsonl", requests(split))
        write(folder / "gsm8k" / f"{split}.jsonl", rows)
    write(folder / "wiki_en" / "validation.jsonl", texts(draw))


if __name__ == "__main__":
    main()
