"""Write text of two kinds for a shadow's projection, shuffled.

    python recipes/large_base/mix.py --gsm8k DATA/gsm8k/train.jsonl --wiki DATA/wiki_en/train.jsonl.gz \\
        --output mix.jsonl

The text is gsm8k's training rows, twice, and as many characters of wiki_en.
"""

import argparse
import gzip
import json
import random
from pathlib import Path

PASSES = 2


def texts_of(gsm8k: Path, wiki: Path) -> list[str]:
    """Return the texts of both kinds, shuffled."""
    with gsm8k.open(encoding="utf-8") as file:
        sums = [f"{row['question']}\n{row['answer']}" for row in map(json.loads, file)] * PASSES
    wanted, pages, size = sum(map(len, sums)), list[str](), 0
    with gzip.open(wiki, "rt", encoding="utf-8") as file:
        for line in file:
            pages.append(json.loads(line)["text"])
            size += len(pages[-1])
            if size > wanted:
                break
    texts = sums + pages
    random.Random(0).shuffle(texts)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag in ("--gsm8k", "--wiki", "--output"):
        parser.add_argument(flag, required=True, type=Path)
    given = parser.parse_args()
    texts = texts_of(given.gsm8k, given.wiki)
    given.output.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    print(f"{len(texts):,} texts, {sum(map(len, texts)):,} characters")


if __name__ == "__main__":
    main()
