"""Pretraining through the real command line: what a run leaves, resuming to the last bit, starts, and what is refused before it starts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.runs import save_base, write_rows
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import trainer_utils

from shadowpeft import ShadowConfig, UserError, arch, attach
from shadowpeft.cli import main
from shadowpeft.pretrain import text
from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.pretrain.initial import initial_shadow
from shadowpeft.pretrain.pace import Pace, rate_factor
from shadowpeft.pretrain.run import pretrain
from shadowpeft.pretrain.trainer import PROGRESS, PretrainProgress
from shadowpeft.storage import shadow_folder, stock_models
from shadowpeft.train import checkpoints

SENTENCES = [
    "what is two plus two, think",
    "you are here in the city",
    "hello hello four systems",
    "the city is two plus four",
]
# Every loss, accumulation, shuffling over blocks of rows, evaluation, and more than one lap of the text.
FLAGS = [
    "--max-steps=10",
    "--batch-size=2",
    "--gradient-accumulation=2",
    "--max-length=16",
    "--shuffle-rows=8",
    "--eval-documents=4",
]
FLAGS += [
    "--match=0.1",
    "--top-k=20",
    "--save-steps=4",
    "--eval-steps=4",
    "--logging-steps=1",
    "--device=cpu",
    "--start=blocks",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models lose more by sharing work between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    rows = [
        {"text": " ".join(SENTENCES[(number * step) % 4] for step in range(1, 2 + number % 3))}
        for number in range(40)
    ]
    rows[10:10] = [{"text": " "}, {"text": 5}]
    return write_rows(tmp_path_factory.mktemp("data") / "text.jsonl", rows)


@pytest.fixture
def command(base_folder, text_file, tmp_path) -> list[str]:
    return [
        "pretrain",
        "--model",
        str(base_folder),
        "--data",
        str(text_file),
        "--output",
        str(tmp_path / "run"),
        *FLAGS,
    ]


@pytest.fixture(scope="module")
def straight(base_folder, text_file, tmp_path_factory) -> Path:
    """The ten steps of `command` in one go."""
    output = tmp_path_factory.mktemp("straight") / "run"
    with pytest.warns(
        UserWarning,
        match=r"1 empty \(the first is .*text.jsonl:11\), 1 undecodable \(the first is .*text.jsonl:12\)",
    ):
        pretrain(_settings(base_folder, text_file, output))
    return output


def _settings(base_folder: Path, text_file: Path, output: Path, **changes) -> PretrainConfig:
    values = dict(flag.removeprefix("--").split("=") for flag in FLAGS)
    typed = {
        name.replace("-", "_"): float(v) if "." in v else int(v) if v.isdecimal() else v
        for name, v in values.items()
    }
    folders = {"model": str(base_folder), "data": str(text_file), "output": str(output)}
    return PretrainConfig(**{**folders, **typed, **changes})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / shadow_folder.WEIGHTS)


def logged(output: Path, name: str) -> list[float]:
    return [
        entry[name]
        for line in (output / "metrics.jsonl").read_text().splitlines()
        if name in (entry := json.loads(line))
    ]


def assert_same_bits(one: Path, other: Path) -> None:
    left, right = weights_of(one / "shadow"), weights_of(other / "shadow")
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert logged(one, "loss") == logged(other, "loss")


# The result


def test_run_leaves_what_it_promises(straight, base_folder):
    """Catches a missing file, a folder that tells nothing of the run, and a shadow that cannot be attached or did not learn."""
    assert sorted(path.name for path in straight.iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
        "run.yaml",
        "shadow",
    ]
    assert {path.name for path in straight.glob("checkpoints/*")} == {"checkpoint-8", "checkpoint-10"}
    told = json.loads((straight / "shadow" / shadow_folder.CONFIG).read_text())["run"]
    assert told["steps"] == 10
    assert told["tokens"] == 10 * 4 * 16
    assert told["laps"] >= 1
    assert (told["empty rows"], told["undecodable rows"]) == (1, 1)
    assert told["losses"] == "next_token 0.5, distil 0.5, match 0.1"
    assert told["eval loss"] < told["start loss"]
    assert len(logged(straight, "eval_loss")) == 4, "steps 0, 4, 8 and 10"
    for name in ("next_token", "distil", "match", "tokens_per_second"):
        assert len(logged(straight, name)) == 10
    shadowed = attach(
        stock_models.load_model(str(base_folder), torch.float32), ShadowConfig(), straight / "shadow"
    )
    assert shadowed.adapters["default"].settings.shadow_layers == 2


def test_logged_parts_add_up_to_the_loss(straight):
    """Catches parts averaged over other steps than the loss, and weights that the loss does not have."""
    for loss, next_token, distil, match in zip(
        *(logged(straight, name) for name in ("loss", "next_token", "distil", "match")), strict=True
    ):
        assert loss == pytest.approx(0.5 * next_token + 0.5 * distil + 0.1 * match, rel=1e-5)


def test_final_loss_is_that_of_the_detached_model(straight, base_folder, text_file):
    """Catches an evaluation of something else than what is shipped, on other rows than the first documents, or a wrong base's loss."""
    told = json.loads((straight / "shadow" / shadow_folder.CONFIG).read_text())["run"]
    base = stock_models.load_model(str(base_folder), torch.float32)
    small = attach(base, ShadowConfig(), straight / "shadow").detached()
    tokenizer = stock_models.load_tokenizer(str(base_folder))
    texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()[:4]]
    ids = [
        token
        for text in texts
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    rows = torch.tensor(ids[: len(ids) // 16 * 16]).view(-1, 16)
    with torch.no_grad():
        assert told["eval loss"] == pytest.approx(small(rows, labels=rows).loss.item(), rel=1e-4)
        assert told["base loss"] == pytest.approx(base(rows, labels=rows).loss.item(), rel=1e-4)


@pytest.mark.parametrize("apart", [False, True], ids=["first documents", "eval data"])
def test_bad_rows_of_the_held_out_text_are_told_and_take_no_documents_place(
    apart, straight, base_folder, text_file, tmp_path
):
    """Catches unusable rows that are dropped without a word, and that leave fewer documents to evaluate on, or none."""
    lines, bad = text_file.read_text().splitlines(keepends=True), ['{"text": ""}\n'] * 5 + ["{\n"]
    data, held_out = tmp_path / "data.jsonl", tmp_path / "held_out.jsonl"
    data.write_text("".join(lines if apart else [*bad, *lines]))
    held_out.write_text("".join([*bad, *lines[:4]]))
    where = {"eval_data": str(held_out), "eval_documents": 100} if apart else {}
    settings = _settings(base_folder, data, tmp_path / "run", max_steps=4, **where)
    source = held_out if apart else data
    told = (
        rf"held-out text .*: 5 empty \(the first is {source}:1\), 1 undecodable \(the first is {source}:6\)"
    )
    with pytest.warns(UserWarning, match="of the text without"), pytest.warns(UserWarning, match=told):
        result = pretrain(settings)
    assert (
        result.eval_empty_rows,
        result.eval_undecodable_rows,
        result.empty_rows,
        result.undecodable_rows,
    ) == (5, 1, 1, 1)
    assert result.start_loss == pytest.approx(logged(straight, "eval_loss")[0], rel=1e-6), (
        "of the same four documents"
    )


def test_run_file_repeats_the_run(straight, tmp_path):
    """Catches a setting missing from run.yaml and a random choice that the seed does not decide."""
    assert (
        main(["pretrain", "--config", str(straight / "run.yaml"), "--output", str(tmp_path / "again")]) == 0
    )
    assert_same_bits(straight, tmp_path / "again")
    changes = ["--output", str(tmp_path / "other"), "--seed", "5", "--max-steps", "2"]
    assert main(["pretrain", "--config", str(straight / "run.yaml"), *changes]) == 0
    assert logged(tmp_path / "other", "loss")[0] != logged(straight, "loss")[0]


def test_json_is_the_result(command, capsys):
    """Catches words among the JSON on stdout."""
    assert main([*command, "--max-steps", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 1
    assert result["parameters"] > 0
    assert result["plain_tokens_per_second"] > 0
    assert result["base_loss"] > 0


def test_base_runs_only_to_be_compared_without_a_loss_that_needs_it(
    base_folder, text_file, tmp_path, monkeypatch
):
    """Catches a base run in training for the next-token loss alone: beside the one measurement of its own loss it must not run."""
    calls = []
    load = stock_models.load_model

    def counted(*args, **kwargs):
        base = load(*args, **kwargs)
        arch.decoder_of(base).register_forward_hook(lambda *_: calls.append(1))
        return base

    monkeypatch.setattr(stock_models, "load_model", counted)
    for weights, most in (({"distil": 0.0, "match": 0.0, "top_k": None}, 0), ({"distil": 1.0}, 4 * 2)):
        calls.clear()
        settings = _settings(
            base_folder, text_file, tmp_path / str(most), max_steps=4, start="fresh", **weights
        )
        with pytest.warns(UserWarning, match="passed over"):
            pretrain(settings)
        held_out_batches = 2  # 4 documents are 3 rows of 16 tokens, 2 a batch
        assert len(calls) == most + held_out_batches


# Resuming


def test_killed_run_resumes_bit_for_bit(command, straight, tmp_path):
    """Catches state that only an orderly end would write, and a place in the text that is a batch off."""
    slow = "import time, sys; from shadowpeft.pretrain import trainer\n"
    slow += "trainer.PretrainProgress.on_step_end = lambda *_, **__: time.sleep(0.3)\n"
    slow += "from shadowpeft.cli import main; sys.exit(main(sys.argv[1:]))"
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums in another order have other bits
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", slow, *command], env=one_thread, **quiet)
    while not checkpoints.is_complete(tmp_path / "run" / "checkpoints" / "checkpoint-4"):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main([*command, "--resume"]) == 0
    assert_same_bits(straight, tmp_path / "run")


KILLED = """
import os, signal, sys
from shadowpeft.cli import main
from shadowpeft.pretrain import trainer

def killed(self, args, state, control, **kwargs):
    if state.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)

trainer.PretrainProgress.on_step_end = killed
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("auto", marks=pytest.mark.gpu)])
def test_deterministic_run_resumes_bit_for_bit(device, command, tmp_path):
    """Catches a flag that does not reach all operations. Everything is trained, as the gradient of embeddings is added up in any order.

    In processes of their own: what makes cuBLAS repeat itself is read when it is first used, and is meant for a whole process.
    """
    small = save_base(tmp_path / "small", seed=3, hidden_size=16, num_hidden_layers=2)
    words = [
        *command,
        "--start",
        str(small),
        "--train-parts",
        "everything",
        "--device",
        device,
        "--deterministic",
    ]
    told = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    for output, code, status in (("straight", None, 0), ("killed", KILLED, -signal.SIGKILL)):
        program = ["-m", "shadowpeft"] if code is None else ["-c", code]
        ended = subprocess.run([sys.executable, *program, *words, "--output", tmp_path / output], **told)
        assert ended.returncode == status, ended.stderr
    assert checkpoints.latest_checkpoint(tmp_path / "killed" / "checkpoints").name == "checkpoint-4"
    again = [sys.executable, "-m", "shadowpeft", *words, "--output", tmp_path / "killed", "--resume"]
    ended = subprocess.run(again, **told)
    assert ended.returncode == 0, ended.stderr
    assert "resuming from checkpoint-4" in ended.stderr
    assert_same_bits(tmp_path / "straight", tmp_path / "killed")


def test_deterministic_reaches_torch_before_the_model(command, monkeypatch, capsys):
    """Catches a flag that is taken and not applied, or applied when the projection is fitted already."""
    asked = []
    monkeypatch.setattr(trainer_utils, "enable_full_determinism", asked.append)
    monkeypatch.setattr(
        stock_models, "load_model", lambda *_: (_ for _ in ()).throw(UserError(f"asked {asked}"))
    )
    assert main([*command, "--deterministic", "--seed", "5"]) == 2
    assert "asked [5]" in capsys.readouterr().err
    asked.clear()
    assert main([*command, "--seed", "5"]) == 2
    assert "asked []" in capsys.readouterr().err


@pytest.mark.parametrize("step", [2, 5])
def test_stopped_run_says_how_to_go_on_and_does(command, straight, tmp_path, monkeypatch, capsys, step):
    """Catches a signal that loses the step at work, a command that does not continue, and counts that begin anew."""
    on_step_end = PretrainProgress.on_step_end

    def signalling(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PretrainProgress, "on_step_end", signalling)
    assert main(command) == 130
    assert not (tmp_path / "run" / "shadow").exists()
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped after step {step + 1} and saved; continue with: shadowpeft pretrain --config " in said
    assert main(said.partition("continue with: shadowpeft ")[2].split()) == 0
    assert_same_bits(straight, tmp_path / "run")
    assert logged(tmp_path / "run", "tokens") == logged(straight, "tokens")


def test_damaged_place_is_refused(command, straight, tmp_path, capsys):
    """Catches a run that goes on from the beginning of the text when it does not know where it was."""
    assert main([*command, "--max-steps", "10", "--save-steps", "4"]) == 0
    (tmp_path / "run" / "checkpoints" / "checkpoint-8" / PROGRESS).write_text("{")
    assert main([*command, "--resume", str(tmp_path / "run" / "checkpoints" / "checkpoint-8")]) == 2
    assert "progress.json is missing or damaged" in capsys.readouterr().err


def test_other_settings_are_another_run(command, tmp_path, capsys):
    """Catches a continuation under settings that would have made it another run."""
    assert main(command) == 0
    assert main([*command, "--resume", "--distil", "0.9"]) == 2
    assert "to resume, distil must be as in" in capsys.readouterr().err
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err


# Time


def test_run_by_the_clock_ends_and_anneals(base_folder, text_file, tmp_path, monkeypatch):
    """Catches a run that overruns its time, that ends with a high learning rate, without a shadow, or without a last evaluation."""
    monkeypatch.setattr(PretrainProgress, "on_step_end", lambda *_, **__: time.sleep(0.05))
    settings = _settings(base_folder, text_file, tmp_path / "run", max_steps=None, max_seconds=1.5)
    with pytest.warns(UserWarning, match="passed over"):
        result = pretrain(settings)
    assert 1.5 <= result.seconds < 4
    assert 2 < result.steps < 30
    assert result.shadow is not None
    rates = logged(tmp_path / "run", "learning_rate")
    assert rates[-1] < 0.1 * max(rates)
    assert result.eval_loss is not None
    assert result.start_loss is not None
    assert result.eval_loss < result.start_loss


def test_a_run_of_few_steps_is_evaluated_at_its_end(base_folder, text_file, tmp_path):
    """Catches the evaluation before the first step taken for that after the last, where the clock ends a run soon."""
    settings = _settings(base_folder, text_file, tmp_path / "run", max_steps=None, max_seconds=1e-3)
    with pytest.warns(UserWarning, match="passed over"):
        result = pretrain(settings)
    assert result.steps == 1
    assert len(logged(tmp_path / "run", "eval_loss")) == 2


def test_rate_follows_the_schedule():
    """Catches a warm-up that is skipped or endless, and a schedule that does not end where it says."""
    pace = Pace(100, None)
    assert [rate_factor(pace, "linear", 0, step) for step in (0, 50, 100)] == [1.0, 0.5, 0.0]
    assert [rate_factor(pace, "constant", 4, step) for step in (0, 1, 3, 90)] == [0.25, 0.5, 1.0, 1.0]
    assert rate_factor(pace, "cosine", 0.1, 5) == pytest.approx(0.51)
    assert rate_factor(pace, "cosine", 0.1, 50) == pytest.approx(0.5)
    assert rate_factor(pace, "cosine", 0.1, 100) == pytest.approx(0.0)


# Memory


def test_activations_that_are_computed_again_change_nothing(straight, base_folder, text_file, tmp_path):
    """Catches a switch that is not thrown, one that warns of its name, and gradients of other activations."""
    runs: Counter[str] = Counter()
    hook = register_module_forward_pre_hook(
        lambda module, _: runs.update([type(module).__name__] * torch.is_grad_enabled())
    )
    with pytest.warns(UserWarning, match="passed over"):
        pretrain(_settings(base_folder, text_file, tmp_path / "run", gradient_checkpointing=True))
    hook.remove()
    passes = runs["Qwen3RotaryEmbedding"]
    assert passes >= 10 * 2
    assert runs["Qwen3MLP"] == 2 * 2 * passes, "each of the shadow's two blocks runs twice a pass"
    assert_same_bits(straight, tmp_path / "run")


# Starts


def test_start_from_blocks_copies_them(base_folder, text_file, tmp_path):
    """Catches other blocks than those named, or a spread that leaves out the ends."""
    base = stock_models.load_model(str(base_folder), torch.float32)
    for settings, blocks in (({"blocks": [2, 1]}, [2, 1]), ({"layers": 3}, [0, 2, 3]), ({}, [0, 3])):
        config = _settings(base_folder, text_file, tmp_path / "run", **settings)
        shadow, _ = initial_shadow(config, base, None, resumes=False)  # type: ignore[arg-type] - no text is read
        for place, block in enumerate(blocks):
            ours, theirs = shadow.backbone.layers[place].state_dict(), base.model.layers[block].state_dict()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("method", ["none", "pinv", "weighted", "ridge"])
def test_start_from_a_smaller_model(base_folder, text_file, tmp_path, capsys, method):
    """Catches a warm start that is not applied or not told, and an explicit shadow that cannot be trained or attached."""
    small = save_base(tmp_path / "small", seed=3, hidden_size=16, num_hidden_layers=2)
    settings = {"start": str(small), "warm_start": method, "max_steps": 2, "train_parts": "projection"}
    if method in ("weighted", "ridge"):
        settings["warm_start_rows"] = 8
    with pytest.warns(UserWarning, match="passed over"):
        result = pretrain(_settings(base_folder, text_file, tmp_path / "run", **settings))
    assert result.parameters == 16 * 32
    read = text.read_text(_settings(base_folder, text_file, tmp_path / "same"))
    rows = torch.stack([torch.from_numpy(row) for row in read.held_out])
    assert result.model_loss == pytest.approx(
        stock_models.load_model(str(small), torch.float32)(rows, labels=rows).loss.item(), rel=1e-4
    )
    assert (f"warm start {method}" in capsys.readouterr().err) == (method != "none")
    saved, before = (
        weights_of(tmp_path / "run" / "shadow"),
        stock_models.load_model(str(small), torch.float32).model.state_dict(),
    )
    assert all(torch.equal(saved[f"backbone.{name}"], tensor) for name, tensor in before.items()), (
        "only the projection is trained"
    )
    assert (
        attach(stock_models.load_model(str(base_folder), torch.float32), None, tmp_path / "run" / "shadow")
        is not None
    )


def test_the_plain_rate_is_of_all_weights_whatever_the_run_trains(
    base_folder, text_file, tmp_path, monkeypatch
):
    """Catches a rate that is compared with passes which leave most gradients out, and parts that stay trained afterwards."""
    small, asked = save_base(tmp_path / "small", seed=3, hidden_size=16, num_hidden_layers=2), []
    plain = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd,
        "grad",
        lambda loss, weights, *args, **kwargs: (asked.append(weights), plain(loss, weights, *args, **kwargs))[
            1
        ],
    )
    with pytest.warns(UserWarning, match="passed over"):
        result = pretrain(
            _settings(
                base_folder,
                text_file,
                tmp_path / "run",
                start=str(small),
                max_steps=1,
                train_parts="projection",
            )
        )
    backbone = arch.decoder_of(stock_models.load_model(str(small), torch.float32))
    table = sum(weight.numel() for weight in backbone.get_submodule("embed_tokens").parameters())
    wanted = 16 * 32 + sum(weight.numel() for weight in backbone.parameters()) - table
    assert [sum(weight.numel() for weight in weights) for weights in asked].count(wanted) == 4, (
        "one to warm up, three timed"
    )
    assert result.parameters == 16 * 32


def test_start_from_a_shadow_folder(straight, base_folder, text_file, tmp_path):
    """Catches a pretrained shadow that begins anew when it is to be trained further."""
    told = json.loads((straight / "shadow" / shadow_folder.CONFIG).read_text())["run"]
    with pytest.warns(UserWarning, match="passed over"):
        result = pretrain(
            _settings(base_folder, text_file, tmp_path / "run", start=str(straight / "shadow"), max_steps=1)
        )
    assert result.start_loss == pytest.approx(told["eval loss"], rel=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_seconds": 3.0}, "max_steps or max_seconds, one of the two"),
        ({"max_steps": None}, "max_steps or max_seconds, one of the two"),
        ({"next_token": 0.0, "distil": 0.0, "match": 0.0}, "nothing to learn"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"blocks": [9]}, "one of the base's 4 blocks"),
        ({"blocks": [0], "layers": 1}, "give one of them"),
        ({"start": "fresh", "blocks": [0]}, "blocks cannot be set where the shadow starts from fresh"),
        ({"intermediate_size": 8}, "intermediate_size cannot be set where the shadow starts from blocks"),
        ({"train_parts": "projection"}, "no projection"),
        ({"match_block": 4}, "one of the base's 4 blocks"),
        ({"match_block": -1}, "match_block must be a whole number, 0 or more, got -1"),
        ({"max_length": 4096}, "at most the model's 128 tokens"),
        ({"eval_documents": 42}, "behind the 42 documents held out"),
        ({"data": "missing.jsonl"}, "no such file"),
        ({"model": "./missing"}, "no model folder"),
        ({"start": "./missing"}, "no model folder"),
        ({"report_to": "nonsense"}, "report_to nonsense cannot be used"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_the_work(base_folder, text_file, tmp_path, changes, told):
    """Catches settings that are ignored, or that fail in the middle of a run with something else than one sentence."""
    with pytest.raises(UserError, match=told):
        pretrain(_settings(base_folder, text_file, tmp_path / "run", **changes))
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"distil": 0.0},
            "top_k 20 would change nothing, as distil, .* has the weight 0; leave top_k out, or give distil a weight",
        ),
        ({"distil": 0.0, "top_k": None, "temperature": 2.0}, "temperature 2.0 .* or give distil a weight"),
        ({"match": 0.0, "match_block": 1}, "match_block 1 .* or give match a weight"),
        ({"eval_data": "TEXT"}, "eval_documents 4 .* eval_data is evaluated on instead"),
        (
            {"warm_start": "ridge"},
            "warm_start ridge .* a shadow that starts from blocks has no projection to fit; .* a smaller model",
        ),
        (
            {"start": "fresh", "warm_start_rows": 8},
            "warm_start_rows 8 .* a shadow that starts from fresh has no projection",
        ),
        (
            {"start": "SAME WIDTH", "warm_start": "pinv"},
            "warm_start pinv .* has the base's width and so no projection to fit",
        ),
        (
            {"start": "SAME WIDTH", "train_parts": "projection"},
            "has the base's width and so no projection to train",
        ),
        ({"start": "SHADOW", "warm_start": "none"}, "warm_start none .* goes on from what it is"),
        (
            {"start": "SHADOW", "train_parts": "projection"},
            "has the base's width and so no projection to train",
        ),
        (
            {"start": "NARROW", "warm_start": "pinv", "warm_start_rows": 8},
            "warm_start_rows 8 .* pinv reads no text; .* weighted or ridge",
        ),
        (
            {"data": "PLAIN", "text_field": "body"},
            "text_field body .* nor .npz files have fields; .* rows of .jsonl or .parquet",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_would_change_nothing_are_refused(
    straight, base_folder, text_file, tmp_path, monkeypatch, changes, told
):
    """Catches a setting that is taken and then not applied, and one that is told of only when the base is loaded."""
    (tmp_path / "plain.txt").write_text("hello hello four systems")
    places = {"TEXT": text_file, "SHADOW": straight / "shadow", "PLAIN": tmp_path / "plain.txt"}
    places["SAME WIDTH"] = save_base(tmp_path / "same", seed=3, num_hidden_layers=2)
    places["NARROW"] = save_base(tmp_path / "narrow", seed=3, num_hidden_layers=2, hidden_size=16)
    monkeypatch.setattr(stock_models, "load_model", None)
    changes = {name: str(places[value]) if value in places else value for name, value in changes.items()}
    with pytest.raises(UserError, match=told):
        pretrain(_settings(base_folder, text_file, tmp_path / "run", **changes))
    assert not list((tmp_path / "run").glob("*"))


def test_a_run_of_before_a_setting_existed_goes_on(command, tmp_path, capsys):
    """Catches a new setting that ends every run begun without it; it stands for its default then, and for nothing else."""
    assert main([*command, "--max-steps", "4"]) == 0
    settings = tmp_path / "run" / "run.yaml"
    before = settings.read_text().replace("deterministic: false\n", "")
    settings.write_text(before)
    assert main(["pretrain", "--config", str(settings), "--resume", "--deterministic"]) == 2
    assert "to resume, deterministic must be as in" in capsys.readouterr().err
    assert main(["pretrain", "--config", str(settings), "--resume"]) == 0
    settings.write_text(before.replace(f"model: {command[2]}\n", ""))
    assert main([*command, "--max-steps", "4", "--resume"]) == 2
    assert "to resume, model must be as in" in capsys.readouterr().err


def test_a_run_begun_with_a_setting_that_changes_nothing_goes_on(command, tmp_path):
    """Catches runs of before it was refused that can go on neither with the setting nor, being another run then, without it."""
    assert main([*command, "--max-steps", "4"]) == 0
    settings = tmp_path / "run" / "run.yaml"
    settings.write_text(settings.read_text().replace("warm_start_rows: 256", "warm_start_rows: 8"))
    shutil.rmtree(tmp_path / "run" / "shadow")
    assert main(["pretrain", "--config", str(settings), "--resume"]) == 0
    assert (tmp_path / "run" / "shadow").is_dir()


def test_model_with_other_tokens_is_refused(base_folder, text_file, tmp_path):
    """Catches a start from a model to which the same ids mean other words."""
    other = save_base(tmp_path / "other", seed=3)
    tokenizer = stock_models.load_tokenizer(str(other))
    tokenizer.add_tokens(["zzz"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="must have one tokenizer"):
        pretrain(_settings(base_folder, text_file, tmp_path / "run", start=str(other)))


def test_full_disk_keeps_earlier_checkpoints(command, tmp_path, monkeypatch, capsys):
    """Catches a checkpoint that is lost when the next one cannot be written."""
    save = shadow_folder.save

    def full(shadow, facts, folder, run):
        if "checkpoint-8" in str(folder):
            raise OSError(28, "No space left on device")
        return save(shadow, facts, folder, run)

    monkeypatch.setattr(shadow_folder, "save", full)
    assert main(command) == 1
    assert "earlier checkpoints are unchanged" in capsys.readouterr().err
    monkeypatch.setattr(shadow_folder, "save", save)
    assert checkpoints.latest_checkpoint(tmp_path / "run" / "checkpoints").name == "checkpoint-4"
    assert main([*command, "--resume"]) == 0
