"""Measure what trimming a vocabulary to the tokens of a domain would save, and what it would cost.

    python recipes/vocabulary/measure.py --tokenizer FOLDER --width 896 --train train.jsonl --test test.jsonl

The tokens kept are those that the domain's text uses, and those that they are merged from. Unseen text of the
domain is then tokenized differently where it uses a token that is gone.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer


def texts(path: Path, characters: int) -> Iterator[str]:
    """Yield the strings of each row, up to so many characters in all."""
    opened = {".gz": gzip.open}.get(path.suffix, open)
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            text = " ".join(value for value in json.loads(line).values() if isinstance(value, str))
            characters -= len(text)
            yield text
            if characters < 0:
                return


def closed(used: set[int], vocabulary: dict[str, int], merges: list[list[str]]) -> set[int]:
    """Add the tokens that tokens are merged from, and the bytes."""
    halves: dict[int, tuple[int, int]] = {}
    for left, right in merges:
        halves.setdefault(vocabulary[left + right], (vocabulary[left], vocabulary[right]))
    kept = {index for index in vocabulary.values() if index not in halves}
    wanted = list(used)
    while wanted:
        index = wanted.pop()
        if index not in kept:
            kept.add(index)
            wanted += halves[index]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--tokenizer", required=True, help="folder or hub id of a model with a byte-level BPE tokenizer"
    )
    parser.add_argument(
        "--width", type=int, required=True, help="the model's hidden size: numbers a token costs in one table"
    )
    parser.add_argument("--train", type=Path, required=True, help="text of the domain, JSON lines (.gz)")
    parser.add_argument("--test", type=Path, required=True, help="more of it, not counted")
    parser.add_argument("--characters", type=int, default=40_000_000, help="read at most so many of each")
    settings = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    seen = 0
    used: set[int] = set()
    for text in texts(settings.train, settings.characters):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        seen, used = seen + len(ids), used | set(ids)
    kept = closed(used, model["vocab"], model["merges"])
    tested = [
        index
        for text in texts(settings.test, settings.characters)
        for index in tokenizer(text, add_special_tokens=False).input_ids
    ]
    gone = sum(index not in kept for index in tested) / len(tested)
    saved = (len(model["vocab"]) - len(kept)) * settings.width
    print(
        f"{seen:,} tokens of the domain use {len(used):,} of {len(model['vocab']):,}; "
        f"{len(kept):,} are kept with what they are merged of"
    )
    print(
        f"saved: {saved / 1e6:.1f} M numbers in each of the tables (embeddings, head); "
        f"{gone:.2%} of {len(tested):,} new tokens are gone"
    )


if __name__ == "__main__":
    main()
