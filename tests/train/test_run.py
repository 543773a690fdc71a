"""Training through the real command line: accumulation, resuming, stopping, full disks, and what is refused before it starts."""

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.families import perturb
from helpers.runs import (
    one_thread,  # noqa: F401 - a fixture
    save_base,
    text_rows,
    write_rows,
)
from safetensors.torch import load_file
from transformers import AutoTokenizer, StableLmConfig

from shadowpeft import ShadowConfig, ShadowedModel, UserError, attach
from shadowpeft.cli import main
from shadowpeft.data.encode import Collator, encode_all
from shadowpeft.data.rows import read_rows
from shadowpeft.errors import CheckpointError, ConfigError, DataError, UnsupportedModelError
from shadowpeft.ops import choice
from shadowpeft.storage import adapter_folder, stock_models
from shadowpeft.train import attention, callbacks, checkpoints, train, trainer
from shadowpeft.train import run as training
from shadowpeft.train.config import TrainConfig

# Dropout, evaluation and shuffling; 20 rows in batches of 2 x 2 are 5 steps an epoch.
FLAGS = [
    "--eval-fraction=0.17",
    "--epochs=2",
    "--batch-size=2",
    "--gradient-accumulation=2",
    "--logging-steps=1",
    "--save-steps=4",
]
FLAGS += ["--eval-steps=4", "--learning-rate=0.01", "--device=cpu"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", text_rows(24))


@pytest.fixture
def command(base_folder, rows_file, tmp_path) -> list[str]:
    return [
        "train",
        "--model",
        str(base_folder),
        "--data",
        str(rows_file),
        "--output",
        str(tmp_path / "run"),
        *FLAGS,
    ]


@pytest.fixture(scope="module")
def straight(base_folder, rows_file, tmp_path_factory) -> Path:
    """The ten steps of `command` in one go."""
    output = tmp_path_factory.mktemp("straight") / "run"
    assert (
        main(
            ["train", "--model", str(base_folder), "--data", str(rows_file), "--output", str(output), *FLAGS]
        )
        == 0
    )
    return output


def adapter_of(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "shadow.safetensors")


def logged(output: Path, name: str = "loss") -> list[float]:
    return [
        entry[name]
        for line in (output / "metrics.jsonl").read_text().splitlines()
        if name in (entry := json.loads(line))
    ]


def assert_same_bits(one: Path, other: Path) -> None:
    left, right = adapter_of(one), adapter_of(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# The result


def test_run_leaves_what_it_promises(straight, base_folder):
    """Catches a missing file, a card without the run's facts, and an adapter that cannot be loaded or did not learn."""
    assert sorted(path.name for path in straight.iterdir()) == [
        "adapter",
        "checkpoints",
        "metrics.jsonl",
        "run.yaml",
    ]
    assert {path.name for path in straight.glob("checkpoints/*")} == {"checkpoint-10", "checkpoint-8"}
    assert not list(straight.rglob("model.safetensors")), "a checkpoint holds the adapter only"
    card = (straight / "adapter" / "README.md").read_text()
    for fact in (
        "rows.jsonl",
        "| rows | 20 |",
        "| eval rows | 4 |",
        "| steps | 10 |",
        "| epochs | 2.0 |",
        "eval loss",
        "device | cpu",
    ):
        assert fact in card, fact
    losses = logged(straight)
    assert len(losses) == len(logged(straight, "shadow_loss")) == 10
    assert sum(losses[-4:]) < sum(losses[:4]), (
        "one step's loss depends more on its rows than on what was learned"
    )
    assert len(logged(straight, "eval_loss")) == 3, "steps 4, 8 and 10"
    ShadowedModel.from_pretrained(stock_models.load_model(str(base_folder)), straight / "adapter")


def test_run_file_repeats_the_run(straight, tmp_path):
    """Catches a field missing from run.yaml and a random choice that the seed does not decide."""
    assert (
        main(
            [
                "train",
                "--config",
                str(straight / "run.yaml"),
                "--output",
                str(tmp_path / "again"),
                "--logging-steps",
                "5",
            ]
        )
        == 0
    )
    assert_same_bits(straight, tmp_path / "again")
    for name in ("loss", "shadow_loss"):  # each entry is the mean over its own steps
        each = logged(straight, name)
        assert logged(tmp_path / "again", name) == pytest.approx([sum(each[:5]) / 5, sum(each[5:]) / 5])
    changes = ["--output", str(tmp_path / "other"), "--seed", "5", "--max-steps", "1"]
    assert main(["train", "--config", str(straight / "run.yaml"), *changes]) == 0
    name = "shadow.backbone.layers.0.self_attn.q_proj.weight"
    assert (adapter_of(straight)[name] - adapter_of(tmp_path / "other")[name]).abs().max() > 0.1


def test_first_loss_is_the_models_own(base_folder, rows_file, tmp_path):
    """Catches labels counted unshifted, which scales the loss of rows that are learned from their first token."""
    folders = {"model": str(base_folder), "data": str(rows_file), "output": str(tmp_path / "run")}
    result = train(
        TrainConfig(
            **folders,
            eval_fraction=0,
            batch_size=24,
            max_steps=1,
            logging_steps=1,
            shadow=ShadowConfig(dropout=0.0),
        )
    )
    torch.manual_seed(0)
    model = attach(stock_models.load_model(str(base_folder), torch.float32), ShadowConfig(dropout=0.0))
    examples = encode_all(read_rows(str(rows_file)), AutoTokenizer.from_pretrained(base_folder), 128)
    out = model(**Collator(2)(examples))
    assert result.train_loss == pytest.approx(out.loss.item(), rel=1e-5)
    assert result.shadow_loss == pytest.approx(out.shadow_loss.item(), rel=1e-5)
    assert result.eval_loss is None


def test_accumulation_1x8_equals_8x1(command, tmp_path):
    """Catches a loss averaged per micro-batch instead of per token of the whole batch."""
    for batch, accumulation in ((8, 1), (1, 8)):
        changes = [
            "--batch-size",
            str(batch),
            "--gradient-accumulation",
            str(accumulation),
            "--shadow.dropout",
            "0",
        ]
        assert (
            main(
                [
                    *command,
                    *changes,
                    "--output",
                    str(tmp_path / f"{batch}x{accumulation}"),
                    "--max-steps",
                    "4",
                ]
            )
            == 0
        )
    one, other = tmp_path / "8x1", tmp_path / "1x8"
    assert logged(one) == pytest.approx(logged(other), rel=1e-5)
    for name, tensor in adapter_of(one).items():
        torch.testing.assert_close(adapter_of(other)[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("flag", ["--gradient-checkpointing", "--bf16", "--shadow-model"])
def test_other_ways_to_train(flag, command, straight, base_folder, tmp_path):
    """Catches a switch that does not reach the Trainer, and an adapter trained in bfloat16."""
    words = [flag, str(base_folder)] if flag == "--shadow-model" else [flag]
    assert main([*command, *words, "--max-steps", "2", "--shadow.dropout", "0"]) == 0
    saved = adapter_of(tmp_path / "run")
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    assert (saved.keys() == adapter_of(straight).keys()) == (flag != "--shadow-model")
    if flag != "--shadow-model":
        changes = ["--output", str(tmp_path / "plain"), "--max-steps", "2", "--shadow.dropout", "0"]
        assert main([*command, *changes]) == 0
        tolerance = 1e-5 if flag == "--gradient-checkpointing" else 0.02
        assert logged(tmp_path / "run") == pytest.approx(logged(tmp_path / "plain"), rel=tolerance)
        assert flag != "--bf16" or logged(tmp_path / "run") != logged(tmp_path / "plain")


# A learning rate of the backbone's own


@pytest.mark.parametrize("explicit", [True, False])
def test_the_backbone_moves_at_its_own_rate(explicit, base_folder, rows_file, tmp_path, monkeypatch):
    """Catches a rate that is not applied, that reaches projection, coupling or norms outside the backbone, or that leaves out its norms."""
    narrow = save_base(tmp_path / "narrow", hidden_size=16)
    build, models = training._build_model, []

    def perturbed(config):
        model = perturb(build(config))  # a fresh coupling has parts that no gradient reaches yet
        models.append(
            (
                model,
                {
                    name: weight.detach().clone()
                    for name, weight in model.named_parameters()
                    if weight.requires_grad
                },
            )
        )
        return model

    monkeypatch.setattr(training, "_build_model", perturbed)
    folders = {"model": str(base_folder), "data": str(rows_file), "output": str(tmp_path / "run")}
    once = {
        "max_steps": 1,
        "scheduler": "constant",
        "warmup": 0.0,
        "eval_fraction": 0.0,
        "batch_size": 24,
        "device": "cpu",
    }
    rates = {"learning_rate": 1e-2, "backbone_learning_rate": 1e-3}
    settings = ShadowConfig(variant="paper", dropout=0.0)
    train(
        TrainConfig(
            **folders, **once, **rates, shadow=settings, shadow_model=str(narrow) if explicit else None
        )
    )
    ((model, before),) = models
    # The first step of AdamW moves a weight by the learning rate, whatever its gradient.
    moved = {
        name: (model.get_parameter(name).detach() - weight).abs().max().item()
        for name, weight in before.items()
    }
    parts = {name.removeprefix("adapters.default.").partition(".")[0] for name in moved}
    assert parts == {"shadow", "injections", "updates", "norm"}
    shadow = "adapters.default.shadow."
    assert (f"{shadow}projection.weight" in moved) == explicit
    assert f"{shadow}backbone.norm.weight" in moved
    assert moved == pytest.approx(
        {name: 1e-3 if name.startswith(shadow) else 1e-2 for name in moved}, rel=1e-2
    )


def test_one_rate_for_both_is_one_rate(command, straight, tmp_path):
    """Catches a backbone that the schedule, the clipping or the warm-up leaves out, or whose moments are others."""
    assert main([*command, "--backbone-learning-rate", "0.01"]) == 0
    assert_same_bits(straight, tmp_path / "run")
    assert logged(tmp_path / "run", "learning_rate") == logged(straight, "learning_rate")


def test_the_optimizers_groups(command, straight, tmp_path):
    """Catches a run without the setting whose optimizer is not the Trainer's, a weight decay that is lost, and another rate in the log."""

    def groups(output: Path) -> list[dict]:
        return torch.load(output / "checkpoints" / "checkpoint-10" / "optimizer.pt", weights_only=True)[
            "param_groups"
        ]

    assert main([*command, "--weight-decay", "0.1", "--backbone-learning-rate", "0.001"]) == 0
    plain, apart = groups(straight), groups(tmp_path / "run")
    assert [group["weight_decay"] for group in apart] == [0.1, 0.0, 0.1, 0.0]
    assert [group["initial_lr"] for group in apart] == [0.01, 0.01, 0.001, 0.001]
    assert [group["initial_lr"] for group in plain] == [0.01, 0.01]
    sizes = [len(group["params"]) for group in apart]
    assert [len(group["params"]) for group in plain] == [sizes[0] + sizes[2], sizes[1] + sizes[3]]
    assert logged(tmp_path / "run", "learning_rate") == logged(straight, "learning_rate")
    facts = [(output / "adapter" / "README.md").read_text() for output in (straight, tmp_path / "run")]
    assert ["backbone learning rate | 0.001" in fact for fact in facts] == [False, True]
    assert "backbone_learning_rate: 0.001" in (tmp_path / "run" / "run.yaml").read_text()


def test_two_rates_resume_bit_for_bit(command, straight, signal_at, monkeypatch, tmp_path):
    """Catches moments that a checkpoint gives back to other weights, and a rate that starts anew or becomes the other's."""
    words = [*command, "--backbone-learning-rate", "0.001", "--weight-decay", "0.1"]
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    signal_at(2)
    assert main(words) == 130
    monkeypatch.undo()
    assert main([*words, "--resume"]) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "run")
    assert logged(tmp_path / "run") == logged(tmp_path / "whole") != logged(straight)


def test_a_checkpoint_of_one_rate_is_not_taken_for_two(command, straight, tmp_path, capsys):
    """Catches a trace of torch's optimizer where a checkpoint of another run is named."""
    start = straight / "checkpoints" / "checkpoint-8"
    (tmp_path / "run").mkdir()
    assert main([*command, "--backbone-learning-rate", "0.001", "--resume", str(start)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{start} does not fit this run's optimizer" in said
    assert "backbone_learning_rate must be set where the checkpoint's run had it set" in said


def test_a_run_of_before_a_setting_of_the_shadow_existed_goes_on(command, tmp_path, capsys):
    """Catches a new setting of the shadow's own, a group in the file, that ends every run begun without it."""
    assert main([*command, "--max-steps", "4"]) == 0
    settings = tmp_path / "run" / "run.yaml"
    settings.write_text(settings.read_text().replace("  shadow_distil: 0.0\n", ""))
    assert main([*command, "--max-steps", "4", "--shadow.shadow_distil", "0.5", "--resume"]) == 2
    assert "to resume, shadow must be as in" in capsys.readouterr().err
    assert "shadow_distil" not in settings.read_text()
    assert main(["train", "--config", str(settings), "--resume"]) == 0


# Stopping and resuming


@pytest.fixture
def signal_at(monkeypatch):
    """Send signals to this process at the end of a step."""

    def install(step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                for _ in range(times):
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(callbacks.Progress, "on_step_end", on_step_end)

    return install


@pytest.mark.parametrize(
    ("step", "number"),
    [(2, signal.SIGINT), (4, signal.SIGTERM)],
    ids=["SIGINT mid-epoch", "SIGTERM at epoch end"],
)
def test_interrupted_run_resumes_bit_for_bit(
    step, number, command, straight, signal_at, monkeypatch, tmp_path, capsys
):
    """Catches lost random states, a wrong place in the data, a stale optimizer, and a Ctrl-C that loses the step."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal_at(step, number)
    assert main(command) == 130
    monkeypatch.undo()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    output = tmp_path / "run"
    assert not (output / "adapter").exists()
    assert checkpoints.is_complete(output / "checkpoints" / f"checkpoint-{step + 1}")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"shadowpeft train: stopped after step {step + 1} and saved; continue with: shadowpeft train --config "
    )
    assert main(said.partition("continue with: shadowpeft ")[2].split()) == 0
    assert_same_bits(straight, output)
    assert logged(output) == logged(straight)


def test_second_interrupt_acts_at_once(command, signal_at, tmp_path, capsys):
    """Catches a run that cannot be stopped while its last step hangs."""
    signal_at(5, times=2)
    assert main(command) == 130
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "shadowpeft train: interrupted; what was saved before is kept"
    )
    assert checkpoints.latest_checkpoint(tmp_path / "run" / "checkpoints").name == "checkpoint-4"


def test_killed_run_resumes_bit_for_bit(command, straight, tmp_path):
    """Catches state that only an orderly end would write."""
    slow = "import time, sys; from shadowpeft.train import callbacks\n"
    slow += "callbacks.Progress.on_step_end = lambda *_, **__: time.sleep(0.3)\n"
    slow += "from shadowpeft.cli import main; sys.exit(main(sys.argv[1:]))"
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums in another order have other bits
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", slow, *command], env=one_core, **quiet)
    while not checkpoints.is_complete(tmp_path / "run" / "checkpoints" / "checkpoint-4"):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main([*command, "--resume"]) == 0
    assert_same_bits(straight, tmp_path / "run")


def test_incomplete_checkpoint_is_skipped(command, straight, tmp_path, capsys):
    """Catches resuming from files that were cut short."""
    assert main([*command, "--save-steps", "2", "--max-steps", "10"]) == 0
    output = tmp_path / "run"
    state = output / "checkpoints" / "checkpoint-10" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    assert main([*command, "--save-steps", "2", "--max-steps", "10", "--resume"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warned) == 1
    assert "checkpoint-10 is incomplete" in warned[0]
    assert_same_bits(straight, output)


def test_checkpoint_being_overwritten_is_not_complete(command, monkeypatch, tmp_path):
    """Catches a checkpoint that a kill leaves half old, half new, and marked as complete."""
    seen = []
    save = trainer.ShadowTrainer._save_rng_state
    monkeypatch.setattr(
        trainer.ShadowTrainer,
        "_save_rng_state",
        lambda self, folder: (seen.append(checkpoints.is_complete(Path(folder))), save(self, folder)),
    )
    assert main([*command, "--max-steps", "2", "--save-steps", "1"]) == 0
    first = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    assert main([*command, "--max-steps", "2", "--save-steps", "1", "--resume", str(first)]) == 0
    assert seen == [False] * 3


def test_resume_checks_the_adapter(command, base_folder, tmp_path, capsys):
    """Catches a checkpoint of a damaged or other adapter that is taken without a word."""
    assert main([*command, "--max-steps", "1"]) == 0
    weights = tmp_path / "run" / "checkpoints" / "checkpoint-1" / "shadow.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert main([*command, "--resume"]) == 2
    assert "shadow.safetensors is damaged or cut short" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 100, -10])
def test_resume_checks_the_optimizer(size, command, tmp_path, capsys):
    """Catches a trace of torch's reader."""
    assert main([*command, "--max-steps", "1"]) == 0
    folder = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes()[:size])
    assert main([*command, "--resume"]) == 2
    assert f"{folder} is damaged: the state of its optimizer cannot be read" in capsys.readouterr().err


def test_resume_needs_the_same_settings(command, tmp_path, capsys):
    """Catches a continuation that silently becomes another run."""
    assert main([*command, "--max-steps", "1"]) == 0
    assert main([*command, "--max-steps", "2", "--resume", "--seed", "3", "--shadow.r", "4"]) == 2
    assert "to resume, shadow, seed must be as in" in capsys.readouterr().err
    assert main([*command, "--max-steps", "2", "--resume", "--backbone-learning-rate", "0.001"]) == 2
    assert "to resume, backbone_learning_rate must be as in" in capsys.readouterr().err
    assert main([*command, "--max-steps", "2", "--resume", str(tmp_path)]) == 2
    assert "is not a complete checkpoint" in capsys.readouterr().err
    assert (
        main(
            [*command, "--max-steps", "2", "--resume", str(tmp_path / "run" / "checkpoints" / "checkpoint-1")]
        )
        == 0
    )


# A disk that fills


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the operating system refuse to write beyond so many bytes of a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_full_keeps_earlier_checkpoints(command, straight, tmp_path, capsys):
    """Catches a failed save that takes a good checkpoint along, or that is later taken for a good one."""
    output = tmp_path / "run"
    assert main([*command, "--max-steps", "4"]) == 0
    kept = {path: path.read_bytes() for path in (output / "checkpoints" / "checkpoint-4").iterdir()}
    adapter = (output / "adapter" / "shadow.safetensors").stat().st_size
    for size, what in ((adapter // 2, "the adapter"), (adapter + 4000, "the optimizer")):
        with largest_file(size):
            code = main([*command, "--max-steps", "10", "--resume"])
        said = capsys.readouterr().err.splitlines()[-1]
        assert code == 1, what
        assert said.startswith(f"shadowpeft train: could not save {output}/checkpoints/checkpoint-8: "), said
        assert "earlier checkpoints are unchanged" in said
        assert said.count("could not save") == 1
        assert {path: path.read_bytes() for path in kept} == kept
        assert checkpoints.latest_checkpoint(output / "checkpoints").name == "checkpoint-4"


def test_disk_full_at_the_end_leaves_a_resumable_run(command, monkeypatch, tmp_path, capsys):
    """Catches a final save that loses the trained adapter."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    save = adapter_folder.save_file
    monkeypatch.setattr(
        adapter_folder,
        "save_file",
        lambda state, path, **rest: (full if "adapter/" in str(path) else save)(state, path, **rest),
    )
    assert main([*command, "--max-steps", "2"]) == 1
    assert (
        f"could not save to {tmp_path}/run/adapter: [Errno 28] No space left on device"
        in capsys.readouterr().err
    )
    monkeypatch.undo()
    assert main([*command, "--max-steps", "2", "--resume"]) == 0
    assert len(logged(tmp_path / "run")) == 2, "there was nothing left to train"
    trained = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-2" / "shadow.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in adapter_of(tmp_path / "run").items())


# Refused before the model is loaded


@pytest.fixture
def no_weights(monkeypatch):
    """Fail if a check comes only after the weights were loaded."""
    monkeypatch.setattr(
        stock_models, "load_model", lambda *_: pytest.fail("the model was loaded before the check")
    )


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ('{"prompt": "what", "completion": ', DataError, "rows.jsonl:2: expected one JSON object"),
        ('{"question": "what"}', DataError, "rows.jsonl:2: expected a row like"),
        (
            json.dumps({"prompt": "what " * 200, "completion": "is"}),
            DataError,
            "rows.jsonl:2: the prompt has",
        ),
        (json.dumps({"prompt": "what", "completion": ""}), DataError, "rows.jsonl:2: expected an answer"),
    ],
    ids=["broken JSON", "no known field", "too long", "no label"],
)
def test_bad_rows_are_refused_first(row, kind, message, base_folder, tmp_path, no_weights):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "hello"}\n' + row + "\n")
    with pytest.raises(kind, match=message):
        train(
            TrainConfig(model=str(base_folder), data=str(path), output=str(tmp_path / "run"), eval_fraction=0)
        )
    assert list((tmp_path / "run").iterdir()) == []


def test_bad_bases_are_refused_first(rows_file, tmp_path, no_weights):
    common = {"data": str(rows_file), "output": str(tmp_path / "run")}
    with pytest.raises(UserError, match="there is no model folder"):
        train(TrainConfig(model=str(tmp_path / "nowhere"), **common))
    StableLmConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedModelError, match="stablelm"):
        train(TrainConfig(model=str(tmp_path / "other"), **common))
    small = save_base(tmp_path / "small", vocab_size=50)
    with pytest.raises(ConfigError, match="but the model knows only 50 tokens"):
        train(TrainConfig(model=str(small), **common))


def test_shadows_that_cannot_be_are_refused_first(base_folder, rows_file, tmp_path, no_weights, monkeypatch):
    common = {"model": str(base_folder), "data": str(rows_file), "output": str(tmp_path / "run")}
    with pytest.raises(
        ConfigError,
        match=r"inject_from must be below the base's \d+ blocks, got 99: .*; set it to at most \d+$",
    ):
        train(TrainConfig(shadow=ShadowConfig(inject_from=99), **common))
    monkeypatch.setattr(choice, "no_triton", lambda: "needs a GPU that torch can use, found none")
    with pytest.raises(
        ConfigError,
        match=r"^impl='triton' needs a GPU that torch can use, found none; set impl='auto' or 'reference'$",
    ):
        train(TrainConfig(impl="triton", **{**common, "output": str(tmp_path / "other")}))
    assert not (tmp_path / "other").exists()


def test_output_folders_that_are_refused(base_folder, rows_file, tmp_path, no_weights):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    common = {"model": str(base_folder), "data": str(rows_file)}
    with pytest.raises(ConfigError, match="holds something other than a run"):
        train(TrainConfig(output=str(tmp_path / "thesis"), resume=True, **common))
    with pytest.raises(ConfigError, match="is a file"):
        train(TrainConfig(output=str(rows_file), **common))
    config = TrainConfig(output=str(tmp_path / "run"), **common)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(config.to_yaml())
    (tmp_path / "run" / "adapter").mkdir()
    with pytest.raises(ConfigError, match="holds a run already; continue it with resume"):
        train(config)
    with pytest.raises(CheckpointError, match="cannot be made"):
        train(TrainConfig(output=str(rows_file / "sub"), **common))
    with pytest.raises(CheckpointError, match="cannot be made"):
        train(TrainConfig(output="/proc/shadowpeft", **common))
    with pytest.raises(ConfigError, match=f"there is no run to resume in {tmp_path}/new; leave out --resume"):
        train(TrainConfig(output=str(tmp_path / "new"), resume=True, **common))
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="report_to foo cannot be used: foo is not supported"):
        train(TrainConfig(output=str(tmp_path / "reported"), report_to="foo", **common))


def test_start_that_came_to_nothing_may_be_repeated(command, monkeypatch, tmp_path, capsys):
    """Catches a first failure that blocks the output folder; continuing it says where it starts."""
    with monkeypatch.context() as patch:
        patch.setattr(trainer.ShadowTrainer, "compute_loss", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*command, "--max-steps", "1"])
    assert (tmp_path / "run" / "run.yaml").is_file()
    assert main([*command, "--max-steps", "1", "--resume"]) == 0
    assert "no checkpoint yet: starting at step 0" in capsys.readouterr().err.splitlines()
    assert main([*command, "--max-steps", "2", "--resume"]) == 0
    assert "resuming from checkpoint-1" in capsys.readouterr().err.splitlines()
    assert main([*command, "--max-steps", "1"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(trainer.ShadowTrainer, "compute_loss", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*command, "--output", str(tmp_path / "again")])
    assert main([*command, "--output", str(tmp_path / "again"), "--max-steps", "1"]) == 0


def test_bf16_without_a_gpu_takes_the_cpu(monkeypatch, tmp_path):
    """Catches transformers' advice to set use_cpu, which is no setting of ours."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    config = TrainConfig(model="m", data="d", output=str(tmp_path), bf16=True)
    assert training._training_arguments(config).use_cpu


def test_short_run_shows_its_losses(command, tmp_path, capsys):
    """Catches a run shorter than logging_steps that tells nothing, and a card without the run's settings."""
    assert main([*command, "--max-steps", "2", "--logging-steps", "50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train_loss"] == pytest.approx(logged(tmp_path / "run")[-1])
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    for fact in (
        "learning rate | 0.01",
        "accumulation | 2 x 2",
        "max steps | 2",
        "seed | 0",
        "scheduler | cosine",
        "bf16 | False",
    ):
        assert fact in card, fact
    for fact in ("| r | 16 |", "| update_width | 10 |", "| inject_from | 1 |"):
        assert fact in card, fact
    assert "base_model:" not in card, "a path says nothing on the hub"


def test_loss_that_is_not_a_number(command, tmp_path, capsys):
    """Catches JSON that no reader takes, and a useless adapter that looks like a success."""
    assert (
        main([*command, "--max-steps", "3", "--learning-rate", "1e30", "--max-grad-norm", "0", "--json"]) == 1
    )
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("shadowpeft train: the loss is not a finite number")
    assert json.loads(said.out, parse_constant=pytest.fail)["train_loss"] is None
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert adapter_of(tmp_path / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {"shadow": 3},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"backbone_learning_rate": 0.0},
        {"backbone_learning_rate": -1.0},
        {"backbone_learning_rate": float("nan")},
        {"eval_fraction": 1.0},
        {"max_length": 1},
        {"warmup": -1.0},
        {"epochs": 0.0},
    ],
    ids=str,
)
def test_settings_out_of_range(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        TrainConfig(model="m", data="d", output="o", **changes)


def test_latest_checkpoint_counts_as_numbers(tmp_path):
    """Catches the order of names, in which 9 comes after 10."""
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json"):
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.latest_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    assert not checkpoints.is_complete(tmp_path / "checkpoint-10")
    assert checkpoints.latest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("before", [True, False])
def test_training_avoids_an_attention_with_wrong_gradients(before: bool) -> None:
    """Catches cuDNN's attention left on in training, where it makes NaN of some lengths, or left off behind it."""
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        with contextlib.suppress(ZeroDivisionError), attention.sound_attention():
            seen = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()
            raise ZeroDivisionError
        assert seen == (False, True)
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
