"""Write the packaged CLINC150 subset as prompt and completion rows.

    python recipes/clinc150_subset/build.py SOURCE OUTPUT

`SOURCE` holds CLINC150 as `{train,validation,test,train_oos_plus_extra}.jsonl` with the fields `text` and
`intent` (`oos` marks out-of-scope); `OUTPUT` is the folder to write.
"""

import argparse
import json
import random
from pathlib import Path

SEED = 20250101
OUT_OF_SCOPE = "oos"
OUT_OF_SCOPE_COMPLETION = " [REMOTE]"
OUT_OF_SCOPE_TEST_ROWS = 100

# The alphabetically first three intents of each domain, fixed before any training.
INTENTS = {
    "auto_and_commute": ["current_location", "directions", "distance"],
    "banking": ["account_blocked", "balance", "bill_balance"],
    "credit_cards": ["application_status", "apr", "card_declined"],
    "home": ["calendar", "calendar_update", "next_song"],
    "kitchen_and_dining": ["accept_reservations", "calories", "cancel_reservation"],
    "meta": ["cancel", "change_accent", "change_ai_name"],
    "small_talk": ["are_you_a_bot", "do_you_have_pets", "fun_fact"],
    "travel": ["book_flight", "book_hotel", "car_rental"],
    "utility": ["alarm", "calculator", "date"],
    "work": ["direct_deposit", "income", "insurance"],
}
CHOSEN = sorted(intent for intents in INTENTS.values() for intent in intents)

CARD = """\
# A subset of CLINC150

Short English requests with their intent, for examples and tests of `shadowpeft`.

From CLINC150 (https://github.com/clinc/oos-eval), by Stefan Larson, Anish Mahendran, Joseph J. Peper,
Christopher Clarke, Andrew Lee, Parker Hill, Jonathan K. Kummerfeld, Kevin Leach, Michael A. Laurenzano,
Lingjia Tang and Jason Mars, "An Evaluation Dataset for Intent Classification and Out-of-Scope
Prediction", EMNLP-IJCNLP 2019. Licence: CC BY 3.0 (https://creativecommons.org/licenses/by/3.0/), which
covers this subset too.

What was selected and changed, all by `recipes/clinc150_subset/build.py`:

- Of the 150 intents {intents} are kept: the alphabetically first three of each of the ten domains, \
fixed before
  any training and not for easiness. Each keeps all its rows of the official splits.
- Out-of-scope rows: all 100 official training rows, the {extra} training rows that only the "oos plus" \
variant
  has, all 100 validation rows, and of the 1,000 test rows a random {oos_test} (seed {seed}).
- Each text, unaltered, became `prompt` (`Request: TEXT`, a line break, `Intent:`); the intent, its
  underscores turned into spaces, became `completion` after one space; out-of-scope rows have ` [REMOTE]`.
  `intent` keeps the source's name. Rows were shuffled with seed {seed}.
- `labels.json` lists the {labels} completions.

| split | rows | of these out-of-scope |
| --- | --- | --- |
{rows}

Figures on this subset are not comparable with published CLINC150 results, which use 150 intents.

Intents: {names}.
"""


def read(path: Path) -> list[dict[str, str]]:
    """Read one JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def completion(intent: str) -> str:
    """Return the text that a model should continue a prompt with."""
    if intent == OUT_OF_SCOPE:
        return OUT_OF_SCOPE_COMPLETION
    return " " + intent.replace("_", " ")


def select(source: Path, split: str) -> list[dict[str, str]]:
    """Return the chosen rows of one split as prompt and completion, in a fixed random order."""
    shuffler = random.Random(SEED)
    rows = read(source / f"{split}.jsonl")
    inside = [row for row in rows if row["intent"] in CHOSEN]
    outside = [row for row in rows if row["intent"] == OUT_OF_SCOPE]
    if split == "train":
        outside += read(source / "train_oos_plus_extra.jsonl")
    if split == "test":
        outside = shuffler.sample(outside, OUT_OF_SCOPE_TEST_ROWS)
    chosen = inside + outside
    shuffler.shuffle(chosen)
    return [
        {
            "prompt": f"Request: {row['text']}\nIntent:",
            "completion": completion(row["intent"]),
            "intent": row["intent"],
        }
        for row in chosen
    ]


def card(splits: dict[str, list[dict[str, str]]], extra: int) -> str:
    """Describe the written files."""
    outside = {name: sum(row["intent"] == OUT_OF_SCOPE for row in rows) for name, rows in splits.items()}
    return CARD.format(
        intents=len(CHOSEN),
        extra=extra,
        oos_test=OUT_OF_SCOPE_TEST_ROWS,
        seed=SEED,
        labels=len(CHOSEN) + 1,
        rows="\n".join(f"| {name} | {len(rows):,} | {outside[name]} |" for name, rows in splits.items()),
        names="; ".join(f"{domain}: {', '.join(intents)}" for domain, intents in INTENTS.items()),
    )


def main() -> None:
    """Write the splits, `labels.json` and `README.md`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    splits = {split: select(args.source, split) for split in ("train", "validation", "test")}
    for split, rows in splits.items():
        (args.output / f"{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    labels = [completion(intent) for intent in [*CHOSEN, OUT_OF_SCOPE]]
    (args.output / "labels.json").write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
    extra = len(read(args.source / "train_oos_plus_extra.jsonl"))
    (args.output / "README.md").write_text(card(splits, extra), encoding="utf-8")


if __name__ == "__main__":
    main()
