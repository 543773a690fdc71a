"""The recipes that measure the server, run small."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from helpers.runs import save_base, write_rows
from helpers.servers import gateway_of, running
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft.serve.local import LocalBackend, LocalModel

FOLDER = Path(__file__).parents[2] / "recipes" / "serve"


def printed(name: str, words: list[str], monkeypatch, capsys) -> dict:
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_load_finds_what_is_wrong(tmp_path, monkeypatch, capsys):
    """Catches a check that cannot fail: one prompt in the middle gets the answer of another one."""
    folder = save_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    local = LocalModel(model, AutoTokenizer.from_pretrained(folder), 128)
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": text} for text in ("what is", "hello", "two", "four")]
    )
    backend, mixed = LocalBackend({"base": local}, 8, 90), [0]
    with running(gateway_of(backend).app(), backend) as address:
        words = [address, "--data", str(rows), "--clients", "6", "--seconds", "1", "--tokens", "5"]
        found = printed("load.py", words, monkeypatch, capsys)
        assert found["statuses"].keys() == {"200"}
        assert found["requests"] > 12
        assert (found["lost"], found["crossed"], found["duplicated"], found["unlike"]) == (0, 0, 0, 0)
        assert found["ms"]["p50"] <= found["ms"]["p99"]
        lane = backend._lanes["base"]
        job = lane.job

        def crossed(ask):
            mixed[0] += 1
            other = type(ask)(**{**vars(ask), "prompt": "hello"})
            return job(other if mixed[0] > 8 and ask.prompt == "two" else ask)

        monkeypatch.setattr(lane, "job", crossed)
        found = printed("load.py", words, monkeypatch, capsys)
        assert found["crossed"] == found["unlike"] > 0


@pytest.mark.slow
def test_what_the_server_adds_is_measured(monkeypatch, capsys):
    found = printed("overhead.py", ["--requests", "14", "--tokens", "2"], monkeypatch, capsys)
    assert found["requests"] == 4
    assert found["alone_cpu_ms"] > 0
    assert len(found["added_cpu_ms"]) == 3
