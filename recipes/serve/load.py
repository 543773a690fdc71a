"""Load a server with many clients, and check that no answer is lost, crossed, duplicated or other than alone.

    shadowpeft serve --model MODEL --adapter run/adapter --dtype float32 --port 8100
    python recipes/serve/load.py http://127.0.0.1:8100/v1 --data test.jsonl [--clients 200] [--pid PID]

Each prompt is first asked alone, at temperature 0, with the log-probabilities of its tokens: they tell two
prompts apart that have the same answer. Then every client asks one prompt after the other, half of them as a
stream, and compares. It prints one JSON object: requests, tokens, errors by status, answers that were lost
(no whole reply), crossed (those of another prompt), duplicated (an id that came before) or otherwise unlike,
requests a second, milliseconds of a request (p50, p90, p99), routes, and the server's memory in MB at the
beginning and the end (with --pid).

Give the server float32: in 16 bits a text depends on the texts beside it by rounding.
"""

import argparse
import asyncio
import itertools
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Log-probabilities of one prompt differ by less, in float32; those of two by more than `APART`.
SAME, APART = 2e-4, 1e-3


@dataclass
class Answer:
    """One reply."""

    status: int
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    number: str = ""
    route: str = ""
    finished: bool = False

    def is_like(self, other: "Answer", within: float = SAME) -> bool:
        """Return whether it has the same text and the same log-probabilities."""
        if self.text != other.text or len(self.logprobs) != len(other.logprobs):
            return False
        return all(abs(a - b) < within for a, b in zip(self.logprobs, other.logprobs, strict=True))


class Client:
    """One connection, which is kept open: plain sockets, so that the clients take little of the machine."""

    def __init__(self, address: str, model: str | None, tokens: int) -> None:
        parts = urlsplit(address)
        self.host, self.port, self.path = parts.hostname, parts.port or 80, f"{parts.path}/completions"
        self.model, self.tokens = model, tokens
        self.reader: Any = None
        self.writer: Any = None

    async def ask(self, prompt: str, stream: bool) -> Answer:
        """Ask for the text behind a prompt."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        body: dict[str, Any] = {
            "prompt": prompt, "max_tokens": self.tokens, "temperature": 0, "logprobs": 0, "stream": stream,
        }  # fmt: skip
        if self.model is not None:
            body["model"] = self.model
        data = json.dumps(body).encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
        self.writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        status, headers, content = await self._reply()
        if headers.get("connection") == "close":
            self.close()
        found = Answer(status, route=headers.get("x-shadow-route", ""))
        if status != 200:
            return found
        if stream:
            *chunks, end = [part.removeprefix(b"data: ") for part in content.strip().split(b"\n\n")]
            found.finished = end == b"[DONE]"
        else:
            chunks, found.finished = [content], True
        for chunk in chunks:
            if chunk.startswith(b":"):
                continue
            values = json.loads(chunk)
            found.number = values.get("id", "")
            found.finished = found.finished and "error" not in values
            for choice in values.get("choices", ()):
                found.text += choice["text"]
                found.logprobs += (choice["logprobs"] or {}).get("token_logprobs", ())
        return found

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    async def _reply(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        if "content-length" in headers:
            content = await self.reader.readexactly(int(headers["content-length"]))
        else:
            content = b""
            while size := int(await self.reader.readline(), 16):
                content += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        return int(head[0].split()[1]), headers, content


@dataclass
class Found:
    """What came of all requests."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    routes: Counter = field(default_factory=Counter)
    lost: int = 0
    crossed: int = 0
    duplicated: int = 0
    unlike: int = 0
    tokens: int = 0
    numbers: set[str] = field(default_factory=set)

    def add(self, prompt: str, answer: Answer, seconds: float, expected: dict[str, Answer]) -> None:
        """Count one reply."""
        self.statuses[answer.status] += 1
        if answer.status != 200:
            return
        self.seconds.append(seconds)
        self.routes[answer.route] += 1
        self.tokens += len(answer.logprobs)
        self.lost += not answer.finished
        self.duplicated += answer.number in self.numbers
        self.numbers.add(answer.number)
        if answer.finished and not answer.is_like(expected[prompt]):
            others = (other for text, other in expected.items() if text != prompt)
            self.crossed += any(answer.is_like(other) for other in others)
            self.unlike += 1


async def work(
    client: Client, end: float, expected: dict[str, Answer], found: Found, chance: random.Random
) -> None:
    prompts = list(expected)
    while time.perf_counter() < end:
        prompt, began = chance.choice(prompts), time.perf_counter()
        try:
            answer = await asyncio.wait_for(client.ask(prompt, stream=chance.random() < 0.5), 120)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            found.lost += 1
            client.close()
            continue
        found.add(prompt, answer, time.perf_counter() - began, expected)
        if answer.status != 200:
            await asyncio.sleep(0.5)
    client.close()


def memory(pid: int | None) -> float | None:
    """Return the megabytes that a process has in memory."""
    if pid is None:
        return None
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000, 1)


def quantile(values: list[float], share: float) -> float:
    return round(1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))], 1) if values else 0.0


def told_apart(expected: dict[str, Answer]) -> dict[str, Answer]:
    """Return the prompts whose answers no other one's could be taken for."""
    kept: dict[str, Answer] = {}
    for prompt, answer in expected.items():
        if not any(answer.is_like(other, APART) for other in kept.values()):
            kept[prompt] = answer
    return kept


async def measure(settings: argparse.Namespace) -> dict[str, Any]:
    lines = settings.data.read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in itertools.islice(lines, settings.prompts)]
    first = Client(settings.address, settings.model, settings.tokens)
    expected = {prompt: await first.ask(prompt, stream=False) for prompt in prompts}
    first.close()
    wrong = [answer for answer in expected.values() if answer.status != 200]
    if wrong:
        raise SystemExit(f"the server answered with status {wrong[0].status}")
    expected = told_apart(expected)
    found, before = Found(), memory(settings.pid)
    began = time.perf_counter()
    end = began + settings.seconds
    clients = [Client(settings.address, settings.model, settings.tokens) for _ in range(settings.clients)]
    halfway = asyncio.get_running_loop().create_task(_later(settings.seconds / 2, settings.pid))
    await asyncio.gather(
        *(work(client, end, expected, found, random.Random(seed)) for seed, client in enumerate(clients))
    )
    taken = time.perf_counter() - began
    return {
        "clients": settings.clients,
        "prompts": len(expected),
        "seconds": round(taken, 1),
        "requests": sum(found.statuses.values()),
        "statuses": dict(found.statuses),
        "lost": found.lost,
        "crossed": found.crossed,
        "duplicated": found.duplicated,
        "unlike": found.unlike,
        "tokens": found.tokens,
        "requests_per_second": round(found.statuses[200] / taken, 2),
        "ms": {f"p{100 * share:g}": quantile(found.seconds, share) for share in (0.5, 0.9, 0.99)},
        "routes": dict(found.routes),
        "memory_mb": [before, await halfway, memory(settings.pid)],
    }


async def _later(seconds: float, pid: int | None) -> float | None:
    await asyncio.sleep(seconds)
    return memory(pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address", help="of the server, such as http://127.0.0.1:8100/v1")
    parser.add_argument("--data", type=Path, required=True, help="rows with a prompt, JSON lines")
    parser.add_argument("--model", help="a model of the server; its default otherwise")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--prompts", type=int, default=60, help="how many of the rows")
    parser.add_argument("--tokens", type=int, default=12, help="most tokens of an answer")
    parser.add_argument("--pid", type=int, help="process of the server, for its memory")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
