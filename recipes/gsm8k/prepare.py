"""Write GSM8K (rows of question and answer) as prompt and completion rows.

python recipes/gsm8k/prepare.py GSM8K/train.jsonl OUT.jsonl
"""

import json
import sys
from pathlib import Path


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    with source.open(encoding="utf-8") as rows, target.open("w", encoding="utf-8") as out:
        for row in map(json.loads, rows):
            pair = {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"}
            out.write(json.dumps(pair) + "\n")


if __name__ == "__main__":
    main()
