"""The recipe that puts adapters on an upgraded base: its pieces, its figures, and a small run."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.portability import adapters, report, resume, upgrade
from helpers.recipes import run, write_rows
from helpers.tiny import qwen3_config
from transformers import Qwen3ForCausalLM

from shadowpeft.data.encode import NO_LOSS, Example
from shadowpeft.errors import CheckpointError

SETTINGS: dict[str, dict[str, Any]] = {"lora": {"r": 2}, "shadow": {"r": 2}}
IDS = torch.tensor([[5, 9, 33, 71, 8, 2]])


def base(seed: int = 0, **changes: object) -> Any:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(qwen3_config(**changes)).eval()


def trained(method: str) -> Any:
    """Put an adapter on a base and give each of its weights a value of its own."""
    model = adapters.put(base(), method, SETTINGS[method], seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("method", adapters.METHODS)
def test_an_adapter_is_carried_over_whole(method: str) -> None:
    """Catches a weight that stays fresh, and one that is read from v1 where it should be v2's."""
    model = trained(method)
    state = adapters.state_of(model)
    back = adapters.carried(base(), method, SETTINGS[method], state)
    assert torch.equal(logits(back), logits(model))
    other = adapters.carried(base(seed=3), method, SETTINGS[method], state)
    assert all(torch.equal(state[name], weight) for name, weight in adapters.state_of(other).items())
    v2 = logits(base(seed=3))
    assert not torch.allclose(logits(other), logits(model), atol=1e-2)
    assert not torch.allclose(logits(other), v2, atol=1e-3)


@pytest.mark.parametrize("method", adapters.METHODS)
def test_a_base_of_another_layout_is_refused(method: str) -> None:
    """Catches a carrying over that leaves out what does not fit."""
    state = adapters.state_of(trained(method))
    for changes in ({"num_hidden_layers": 3}, {"num_hidden_layers": 5}, {"hidden_size": 40}):
        with pytest.raises(CheckpointError, match="the two bases must have the same layout"):
            adapters.carried(base(**changes), method, SETTINGS[method], state)


def test_only_the_wanted_part_trains() -> None:
    """Catches parts that overlap, and a weight that is in neither."""
    counts = {}
    for part in ("boundaries", "shadow", "everything"):
        model = adapters.put(base(), "shadow", SETTINGS["shadow"], seed=0)
        adapters.train_only(model, part)
        counts[part] = {name.removeprefix("adapters.default.") for name in adapters.state_of(model)}
    assert counts["boundaries"]
    assert counts["shadow"]
    assert not counts["boundaries"] & counts["shadow"]
    assert counts["boundaries"] | counts["shadow"] == counts["everything"]
    assert all(name.startswith("shadow.") for name in counts["shadow"])


def test_rows_are_graded_as_greedy_answers_are() -> None:
    """Catches an answer that is right in part, a shift by one, and padding that counts."""
    model, rows, expected = base(), [], ""
    args = Namespace(eval_batch_size=3, device="cpu", bf16=False)
    for number in range(8):
        prompt = [5 + number, 9, *range(20, 20 + number)]
        ids = torch.tensor([prompt])
        answer = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, eos_token_id=None
        )[0, len(prompt) :].tolist()
        if number % 4:
            answer[number % 4 - 1] = (answer[number % 4 - 1] + 1) % 97
        rows.append(Example(input_ids=prompt + answer, labels=[NO_LOSS] * len(prompt) + answer))
        expected += str(int(number % 4 == 0))
    found = adapters.graded(model, rows, pad=0, args=args)
    assert found.correct == expected
    with torch.no_grad():
        losses = [
            3 * model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
            for row in rows
        ]
    assert found.nll == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_how_far_a_base_has_moved(tied: bool) -> None:
    """Catches a share of something else, and tied embeddings that count twice."""
    model = base(tie_word_embeddings=tied)
    old = upgrade.state_of(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    moved = upgrade.moved(model, old, upgrade.state_of(model))
    table = old["model.embed_tokens.weight"].square().sum()
    names = {name for name in old if not (tied and name == "lm_head.weight")}
    whole = sum(old[name].square().sum() for name in names)
    assert moved["embeddings"] == pytest.approx(0.5)
    assert moved["blocks"] == 0
    assert moved["all"] == pytest.approx(0.5 * float(table / whole) ** 0.5)


def row(method: str, stage: int, arm: str, seed: int, correct: str, mode: str = "attached") -> dict[str, Any]:
    return {
        "what": "adapter", "method": method, "mode": mode, "stage": stage, "seed": seed, "arm": arm,
        "correct": correct, "accuracy": correct.count("1") / len(correct), "nll": 1.0, "trainable": 100,
    }  # fmt: skip


def rows_of_a_lead() -> list[dict[str, Any]]:
    """LoRA loses half of 40 rows, the shadow a quarter."""
    made = [{"what": "base", "stage": stage} for stage in (0, 10)]
    for seed in (0, 1):
        for mode in ("attached", "detached"):
            made.append(row("shadow", 0, "v1", seed, "1" * 40, mode))
            made.append(row("shadow", 10, "untouched", seed, "1" * 30 + "0" * 10, mode))
        made.append(row("lora", 0, "v1", seed, "1" * 40))
        made.append(row("lora", 10, "untouched", seed, "0" * 20 + "1" * 20))
    return made


def test_the_primary_result_is_what_lora_loses_more() -> None:
    """Catches a sign the other way round, and seeds or rows that are not paired."""
    table = report.differences(report.Rows(rows_of_a_lead()))
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in table.splitlines()}
    assert lines["v2, 10 steps: LoRA lost minus the shadow lost"][0] == "+25.00"
    assert lines["v2, 10 steps: LoRA, untouched minus v1"][0] == "-50.00"
    assert lines["v2, 10 steps: shadow attached, untouched minus v1"][0] == "-25.00"


