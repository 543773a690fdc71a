"""The step that a graph captures writes what `generate` writes."""

import contextlib

import pytest
import torch
from helpers.benches import CPU

from shadowpeft.bench.decode import graph
from shadowpeft.bench.decode.graph import Graph, captured, on_side_stream
from shadowpeft.bench.decode.prompts import random_prompt
from shadowpeft.bench.decode.settings import CHECKED
from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.ways import Generate


@pytest.mark.parametrize(
    "spec", [DecodeSpec("base"), DecodeSpec("shadow", "auto")], ids=lambda spec: spec.name
)
def test_the_step_writes_what_generate_writes(spec, loader, monkeypatch):
    """Catches a position or a key that is off by one, and a token that is fed back too late."""
    monkeypatch.setattr(graph, "on_side_stream", lambda device: contextlib.nullcontext())
    steps = []
    monkeypatch.setattr(graph, "captured", lambda step: lambda: steps.append(step()))
    writer, prompts = loader.load(spec), [random_prompt(512, 2, 8, new_tokens=24, seed=3, device=CPU)]
    (want,) = Generate(writer, prompts).first()
    way = Graph(writer, prompts)
    (found,) = way.first()
    assert found.shape == (2, CHECKED)
    assert torch.equal(found, want[:, :CHECKED])
    assert min(len(row.unique()) for row in found) > 4
    assert len(steps) == 24 - 1 - graph.WARM
    turn = way.turn(2)
    assert len(turn.token_ms) == len(turn.first_ms) == 2
    assert min(turn.token_ms + turn.first_ms) > 0
    assert turn.call_ms == []


@pytest.mark.gpu
def test_capturing_does_not_run_the_step():
    """Catches a token that is lost or written twice."""
    device = torch.device("cuda")
    count = torch.zeros(1, device=device)
    with on_side_stream(device):
        count.add_(1)
    replay = captured(lambda: count.add_(1))
    assert count.item() == 1
    replay()
    assert count.item() == 2
