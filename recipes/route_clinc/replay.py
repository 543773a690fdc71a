"""Send test requests through a running gateway, and compare what comes back with what the files say of them.

    shadowpeft serve --model BASE --adapter ADAPTER --dtype float32 --edge detached --cloud attached \
        --policy PAIR/routing.json --port 8100
    python recipes/route_clinc/replay.py http://127.0.0.1:8100/v1 --data DATA/test.jsonl --policy PAIR \
        --edge OUT/detached.jsonl --cloud OUT/attached.jsonl --output replay.jsonl

OUT is what `run.py` wrote and PAIR one of the folders of `summary.py`. OpenAI's own client asks for each of
the first --requests rows, one at a time: once as it comes, and once with `x-shadow-route: cloud`, for the
time that the cloud alone takes. `replay.jsonl` gets a line for each. What is printed, one JSON object, says
how many were sent and how many are right, the milliseconds that the server tells, and how many routes,
answers and scores differ from what the policy and the files lead to. The script ends with an error if one
does.

A score is compared where the answer is kept. One that is deferred is given up before its end, so that its
score is of a beginning.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import openai

from shadowpeft.data.rows import Row, read_rows
from shadowpeft.route import answered
from shadowpeft.route.answered import Answered
from shadowpeft.route.policy import Policy

# Scores of one answer, read in a batch and alone, differ by less in float32; the files have five digits.
SAME = 1e-3


class Files:
    """What `run.py` wrote of the edge and of the cloud, and the policy between them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.policy = Policy.load(args.policy)
        self.edge, self.cloud = self._read(args.edge), self._read(args.cloud)

    def _read(self, path: Path) -> dict[str, Answered]:
        rows = answered.read([(row.fields, row.where) for row in read_rows(str(path))])
        return {row.where: row for row in rows}

    def expected(self, where: str) -> dict[str, Any]:
        """Return where a row is to be answered, with what, and the edge's score."""
        row = self.edge[where]
        decision = self.policy.decide(row.tokens, row.answer)
        answer = row if decision.route == "edge" else self.cloud[where]
        return {"route": decision.route, "answer": answer.answer, "score": decision.score}


def ask(client: openai.OpenAI, prompt: str, tokens: int, route: str) -> dict[str, Any]:
    """Ask for an answer; return it with what the headers tell."""
    reply = client.completions.with_raw_response.create(
        model="routed", prompt=prompt, max_tokens=tokens, temperature=0,
        extra_headers={"x-shadow-route": route},
    )  # fmt: skip
    told = reply.headers
    found = {name: told.get(f"x-shadow-{name}") for name in ("route", "reason")}
    for name in ("score", "milliseconds", "edge-milliseconds"):
        value = told.get(f"x-shadow-{name}")
        found[name.replace("-", "_")] = None if value is None else float(value)
    return {**found, "answer": reply.parse().choices[0].text.strip()}


def compared(row: Row, where: str, client: openai.OpenAI, files: Files, tokens: int) -> dict[str, Any]:
    """Ask for a row as it comes and of the cloud alone; return its line."""
    prompt = row.fields["prompt"]
    found = {"where": where, **ask(client, prompt, tokens, "auto")}
    alone = ask(client, prompt, tokens, "cloud")
    right, expected = row.fields["completion"].strip(), files.expected(where)
    is_other = found["route"] == "edge" and abs(found["score"] - expected["score"]) > SAME
    return {
        **found,
        "right": found["answer"] == right,
        "cloud_milliseconds": alone["milliseconds"],
        "cloud_right": alone["answer"] == right,
        "other_route": found["route"] != expected["route"],
        "other_answer": found["answer"] != expected["answer"],
        "other_cloud_answer": alone["answer"] != files.cloud[where].answer,
        "other_score": is_other,
    }


def summed(lines: list[dict[str, Any]], files: Files) -> dict[str, Any]:
    """Sum up all lines."""

    def mean(values: Any) -> float:
        return round(statistics.mean(values), 4)

    routed, alone = ([line[name] for line in lines] for name in ("milliseconds", "cloud_milliseconds"))
    sent = [line["milliseconds"] for line in lines if line["route"] == "cloud"]
    kept = [line["milliseconds"] for line in lines if line["route"] == "edge"]
    return {
        "requests": len(lines),
        "sent": mean(line["route"] == "cloud" for line in lines),
        "sent_by_the_files": mean(files.expected(line["where"])["route"] == "cloud" for line in lines),
        "right": mean(line["right"] for line in lines),
        "cloud_right": mean(line["cloud_right"] for line in lines),
        "mean_ms": mean(routed),
        "mean_ms_kept": mean(kept) if kept else None,
        "mean_ms_sent": mean(sent) if sent else None,
        "mean_ms_cloud_alone": mean(alone),
        "of_its_latency": mean(routed) / mean(alone),
        **{name: sum(line[name] for line in lines) for name in lines[0] if name.startswith("other_")},
    }


def main() -> None:
    """Ask, write and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", help="of the gateway, such as http://127.0.0.1:8100/v1")
    parser.add_argument("--data", type=Path, required=True, help="test rows, as prepare.py wrote them")
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--edge", type=Path, required=True)
    parser.add_argument("--cloud", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--max-new-tokens", type=int, default=12)
    args = parser.parse_args()
    files, lines = Files(args), []
    rows = read_rows(str(args.data))[: args.requests]
    with openai.OpenAI(base_url=args.address, api_key="none", max_retries=0) as client:
        # So that all is warm.
        ask(client, rows[0].fields["prompt"], args.max_new_tokens, "auto")
        for at, row in enumerate(rows, start=1):
            lines.append(compared(row, f"test:{at}", client, files, args.max_new_tokens))
    args.output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = summed(lines, files)
    print(json.dumps(found, indent=1))
    if any(found[name] for name in found if name.startswith("other_")):
        raise SystemExit("the gateway answered otherwise than the files say")


if __name__ == "__main__":
    main()
