"""Answer rows of prompt and completion with GGUF files in llama.cpp, and count and time the answers.

    pip install xllamacpp
    python recipes/edge/answer_gguf.py --data test.jsonl small.gguf other.gguf

Prints the share of right answers and milliseconds per answer.
"""

import argparse
import json
import time
from pathlib import Path

import xllamacpp


def load(path: str) -> xllamacpp.Server:
    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads, settings.verbosity = 512, 1, 1, 0
    # Else llama.cpp adjusts settings to the memory that it finds.
    settings.fit_params = False
    return xllamacpp.Server(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", help="GGUF files")
    parser.add_argument("--data", type=Path, required=True, help="rows of prompt and completion, JSON lines")
    parser.add_argument("--max-new-tokens", type=int, default=12)
    settings = parser.parse_args()
    rows = [json.loads(line) for line in settings.data.read_text(encoding="utf-8").splitlines()]
    for path in settings.files:
        server, right, began = load(path), 0, time.perf_counter()
        for row in rows:
            answer = server.handle_completions(
                {"prompt": row["prompt"], "max_tokens": settings.max_new_tokens, "temperature": 0}
            )
            right += answer["choices"][0]["text"].strip() == row["completion"].strip()
        each, share = 1000 * (time.perf_counter() - began) / len(rows), 100 * right / len(rows)
        print(f"{path}: {share:.1f} % of {len(rows)} right, {each:.1f} ms per answer", flush=True)


if __name__ == "__main__":
    main()
