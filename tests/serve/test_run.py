"""The server's life, from its settings to its end."""

import os
import signal
import socket
import subprocess
import sys
import warnings

import httpx2 as httpx
import pytest
from helpers.servers import FakeUpstream, chunk, client_of, policy, running, until

from shadowpeft.errors import ConfigError, UserError
from shadowpeft.evaluation.roles import identity_of
from shadowpeft.serve.run import bound, built, keys_of
from shadowpeft.serve.settings import Serve

CHAT = {"messages": [{"role": "user", "content": "what"}], "temperature": 0, "max_tokens": 8}
NOBODY = "http://127.0.0.1:9/v1"


def serve(settings: Serve):
    found = built(settings)
    return running(found.gateway.app(), found)


@pytest.fixture
def routing(tmp_path):
    path = tmp_path / "routing.json"
    policy(1e3).save(path)
    return str(path)


@pytest.fixture
def here(base_folder, adapter_folder):
    return {"model": str(base_folder), "adapter": str(adapter_folder), "device": "cpu"}


def test_edge_and_cloud_in_one_process(here, routing):
    with (
        serve(Serve(**here, edge="detached", cloud="attached", policy=routing)) as address,
        client_of(address) as client,
    ):
        assert [model.id for model in client.models.list()] == [
            "routed", "edge", "cloud", "attached", "detached", "base"
        ]  # fmt: skip
        found = client.chat.completions.create(model="routed", **CHAT)
        want = client.chat.completions.create(model="attached", **CHAT)
        assert found.choices[0].message.content == want.choices[0].message.content
        assert found.choices[0].shadow["reason"] == "deferred"
        about = httpx.get(f"{address}/shadow").json()
    assert (about["edge"], about["policy"]["threshold"]) == ("detached", 1000)
    assert about["routes"] == [{"route": "cloud", "reason": "deferred", "count": 1}]


def test_edge_and_cloud_elsewhere_and_in_a_folder(base_folder, routing):
    """Catches a gateway that needs a model of its own, and a default that is not the pair."""
    with (
        running(FakeUpstream().app()) as there,
        serve(Serve(edge=str(base_folder), cloud=f"{there}#fake", policy=routing, device="cpu")) as address,
        client_of(address) as client,
    ):
        assert [model.id for model in client.models.list()] == ["routed", "edge", "cloud"]
        reply = httpx.post(f"{address}/chat/completions", json=CHAT)
    assert reply.json()["choices"][0]["message"]["content"] == "yes"
    assert reply.json()["model"] == "routed"


def test_the_policy_of_another_adapter_is_refused(here, adapter_folder, tmp_path):
    other, own = tmp_path / "other.json", tmp_path / "own.json"
    policy(adapter="x", adapter_hash="0" * 64).save(other)
    policy(adapter="x", adapter_hash=identity_of("m", str(adapter_folder)).adapter_hash).save(own)
    roles = {"edge": "detached", "cloud": "attached"}
    with pytest.raises(ConfigError, match="calibrated for the adapter x"):
        built(Serve(**here, **roles, policy=str(other)))
    built(Serve(**here, **roles, policy=str(own)))
    with pytest.warns(UserWarning, match="calibrated on a model in this library, and the edge is http"):
        built(Serve(**here, edge=NOBODY, cloud="attached", policy=str(own)))
    there = tmp_path / "there.json"
    policy(endpoint=NOBODY).save(there)
    with pytest.warns(UserWarning, match=f"calibrated on {NOBODY}, and the edge is detached"):
        built(Serve(**here, **roles, policy=str(there)))


def test_an_edge_without_the_adapter_of_the_policy(here, base_folder, adapter_folder, tmp_path):
    """Catches the base kept to a promise about its shadow, and a folder of anything taken without a word."""
    adapter_hash = identity_of("m", str(adapter_folder)).adapter_hash
    policy(adapter="x", adapter_hash=adapter_hash).save(tmp_path / "own.json")
    given = {**here, "cloud": "attached", "policy": str(tmp_path / "own.json")}
    for other, cloud in (("base", "attached"), ("attached", "base")):
        with pytest.raises(ConfigError, match=f"of the adapter x, and the edge {other} is another model"):
            built(Serve(**{**given, "cloud": cloud}, edge=other))
    with pytest.warns(UserWarning, match=f"nothing in {base_folder} tells whether it was exported from it"):
        built(Serve(**given, edge=str(base_folder)))


