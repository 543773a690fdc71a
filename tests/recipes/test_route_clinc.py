"""The recipe of the robot task, run small."""

import gzip
import json
import runpy
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace

import pytest
from helpers.answered import REMOTE, made_up
from helpers.recipes import ROOT, run, write_rows
from helpers.servers import Canned, policy, running
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import attach
from shadowpeft.data.rows import Row
from shadowpeft.embedded import MODEL, SHADOW
from shadowpeft.evaluation.roles import identity_of
from shadowpeft.evaluation.scored import scored_answers
from shadowpeft.route import answered
from shadowpeft.route.answered import Answered, Answerer
from shadowpeft.route.policy import Policy
from shadowpeft.route.scores import TokenScores
from shadowpeft.serve.app import Gateway, Served
from shadowpeft.serve.routed import Role, Routed

FOLDER = "route_clinc"


def test_the_rows_are_apart_and_of_the_papers_shape(tmp_path):
    """Catches a request that both trains and tests, and a share of out-of-scope requests that is another."""
    intents = [(f"domain{domain}", f"d{domain}_intent{at}") for domain in range(10) for at in range(5)]

    def rows(split, each, outside):
        inside = [
            {"text": f"{split} request {at} of the {intent}", "intent": intent, "domain": domain}
            for domain, intent in intents
            for at in range(each)
        ]
        return inside + [
            {"text": f"{split} other {at}", "intent": "oos", "domain": "oos"} for at in range(outside)
        ]

    for split, each, outside in (("train", 50, 20), ("validation", 5, 30), ("test", 25, 80)):
        write_rows(tmp_path / "clinc" / f"{split}.jsonl", rows(split, each, outside))
    write_rows(tmp_path / "clinc" / "train_oos_plus_extra.jsonl", rows("extra", 0, 5))
    run(f"{FOLDER}/prepare.py", tmp_path / "clinc", tmp_path / "rows")
    sets = {
        name: [
            json.loads(line) for line in (tmp_path / "rows" / f"{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in ("train", "dev", "calibration", "test", "shifted")
    }
    assert len(json.loads((tmp_path / "rows" / "labels.json").read_text("utf-8"))) == 35
    assert [len(sets[name]) for name in ("train", "dev", "shifted")] == [34 * 40 + 25, 34 * 5 + 10, 680]
    prompts = [row["prompt"] for rows in sets.values() for row in rows]
    assert len(prompts) == len(set(prompts))
    for name in ("calibration", "test"):
        remote = sum(row["completion"] == " [REMOTE]" for row in sets[name])
        assert remote / len(sets[name]) == pytest.approx(0.1, abs=0.01)
    assert all(row["intent"] != "oos" for row in sets["shifted"])


def answers(folder, name, shift, seed):
    """Answers as `run.py` writes them; of every set the same share is the deferral answer."""
    rows = []
    for part, count in (("calibration", 300), ("test", 300), ("shifted", 60)):
        hardness = shift - 3 * (part == "shifted")
        for at, row in enumerate(made_up(count, seed, shift=hardness, deferred=0.1), start=1):
            rows.append(replace(row, where=f"{part}:{at}", cloud_right=None, seconds=0.01 * (seed + 1)))
    answered.write(rows, folder / f"{name}.jsonl")


def test_the_summary_is_of_the_pairs_that_it_names(tmp_path):
    for name, shift, seed in (("detached", 5, 0), ("attached", 6, 1), ("small_lora", 4.5, 2)):
        answers(tmp_path / "answers", name, shift, seed)
    # What is kept of a run is packed.
    plain = tmp_path / "answers" / "attached.jsonl"
    (tmp_path / "answers" / "attached.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    words = ("--risk", 0.2, "--resamples", 1)
    said = run(
        f"{FOLDER}/summary.py", "--answers", tmp_path / "answers", "--output", tmp_path / "out", *words
    )
    found = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))["pairs"]
    assert set(found) == {"detached-attached", "small_lora-attached"}
    one = found["detached-attached"]
    policy = Policy.load(tmp_path / "out" / "detached-attached")
    assert (policy.deferral, policy.counts.rows, one["threshold"]) == (REMOTE, 300, policy.threshold)
    assert one["test"]["latency"] == pytest.approx(0.01 / 0.02 + one["test"]["sent"][0])
    assert one["resampled_risk"]["resamples"] == 1
    assert one["test"]["risk"][0] < one["shifted"]["risk"][0]
    assert said.count("| detached, attached |") == 2
    assert one["edge_cost"] == {"ms": pytest.approx(10), "tokens": 2}


def test_what_an_answer_takes_is_told_by_its_tokens(monkeypatch):
    """Catches a fit in other units, or of answers that were not timed."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / FOLDER))
    cost_of = runpy.run_path(str(ROOT / "recipes" / FOLDER / "summary.py"))["cost_of"]
    rows = {}
    for at, (count, seconds) in enumerate(((1, 0.006), (2, 0.008), (4, 0.012), (9, None))):
        row = replace(made_up(1)[0], tokens=TokenScores([-0.1] * count), seconds=seconds)
        rows[f"test:{at}"] = row
    found = cost_of(rows)
    assert found == pytest.approx({"ms": 26 / 3, "tokens": 7 / 3, "ms_of_every_answer": 4, "ms_a_token": 2})


@pytest.mark.slow
def test_models_are_trained_and_answer(tmp_path):
    """Catches a run that ends without files, and a projection that is not fitted."""
    config = qwen3_config(
        vocab_size=AutoModelForCausalLM.from_pretrained(MODEL).config.vocab_size,
        eos_token_id=1,
        pad_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "small")
    for name in ("train", "dev", "calibration", "test", "shifted"):
        rows = [{"prompt": f"Request: {name} {at}\nIntent:", "completion": " [REMOTE]"} for at in range(4)]
        write_rows(tmp_path / "rows" / f"{name}.jsonl", rows)
    small = ("--steps", 1, "--batch-size", 2, "--timed", 1, "--shadow-rates", 1e-3, "--lora-rates", 1e-3)
    run(
        f"{FOLDER}/run.py", "--data", tmp_path / "rows", "--model", MODEL, "--small", tmp_path / "small",
        "--output", tmp_path / "out", "--max-new-tokens", 3, *small,
    )  # fmt: skip
    record = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert set(record["answers"]) == {"detached", "attached", "small_lora", "cloud_lora"}
    assert record["answers"]["detached"]["parameters"] < record["answers"]["attached"]["parameters"]
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "detached.jsonl").read_text("utf-8").splitlines()
    ]
    assert [line["where"] for line in lines][::4] == ["calibration:1", "test:1", "shifted:1"]
    assert sum("seconds" in line for line in lines) == 1


@pytest.mark.slow
def test_a_pretrained_shadow_is_the_smaller_model(tmp_path):
    """Catches a shadow that starts at random, a small model of other weights, another adapter's hash."""
    for name in ("train", "dev", "calibration", "test", "shifted"):
        rows = [{"prompt": f"Request: {name} {at}\nIntent:", "completion": " [REMOTE]"} for at in range(4)]
        write_rows(tmp_path / "rows" / f"{name}.jsonl", rows)
    few = ("--steps", 1, "--batch-size", 2, "--timed", 2, "--max-new-tokens", 3)
    # A rate of nothing keeps what the trainings start from.
    rates = [word for name in ("shadow", "lora", "full") for word in (f"--{name}-rates", 0.0)]
    run(
        f"{FOLDER}/run.py", "--data", tmp_path / "rows", "--model", MODEL, "--small", SHADOW,
        "--output", tmp_path / "out", "--adapter", tmp_path / "kept", "--name", "embedded",
        "--shadow-rate", 0.0, *few, *rates,
    )  # fmt: skip
    found = {
        name: [
            json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in ("detached", "attached", "small_lora", "small_full", "cloud_lora")
    }
    start = attach(AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"), shadow=SHADOW).detached()
    rows = [Row({"prompt": "Request: test 0\nIntent:", "completion": " [REMOTE]"}, "test:1")]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    (expected,) = scored_answers(start, tokenizer, rows, max_new_tokens=3, progress=False)
    for name in ("detached", "small_lora", "small_full"):
        line = found[name][4]
        assert (line["where"], line["answer"]) == ("test:1", expected.answer)
        assert line["logprobs"] == pytest.approx(expected.tokens.logprobs, abs=1e-4)
    assert found["attached"][4]["logprobs"] == pytest.approx(found["cloud_lora"][4]["logprobs"], abs=1e-4)
    by = identity_of("embedded", str(tmp_path / "kept"))
    assert found["detached"][0]["by"] == asdict(replace(by, adapter="kept"))
    assert [sum("seconds" in line for line in found[name]) for name in ("detached", "attached")] == [2, 2]


@pytest.mark.parametrize("cloud_says", ["pay bill", "stop it"])
def test_the_replay_compares_the_gateway_with_the_files(cloud_says, tmp_path, monkeypatch, capsys):
    """Catches a comparison that cannot fail: the cloud behind the gateway is or is not that of the file."""
    edge, cloud = Canned("play music", -0.1), Canned(cloud_says)
    by, rules = Answerer("tiny"), policy(score="min_logprob", deferral=REMOTE)
    rules.save(tmp_path / "routing.json")
    rows = [{"prompt": f"Request: {at}\nIntent:", "completion": " pay bill"} for at in range(4)]
    write_rows(tmp_path / "test.jsonl", rows)
    for name, answer in (("edge", "play music"), ("cloud", "pay bill")):
        scores = TokenScores([-0.01, -0.1], [4.99, 1.0], None)
        found = [Answered(f"test:{at}", answer, "pay bill", False, scores, by) for at in range(1, 5)]
        answered.write(found, tmp_path / f"{name}.jsonl")
    routed = Routed(Role(edge, "canned"), Role(cloud, "canned"), rules)
    gateway = Gateway({"routed": Served(routed, "routed", has_roles=True)})
    with running(gateway.app(), edge, cloud) as address:
        words = [
            "replay.py", address, "--data", str(tmp_path / "test.jsonl"), "--policy", str(tmp_path),
            "--edge", str(tmp_path / "edge.jsonl"), "--cloud", str(tmp_path / "cloud.jsonl"),
            "--output", str(tmp_path / "replay.jsonl"), "--requests", "3",
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", words)
        raises = pytest.raises(SystemExit, match="otherwise") if cloud_says == "stop it" else nullcontext()
        with raises:
            runpy.run_path(str(ROOT / "recipes" / FOLDER / "replay.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["sent"], found["right"]) == (3, 0, 0)
    assert found["other_cloud_answer"] == (3 if cloud_says == "stop it" else 0)
    assert found["other_route"] == found["other_answer"] == found["other_score"] == 0
    lines = (tmp_path / "replay.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["score"] for line in lines] == [-0.1] * 3
