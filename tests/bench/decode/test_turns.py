"""Methods take turns, each turn is kept at once, and what is wrong is not reported."""

import time

import pytest
import torch

from shadowpeft.bench.check import NumericalTestFailed
from shadowpeft.bench.decode import turns
from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.timings import CUT_OFF, Timings
from shadowpeft.bench.decode.turns import Rotation
from shadowpeft.bench.decode.ways import Turn
from shadowpeft.bench.machine import few_objects_to_collect
from shadowpeft.bench.measurements import MeasurementFile, read
from shadowpeft.generate.rules import Greedy

BASE, LORA = DecodeSpec("base"), DecodeSpec("lora")


class Counted:
    """A way that writes nothing and takes 1 ms a token."""

    def __init__(self, writer, prompts):
        self.writer = writer

    def first(self):
        return []

    def turn(self, repeats):
        return Turn([1.0] * repeats, [5.0] * repeats, [9.0] * repeats)


def line(spec: DecodeSpec, way: str = "generate") -> Timings:
    return Timings(spec, {"shape": "tiny", "model": None, "batch": 1, "context": 8, "way": way})


@pytest.fixture
def rotation(prompt, tmp_path, loader):
    said: list[str] = []

    def make(rounds=2, deadline=float("inf")) -> Rotation:
        file = MeasurementFile(tmp_path / "rows.jsonl")
        return Rotation([prompt], loader.load, rounds, 1, deadline=deadline, file=file, say=said.append)

    make.said, make.path = said, tmp_path / "rows.jsonl"
    with few_objects_to_collect():
        yield make


def test_turns_alternate_within_a_way(rotation, monkeypatch):
    """Catches A A B B, in which a device that slows down slows the second method."""
    monkeypatch.setattr(turns, "_WAYS", {"generate": Counted, "graph": Counted})
    ways = [[line(BASE), line(LORA)], [line(BASE, "graph")]]
    rotation().run(ways)
    assert [text.partition(":")[0] for text in rotation.said] == [
        "tiny 1 x 8 generate base",
        "tiny 1 x 8 generate lora",
        "tiny 1 x 8 generate base",
        "tiny 1 x 8 generate lora",
        "tiny 1 x 8 graph base",
        "tiny 1 x 8 graph base",
    ]
    assert [row["samples"] for row in read(rotation.path)] == [[[1.0], [1.0]]] * 3
    assert all(timings.kept is None for of_way in ways for timings in of_way)


def test_a_method_that_fails_does_not_cost_the_others(rotation, monkeypatch):
    """Catches a run that ends with the first failure, and one that tries it again in every round."""
    tries = []

    class Failing(Counted):
        def first(self):
            if "PeftModel" in type(self.writer.model).__name__:
                tries.append(1)
                raise RuntimeError("no static cache")

    monkeypatch.setattr(turns, "_WAYS", {"generate": Failing})
    rotation().run([[line(LORA), line(BASE)]])
    lora, base = read(rotation.path)
    assert lora["status"] == "failed: RuntimeError: no static cache"
    assert lora["ms_per_token"] is None
    assert (base["status"], len(base["samples"])) == ("ok", 2)
    assert tries == [1]


def test_what_does_not_come_back_has_its_row(rotation, monkeypatch):
    """Catches a compilation that takes all the time there is and leaves no trace."""

    class Endless(Counted):
        def first(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(turns, "_WAYS", {"generate": Endless})
    with pytest.raises(KeyboardInterrupt):
        rotation().run([[line(BASE)]])
    assert [row["status"] for row in read(rotation.path)] == [CUT_OFF]


def test_no_turn_begins_after_the_deadline(rotation):
    rotation(deadline=time.monotonic() - 1).run([[line(BASE), line(DecodeSpec("shadow", "auto"))]])
    assert rotation.said == ["tiny 1 x 8 generate base: not begun, limit_seconds are over"]
    assert read(rotation.path) == []


def test_what_cannot_run_has_its_reason(rotation, monkeypatch):
    monkeypatch.setattr(turns, "_WAYS", {"generate": Counted})
    missing = line(DecodeSpec("shadow", "triton"))
    missing.status = "missing: needs a GPU"
    rotation().run([[missing, line(BASE)]])
    assert [(row["name"], row["status"]) for row in read(rotation.path)] == [
        ("shadow:triton", "missing: needs a GPU"),
        ("base", "ok"),
    ]


def test_drafts_that_change_the_text_are_red(rotation, monkeypatch):
    """Catches a speed-up that is reported although every draft is taken for right."""
    line_of_drafts = line(DecodeSpec("draft", "auto", 4))
    rotation(rounds=1).run([[line_of_drafts]])
    assert line_of_drafts.status == "ok"
    answers = Greedy.answers

    def take_all(self, scores_1TV, drafts):
        for (token_11, _), draft in zip(answers(self, scores_1TV, drafts), [*drafts, None], strict=True):
            yield (token_11, False) if draft is None else (draft.token_11.cpu(), True)

    monkeypatch.setattr(Greedy, "answers", take_all)
    with pytest.raises(NumericalTestFailed, match=r"draft 4 \(generate\) writes another token"):
        rotation(rounds=1).run([[line(DecodeSpec("draft", "auto", 4))]])


def test_an_implementation_that_is_wrong_is_red(rotation, loader, monkeypatch):
    """Catches a kernel that is timed although its numbers are others."""
    load = loader.load

    def wrong(spec):
        writer = load(spec)
        if spec.impl == "auto":
            with torch.no_grad():
                writer.model.adapter.injections[0].up.weight.mul_(1.1)
        return writer

    monkeypatch.setattr(type(loader), "load", lambda self, spec: wrong(spec))
    with pytest.raises(NumericalTestFailed, match="the logits of the implementation 'auto' is off by"):
        rotation().run([[line(DecodeSpec("shadow", "auto"))]])