def test_a_role_that_is_nothing_is_refused(here, routing):
    with pytest.raises(ConfigError, match="the models above are: attached, detached, base"):
        built(Serve(**here, edge="detatched", cloud="attached", policy=routing))


def test_a_policy_of_labels_is_refused(here, tmp_path):
    policy(0.5, "class_probability", knots=((0.0, 0.5), (1.0, 0.0))).save(tmp_path / "routing.json")
    with pytest.raises(ConfigError, match="for answers chosen among labels"):
        built(Serve(**here, edge="detached", cloud="attached", policy=str(tmp_path)))


def test_an_edge_that_is_not_there_is_told_at_the_start(here, tmp_path):
    policy(endpoint=NOBODY).save(tmp_path / "routing.json")
    with (
        pytest.raises(UserError, match="the edge cannot be reached"),
        serve(Serve(**here, edge=NOBODY, cloud="attached", policy=str(tmp_path))),
    ):
        pass


@pytest.mark.parametrize(
    ("parts", "score", "said"),
    [
        ((chunk("yes"), chunk(None, "stop")), "min_logprob", "gives no log-probabilities"),
        (FakeUpstream.parts, "max_entropy", "needs entropies"),
    ],
)
def test_an_edge_that_cannot_be_judged_is_told_at_the_start(parts, score, said, here, tmp_path):
    policy(score=score, endpoint=NOBODY).save(tmp_path / "routing.json")
    with (
        running(FakeUpstream(parts).app()) as there,
        pytest.raises(UserError, match=said),
        serve(Serve(**here, edge=there, cloud="attached", policy=str(tmp_path))),
    ):
        pass


def test_a_cloud_that_is_not_there_is_a_warning(here, routing):
    """Catches an edge box that does not start because its network is not up yet."""
    settings = Serve(**here, edge="detached", cloud=NOBODY, policy=routing)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with serve(settings) as address:
            replies = [httpx.post(f"{address}/chat/completions", json=CHAT, timeout=20) for _ in range(3)]
            health = httpx.get(f"{address[:-3]}/health").json()
    assert "until it is back, deferred requests are answered by the edge" in str(caught[0].message)
    assert [reply.headers["x-shadow-reason"] for reply in replies] == ["cloud-failed"] * 3
    assert health == {"status": "degraded"}


def test_a_port_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{port}.*--port"):
            bound("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot listen at"):
        bound("no such host", 0)


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("# ours\none\n\n two \n", encoding="utf-8")
    monkeypatch.setenv("SHADOWPEFT_API_KEYS", "three, ,four")
    assert keys_of(Serve("m", api_keys=str(path))) == ["three", "four", "one", "two"]
    path.write_text("# none\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds none"):
        keys_of(Serve("m", api_keys=str(path)))
    with pytest.raises(ConfigError, match="cannot be read"):
        keys_of(Serve("m", api_keys=str(tmp_path / "nowhere")))
    monkeypatch.delenv("SHADOWPEFT_API_KEYS")
    with pytest.warns(UserWarning, match="anyone there may ask"):
        assert keys_of(Serve("m", host="0.0.0.0")) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keys_of(Serve("m", host="localhost")) == []


@pytest.mark.slow
def test_a_signal_ends_it_when_the_running_requests_are_answered(base_folder):
    """Catches an answer that is cut at the end, and an exit code that looks like a crash."""
    command = [sys.executable, "-m", "shadowpeft", "serve", "--model", str(base_folder), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, encoding="utf-8"
    ) as process:
        line = process.stderr.readline()
        assert line.startswith("http://127.0.0.1:"), line
        address = line.split()[0]
        body = {**CHAT, "max_tokens": 90, "stream": True}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=20) as reply:
            parts = reply.iter_text()
            next(parts)
            process.send_signal(signal.SIGTERM)
            text = "".join(parts)
        until(lambda: process.poll() is not None)
        assert text.endswith("data: [DONE]\n\n")
        assert process.stderr.read() == ""
    assert process.returncode == 0
