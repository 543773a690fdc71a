"""Measure what the server adds to an answer of a model in its process.

    python recipes/serve/overhead.py [--requests 200] [--tokens 12]

The embedded model writes each answer twice, now one way first and now the other: by its batch alone, in a
loop, and asked for over HTTP by a plain client in a process of its own. It prints one JSON object, by the
clock and by the processor's time of this process, which other work on the machine does not touch: the median
milliseconds of both, and the quartiles of the differences.
"""

import argparse
import json
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import uvicorn
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft.data.rows import read_rows
from shadowpeft.embedded import CLINC150, MODEL
from shadowpeft.generate.batch import Batch, Row
from shadowpeft.generate.choose import Choice
from shadowpeft.serve.app import Gateway, Served
from shadowpeft.serve.local import LocalBackend, LocalModel, _Model
from shadowpeft.serve.run import bound


def alone(local: LocalModel, prompt: str, tokens: int) -> float:
    """Write an answer by the batch alone; return the seconds."""
    began = time.perf_counter()
    row = Row(local.tokenizer(prompt)["input_ids"], Choice(temperature=0))
    batch = Batch(_Model(local), local.model.device)
    written = [batch.add([row])[0].token]
    while len(written) < tokens:
        written.append(batch.step()[0].token)
    local.tokenizer.decode(written)
    return time.perf_counter() - began


def client(port: int, tokens: int, pipe: Any) -> None:
    """Ask for what comes through the pipe; send back the seconds."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while (prompt := pipe.recv()) is not None:
        body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        began = time.perf_counter()
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        got = b""
        while not got.endswith(b"}}"):
            got += connection.recv(65536)
        pipe.send((time.perf_counter() - began, got.count(b'"length"')))


def served(local: LocalModel) -> tuple[uvicorn.Server, int]:
    """Start the server in a thread; return it and its port."""
    import asyncio

    taken = bound("127.0.0.1", 0)
    backend = LocalBackend({"model": local}, 32, 1000)
    app = Gateway({"model": Served(backend, "model")}).app()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))

    async def life() -> None:
        await backend.start()
        await server.serve(sockets=[taken])
        await backend.close()

    threading.Thread(target=lambda: asyncio.run(life()), daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return server, taken.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=12)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    # Nothing ends an answer, so that both write as many tokens.
    tokenizer.eos_token, model.generation_config.eos_token_id = None, None
    local = LocalModel(model, tokenizer, 1024)
    server, port = served(local)
    pipe, other = multiprocessing.get_context("spawn").Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=client, args=(port, settings.tokens, other))
    worker.start()
    prompts = [row.fields["prompt"] for row in read_rows(str(CLINC150 / "test.jsonl"))][: settings.requests]
    times: dict[str, list[float]] = {"alone": [], "served": [], "alone_cpu": [], "served_cpu": []}

    def timed(name: str, answer: Callable[[], float]) -> None:
        worked = time.process_time()
        times[name].append(answer())
        times[f"{name}_cpu"].append(time.process_time() - worked)

    def over_http(prompt: str) -> float:
        pipe.send(prompt)
        seconds, whole = pipe.recv()
        assert whole == 1, "the answer ended early"
        return float(seconds)

    for number, prompt in enumerate(prompts):
        turns = [
            ("served", partial(over_http, prompt)),
            ("alone", partial(alone, local, prompt, settings.tokens)),
        ]
        # What comes second finds the prompt's length prepared, so both are first equally often.
        if number % 2 == 0:
            turns.reverse()
        for name, answer in turns:
            timed(name, answer)
    pipe.send(None)
    worker.join()
    server.should_exit = True
    print(json.dumps(summary(times, settings.tokens)))


def summary(times: dict[str, list[float]], tokens: int) -> dict[str, Any]:
    """Return the medians, and quartiles of what was added, in milliseconds; the first ten warmed up."""
    ms = {name: [1000 * each for each in values[10:]] for name, values in times.items()}
    found: dict[str, Any] = {"requests": len(ms["alone"]), "tokens": tokens}
    for kind in ("", "_cpu"):
        both = zip(ms[f"served{kind}"], ms[f"alone{kind}"], strict=True)
        added = statistics.quantiles([served - alone for served, alone in both], n=4)
        found |= {
            f"{name}{kind}_ms": round(statistics.median(ms[name + kind]), 2) for name in ("alone", "served")
        }
        found[f"added{kind}_ms"] = [round(value, 2) for value in added]
    return found


if __name__ == "__main__":
    main()