def test_unequal_sizes_are_refused() -> None:
    """Catches a comparison of a small adapter with a large one."""
    made = rows_of_a_lead()
    made = [{**one, "trainable": 102} if one.get("method") == "lora" else one for one in made]
    with pytest.raises(SystemExit, match="as many trained parameters within 1 %"):
        report.Rows(made)


def test_rows_of_other_flags_are_refused(tmp_path: Path) -> None:
    """Catches rows of two experiments in one file, and a budget that may not be raised."""
    rows = resume.Rows(tmp_path / "rows.jsonl", {"device": "cpu"})
    rows.write({"what": "run", "flags": {"steps": "4", "budget": "10"}})
    again = resume.Rows(tmp_path / "rows.jsonl", {"device": "cpu"})
    again.refuse_other({"steps": "4", "budget": "20"})
    with pytest.raises(SystemExit, match="got another steps; give another --output"):
        again.refuse_other({"steps": "5", "budget": "10"})


def test_what_was_trained_is_trained_once(tmp_path: Path) -> None:
    """Catches work that is done again, and one that comes back as something else."""
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"state": {"weight": torch.arange(3.0)}, "steps": 4}

    first, second = (resume.Work(tmp_path).made("lora", make) for _ in range(2))
    assert len(made) == 1
    assert torch.equal(first["state"]["weight"], second["state"]["weight"])
    assert second["steps"] == 4


@pytest.mark.recipe
def test_the_recipe_measures(tmp_path: Path) -> None:
    """Catches a recipe that no longer runs, a v2 that is v1, and an arm that is another one."""
    text = "The river runs past the old town, and people said that it never sleeps. " * 6
    for split in ("train", "validation"):
        pages = [{"id": i, "title": f"Page {i}", "text": f"{i} {text}"} for i in range(12)]
        write_rows(tmp_path / "wiki_en" / f"{split}.jsonl.gz", pages)
    chats = [{"instruction": f"Where is {i}?", "context": "", "response": text} for i in range(12)]
    write_rows(tmp_path / "dolly" / "train.jsonl.gz", chats)
    few = ["--stages", 2, 4, "--steps", 4, "--refit-steps", 2, "--seeds", 0, 1, "--batch-size", 4]
    few += [
        "--rates",
        4e-3,
        "--refit-factors",
        1,
        "--validation-rows",
        10,
        "--test-rows",
        10,
        "--held-out",
        4,
    ]
    output = tmp_path / "rows.jsonl"
    words = ("portability/measure.py", "--data", tmp_path, "--output", output, *few)
    run(*words)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    bases = [one for one in rows if one["what"] == "base"]
    assert [one["stage"] for one in bases] == [0, 2, 4]
    assert 0 == bases[0]["moved"]["all"] < bases[1]["moved"]["all"] < bases[2]["moved"]["all"]
    assert bases[0]["losses"]["wiki"] > bases[2]["losses"]["wiki"]
    found = {
        (one["method"], one["mode"], one["stage"], one["arm"], one["seed"]): one["nll"]
        for one in rows
        if one["what"] == "adapter"
    }
    # A seed has 3 rows on v1, 9 on each stage of v2, and 3 trained anew on the last.
    assert len(found) == 2 * (3 + 2 * 9 + 3)
    assert len(set(found.values())) == len(found)
    assert "## Differences" in run("portability/report.py", output)
    # Stopped before its last row, the command writes that row again as it was, and says what it ran.
    lines = output.read_text(encoding="utf-8").splitlines()
    output.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
    run(*words)
    *same, started, last = output.read_text(encoding="utf-8").splitlines()
    assert same == lines[:-1]
    assert json.loads(started)["what"] == "run"
    assert json.loads(last)["correct"] == rows[-1]["correct"]
    assert json.loads(last)["nll"] == pytest.approx(rows[-1]["nll"])
