"""The Trainer's own parts: a backbone's learning rate, checkpoints that are whole, full disks."""

import contextlib
import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.explicit_shadows import explicit
from helpers.families import attached, perturb, tiny_model
from helpers.runs import adapter_of, assert_same_bits, logged, save_base
from safetensors.torch import load_file
from transformers import TrainingArguments

from shadowpeft import ConfigError, ShadowConfig, ShadowedModel, UserError
from shadowpeft.cli import main
from shadowpeft.storage import adapter_folder
from shadowpeft.train import checkpoints, train, trainer
from shadowpeft.train import run as training
from shadowpeft.train.config import TrainConfig


@pytest.mark.parametrize("is_explicit", [True, False])
def test_the_backbone_moves_at_its_own_rate(is_explicit, base_folder, rows_file, tmp_path, monkeypatch):
    """Catches a rate that is not applied, that reaches projection, coupling or norms outside the backbone,
    or that leaves out its norms."""
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
            **folders, **once, **rates, shadow=settings, shadow_model=str(narrow) if is_explicit else None
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
    assert (f"{shadow}projection.weight" in moved) == is_explicit
    assert f"{shadow}backbone.norm.weight" in moved
    assert moved == pytest.approx(
        {name: 1e-3 if name.startswith(shadow) else 1e-2 for name in moved}, rel=1e-2
    )


def test_an_adapter_that_was_loaded_for_use_is_not_trained(tmp_path):
    """Catches frozen weights that a run would leave as they are, or an error of the optimizer's."""
    attached(tiny_model("llama")).save_pretrained(tmp_path)
    model = ShadowedModel.from_pretrained(tiny_model("llama"), tmp_path)
    with pytest.raises(UserError, match="load it with is_trainable=True"):
        trainer.ShadowTrainer(model, TrainingArguments(str(tmp_path / "run")))


def test_one_rate_for_both_is_one_rate(command, straight, tmp_path):
    """Catches a backbone that schedule, clipping or warm-up leaves out, or whose moments are others."""
    assert main([*command, "--backbone-learning-rate", "0.01"]) == 0
    assert_same_bits(straight, tmp_path / "run")
    assert logged(tmp_path / "run", "learning_rate") == logged(straight, "learning_rate")


def test_the_optimizers_groups(command, straight, tmp_path):
    """Catches a run without the setting whose optimizer is not the Trainer's, a weight decay that is lost,
    and another rate in the log."""

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
    facts = [
        (output / "adapter" / "README.md").read_text(encoding="utf-8")
        for output in (straight, tmp_path / "run")
    ]
    assert ["backbone learning rate | 0.001" in fact for fact in facts] == [False, True]
    assert "backbone_learning_rate: 0.001" in (tmp_path / "run" / "run.yaml").read_text(encoding="utf-8")


def test_a_rate_of_nothing_is_refused():
    """Catches a rate that is asked for and used by no weight."""
    model = explicit("one width", train_backbone=False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    with pytest.raises(ConfigError, match=r"backbone_learning_rate is the rate of .* neither trains"):
        trainer._set_backbone_apart(optimizer, model, 1e-3)
    model = explicit("narrower", train_backbone=False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    trainer._set_backbone_apart(optimizer, model, 1e-3)
    apart = optimizer.param_groups[1]
    assert (apart["lr"], [id(weight) for weight in apart["params"]]) == (
        1e-3,
        [id(model.adapter.shadow.projection.weight)],
    )


def test_two_rates_resume_bit_for_bit(command, straight, signal_at, monkeypatch, tmp_path):
    """Catches moments that a checkpoint gives back to other weights, and a rate that starts anew or becomes
    the other's."""
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
