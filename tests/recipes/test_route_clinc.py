"""The recipe of the robot task, run small."""

import json
from dataclasses import replace

import pytest
from helpers.answered import REMOTE, made_up
from helpers.recipes import run, write_rows
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft.embedded import MODEL
from shadowpeft.route import answered
from shadowpeft.route.policy import Policy

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
