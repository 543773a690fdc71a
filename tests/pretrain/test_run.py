"""Pretraining through the real command line: what a run leaves, resuming to the last bit, and its end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stderr
from io import StringIO
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from helpers.pretraining import assert_same_bits, copy_run, logged, pretrained, settings
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import trainer_utils

from shadowpeft import ShadowConfig, UserError, arch, attach
from shadowpeft.cli import main
from shadowpeft.pretrain import pace
from shadowpeft.pretrain.run import pretrain
from shadowpeft.pretrain.trainer import PretrainProgress
from shadowpeft.storage import shadow_folder, stock_models
from shadowpeft.train import checkpoints


def test_run_leaves_what_it_promises(straight, base_folder):
    """Catches a missing file or entry of the log, and a shadow that cannot be attached."""
    files = ["checkpoints", "metrics.jsonl", "run.yaml", "shadow"]
    assert sorted(path.name for path in straight.iterdir()) == files
    assert {path.name for path in straight.glob("checkpoints/*")} == {"checkpoint-8", "checkpoint-10"}
    assert len(logged(straight, "eval_loss")) == 4, "steps 0, 4, 8 and 10"
    for name in ("next_token", "distil", "match", "tokens_per_second"):
        assert len(logged(straight, name)) == 10
    base = stock_models.load_model(str(base_folder), torch.float32)
    shadowed = attach(base, ShadowConfig(), straight / "shadow")
    assert shadowed.adapters["default"].settings.shadow_layers == 2


def test_run_file_repeats_the_run(straight, tmp_path):
    """Catches a setting missing from run.yaml and a random choice that the seed does not decide."""
    repeat = ["pretrain", "--config", str(straight / "run.yaml")]
    assert main([*repeat, "--output", str(tmp_path / "again")]) == 0
    assert_same_bits(straight, tmp_path / "again")
    changes = ["--output", str(tmp_path / "other"), "--seed", "5", "--max-steps", "2"]
    assert main([*repeat, *changes]) == 0
    assert logged(tmp_path / "other", "loss")[0] != logged(straight, "loss")[0]


def test_base_runs_only_to_be_compared_without_a_loss_that_needs_it(
    base_folder, text_file, tmp_path, monkeypatch
):
    """Catches a base that runs in training for the next-token loss alone; only its own loss may run it."""
    calls = []
    load = stock_models.load_model

    def counted(*args, **kwargs):
        base = load(*args, **kwargs)
        arch.decoder_of(base).register_forward_hook(lambda *_: calls.append(1))
        return base

    monkeypatch.setattr(stock_models, "load_model", counted)
    steps, passes, held_out_batches = 2, 2, 2  # 4 documents are 3 rows of 16 tokens, 2 a batch
    without = {"distil": 0.0, "match": 0.0, "top_k": None}
    for weights, most in ((without, 0), ({"distil": 1.0}, steps * passes)):
        calls.clear()
        changes = {"max_steps": steps, "start": "fresh", **weights}
        pretrained(base_folder, text_file, tmp_path / str(most), **changes)
        assert len(calls) == most + held_out_batches


# The process kills itself after the sixth step: the newest checkpoint is of the fourth.
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
# As in this process: sums in another order have other bits.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_killed_run_resumes_bit_for_bit(command, straight, tmp_path):
    """Catches state that only an orderly end would write, and a place in the text that is a batch off."""
    words = [sys.executable, "-c", KILLED, *command]
    ended = subprocess.run(words, env=ONE_THREAD, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert checkpoints.latest_checkpoint(tmp_path / "run" / "checkpoints").name == "checkpoint-4"
    assert main([*command, "--resume"]) == 0
    assert_same_bits(straight, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("auto", marks=pytest.mark.gpu)])
def test_deterministic_run_resumes_bit_for_bit(device, command, small_folder, tmp_path):
    """Catches a flag that does not reach all operations.

    Everything is trained, since the gradients of embeddings are added up in any order. On a GPU each run is a
    process of its own: cuBLAS reads what makes it repeat itself once in a process, when it is first used.
    """
    start = ["--start", str(small_folder), "--train-parts", "everything"]
    words = [*command, *start, "--device", device, "--deterministic"]
    run = {"cpu": run_here, "auto": run_apart}[device]
    run([*words, "--output", str(tmp_path / "straight")])
    killed = [sys.executable, "-c", KILLED, *words, "--output", str(tmp_path / "killed")]
    ended = subprocess.run(killed, env=ONE_THREAD, capture_output=True, encoding="utf-8")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert checkpoints.latest_checkpoint(tmp_path / "killed" / "checkpoints").name == "checkpoint-4"
    assert "resuming from checkpoint-4" in run([*words, "--output", str(tmp_path / "killed"), "--resume"])
    assert_same_bits(tmp_path / "straight", tmp_path / "killed")


def run_here(words):
    """Run a command that sets torch to be deterministic, set that back, and return what it said."""
    with redirect_stderr(StringIO()) as said, patch.dict(os.environ):
        try:
            assert main(words) == 0, said.getvalue()
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.deterministic = False
    return said.getvalue()


def run_apart(words):
    """Run a command in a process of its own, and return what it said."""
    program = [sys.executable, "-m", "shadowpeft", *words]
    ended = subprocess.run(program, env=ONE_THREAD, capture_output=True, encoding="utf-8")
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_deterministic_reaches_torch_before_the_model(command, monkeypatch, capsys):
    """Catches a flag that is taken and not applied, or applied when the projection is fitted already."""
    asked = []

    def stop(*_):
        raise UserError(f"asked {asked}")

    monkeypatch.setattr(trainer_utils, "enable_full_determinism", asked.append)
    monkeypatch.setattr(stock_models, "load_model", stop)
    assert main([*command, "--deterministic", "--seed", "5"]) == 2
    assert "asked [5]" in capsys.readouterr().err
    asked.clear()
    assert main([*command, "--seed", "5"]) == 2
    assert "asked []" in capsys.readouterr().err


@pytest.mark.parametrize("step", [2, 5])
def test_stopped_run_says_how_to_go_on_and_does(command, straight, tmp_path, monkeypatch, capsys, step):
    """Catches a signal that loses a step, a printed command that fails, and counts that begin anew."""
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


def test_other_settings_are_another_run(command, straight, tmp_path, capsys):
    """Catches a continuation under settings that would have made it another run."""
    copy_run(straight, tmp_path / "run")
    assert main([*command, "--resume", "--distil", "0.9"]) == 2
    assert "to resume, distil must be as in" in capsys.readouterr().err
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_run_of_before_a_setting_existed_goes_on(command, base_folder, straight, tmp_path, capsys):
    """Catches a new setting that ends every run begun without it, and another value than its default."""
    path = copy_run(straight, tmp_path / "run") / "run.yaml"
    before = path.read_text(encoding="utf-8").replace("deterministic: false\n", "")
    path.write_text(before, encoding="utf-8")
    assert main(["pretrain", "--config", str(path), "--resume", "--deterministic"]) == 2
    assert "to resume, deterministic must be as in" in capsys.readouterr().err
    assert main(["pretrain", "--config", str(path), "--resume"]) == 0
    path.write_text(before.replace(f"model: {base_folder}\n", ""), encoding="utf-8")
    assert main([*command, "--resume"]) == 2
    assert "to resume, model must be as in" in capsys.readouterr().err


def test_a_run_begun_with_a_setting_that_changes_nothing_goes_on(straight, tmp_path):
    """Catches a run of before the setting was refused that can go on neither with it nor without it."""
    run = copy_run(straight, tmp_path / "run")
    path = run / "run.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("warm_start_rows: 256", "warm_start_rows: 8"),
        encoding="utf-8",
    )
    shutil.rmtree(run / "shadow")
    assert main(["pretrain", "--config", str(path), "--resume"]) == 0
    assert (run / "shadow").is_dir()


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


def test_run_by_the_clock_ends_and_anneals(base_folder, text_file, tmp_path, monkeypatch):
    """Catches a run that overruns its time, ends at a high learning rate, or without a last evaluation."""
    now = time.monotonic()

    def second_over(*_: object, **__: object) -> None:
        nonlocal now
        now += 1

    monkeypatch.setattr(PretrainProgress, "on_step_end", second_over)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
    clock = {"max_steps": None, "max_seconds": 15.0}
    result = pretrained(base_folder, text_file, tmp_path / "run", **clock)
    assert 15 <= result.seconds == result.steps <= 16
    assert result.shadow is not None
    rates = logged(tmp_path / "run", "learning_rate")
    assert rates[-1] < 0.1 * max(rates)
    assert result.eval_loss is not None
    assert result.start_loss is not None
    assert result.eval_loss < result.start_loss


def test_activations_that_are_computed_again_change_nothing(straight, base_folder, text_file, tmp_path):
    """Catches a switch that is not thrown, one that warns of its name, and gradients of other activations."""
    runs: Counter[str] = Counter()
    hook = register_module_forward_pre_hook(
        lambda module, _: runs.update([type(module).__name__] * torch.is_grad_enabled())
    )
    pretrained(base_folder, text_file, tmp_path / "run", gradient_checkpointing=True)
    hook.remove()
    passes = runs["Qwen3RotaryEmbedding"]
    assert passes >= 10 * 2
    assert runs["Qwen3MLP"] == 2 * 2 * passes, "each of the shadow's two blocks runs twice a pass"
    assert_same_bits(straight, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"blocks": [9]}, "one of the base's 4 blocks"),
        ({"match_block": 4}, "one of the base's 4 blocks"),
        ({"report_to": "nonsense"}, "report_to nonsense cannot be used"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_the_work(base_folder, text_file, tmp_path, changes, told):
    """Catches settings that are ignored, or that fail in the middle of a run with more than one sentence."""
    with pytest.raises(UserError, match=told):
        pretrain(settings(base_folder, text_file, tmp_path / "run", **changes))
    assert not list((tmp_path / "run").glob("*"))


def test_a_run_of_several_processes_is_refused(base_folder, text_file, tmp_path, monkeypatch):
    """Catches processes that each train the whole run and write to one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="pretraining runs in one process"):
        pretrain(settings(base_folder, text_file, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
