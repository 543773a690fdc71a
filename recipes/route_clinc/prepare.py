"""Write the rows of the robot task: CLINC150 with 34 actions, and `[REMOTE]` for all that is out of scope.

    python recipes/route_clinc/prepare.py SOURCE OUTPUT

`SOURCE` holds CLINC150 as `{train,validation,test,train_oos_plus_extra}.jsonl` with the fields `text`,
`intent` (`oos` marks out-of-scope) and `domain`. `OUTPUT` gets `train.jsonl`, `dev.jsonl`,
`calibration.jsonl`, `test.jsonl`, `shifted.jsonl` and `labels.json`.

The actions are the alphabetically first three intents of each of the ten domains, and the fourth of the first
four domains, fixed before any training. Of each action's 150 rows, 40 train and 5 choose settings, all of the
official training split. Of the others ten are shifted, and the rest is halved into calibration and test,
action by action; a tenth of either is out-of-scope. So these are not the official splits: a share of sent
requests is known to two points only from some thousand rows on each side.

The shifted rows are requests with typing errors, and as many of intents that the robot was never told of,
whose right answer is `[REMOTE]`, too.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

SEED = 20251130
ACTIONS, DOMAINS, EACH = 34, 10, 3
TRAIN, DEV, SHIFTED = 40, 5, 10
# Share of out-of-scope requests among those that calibrate and test.
OUT_OF_SCOPE, SHARE = "oos", 0.1
REMOTE = " [REMOTE]"

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """Read one JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def actions_of(rows: list[Row]) -> list[str]:
    """Choose the actions."""
    domains = sorted({row["domain"] for row in rows} - {OUT_OF_SCOPE})
    assert len(domains) == DOMAINS
    chosen = []
    for at, domain in enumerate(domains):
        intents = sorted({row["intent"] for row in rows if row["domain"] == domain})
        chosen += intents[: EACH + (at < ACTIONS - EACH * DOMAINS)]
    return sorted(chosen)


def question(row: Row, actions: list[str], text: str | None = None) -> Row:
    """Return a row as prompt and completion."""
    completion = " " + row["intent"].replace("_", " ") if row["intent"] in actions else REMOTE
    prompt = f"Request: {text or row['text']}\nIntent:"
    return {"prompt": prompt, "completion": completion, "intent": row["intent"]}


def with_errors(text: str, draw: random.Random) -> str:
    """Swap two letters, or lose one, in about every third word."""
    words = []
    for word in text.split():
        if len(word) > 3 and draw.random() < 1 / 3:
            at = draw.randrange(1, len(word) - 1)
            swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            word = draw.choice([swapped, word[:at] + word[at + 1 :]])
        words.append(word)
    return " ".join(words)


def distinct(rows: list[Row]) -> list[Row]:
    """Leave out a request that stands there twice, so that none is on two sides."""
    return list({" ".join(row["text"].lower().split()): row for row in reversed(rows)}.values())[::-1]


def sets_of(source: Path) -> dict[str, list[Row]]:
    """Draw all sets."""
    draw = random.Random(SEED)
    official = {name: read(source / f"{name}.jsonl") for name in ("train", "validation", "test")}
    actions = actions_of(official["train"])
    sets: dict[str, list[Row]] = defaultdict(list)
    everything = distinct([row for name in official for row in official[name]])
    training = {row["text"] for row in official["train"]}
    for action in actions:
        rows = [row for row in everything if row["intent"] == action]
        draw.shuffle(rows)
        # Stable: the official training rows first, both parts in the order drawn.
        rows.sort(key=lambda row: row["text"] not in training)
        sets["train"] += [question(row, actions) for row in rows[:TRAIN]]
        sets["dev"] += [question(row, actions) for row in rows[TRAIN : TRAIN + DEV]]
        rest = rows[TRAIN + DEV :]
        draw.shuffle(rest)
        shifted, pool = rest[:SHIFTED], rest[SHIFTED:]
        sets["shifted"] += [question(row, actions, with_errors(row["text"], draw)) for row in shifted]
        sets["calibration"] += [question(row, actions) for row in pool[::2]]
        sets["test"] += [question(row, actions) for row in pool[1::2]]
    outside = [row for row in everything if row["intent"] == OUT_OF_SCOPE]
    taught = [row for row in outside if row["text"] in training] + read(source / "train_oos_plus_extra.jsonl")
    sets["train"] += [question(row, actions) for row in taught]
    asked = [row for row in outside if row["text"] not in training]
    draw.shuffle(asked)
    for name, count in (("calibration", None), ("test", None), ("dev", 2 * DEV)):
        count = count or round(len(sets[name]) * SHARE / (1 - SHARE))
        sets[name] += [question(row, actions) for row in asked[:count]]
        asked = asked[count:]
    unknown = [row for row in distinct(official["test"]) if row["intent"] not in (*actions, OUT_OF_SCOPE)]
    sets["shifted"] += [question(row, actions) for row in draw.sample(unknown, len(sets["shifted"]))]
    for rows in sets.values():
        draw.shuffle(rows)
    return sets


def main() -> None:
    """Write the sets and the labels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    sets = sets_of(args.source)
    for name, rows in sets.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (args.output / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        remote = sum(row["completion"] == REMOTE for row in rows)
        print(f"{name}: {len(rows):,} rows, {remote:,} of them {REMOTE.strip()}")
    labels = sorted({row["completion"] for row in sets["train"]})
    (args.output / "labels.json").write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
