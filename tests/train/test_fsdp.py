"""Training in several processes equals training in one, by DDP and FSDP2 on a CPU; `tests/gpu` has NCCL."""

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from helpers.distributed_worker import CASES, STEPS, Trained, train
from helpers.families import attached, tiny_config, tiny_model, token_ids
from helpers.processes import (
    TORCHRUN,
    WORKER,
    accelerate_launch,
    folder_of_all_workers,
    last_losses,
    launch,
    relative_errors,
    same_weights,
    short_run,
)

from shadowpeft import ShadowConfig, arch
from shadowpeft.cli import main
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.train import fsdp


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What came of every case in two processes, by way and name; of pytest's workers one computes it."""
    output = folder_of_all_workers(tmp_path_factory) / "together.pt"
    with FileLock(output.with_suffix(".lock")):
        if not output.exists():
            # Under another name first: a run that dies must not leave half a file to the other workers.
            written = output.with_suffix(".new")
            done = launch(TORCHRUN, *WORKER, "cases", str(written))
            assert done.returncode == 0, done.stderr[-4000:]
            written.replace(output)
        return torch.load(output, weights_only=True)


@cache
def alone(name: str) -> Trained:
    return train(CASES[name], torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_what_one_does(
    together: dict[tuple[str, str], dict[str, Any]], way: str, name: str
) -> None:
    """Catches weights used while they are sharded, gradients not reduced, and a loss averaged per process."""
    wanted, found = alone(name), together[way, name]
    exact = 5e-3 if CASES[name].bf16 else 2e-6
    assert found["losses"] == pytest.approx(wanted.losses, rel=exact)
    for kind in ("gradients", "weights"):
        tensors = {"gradients": wanted.gradients, "weights": wanted.weights}[kind]
        assert found[kind].keys() == tensors.keys()
        errors = relative_errors(found[kind], tensors)
        assert max(errors.values()) < exact, (kind, max(errors, key=lambda key: errors[key]))
    sweeps = 0 if CASES[name].task == "sequence-classification" else STEPS
    assert found["swept"] == wanted.swept == sweeps, "logits were held"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_block_and_its_boundary_are_whole_only_while_they_run(
    together: dict[tuple[str, str], dict[str, Any]], name: str
) -> None:
    """Catches weights that are not shared out, or stay on every GPU for the whole step, and blocks gathered
    while a boundary is crossed."""
    assert together["ddp", name]["gathered"] == {}
    assert together["ddp", name]["kept"] == 1
    assert 0.5 <= together["fsdp", name]["kept"] < 0.55
    gathered = together["fsdp", name]["gathered"]
    injections, updates, blocks = (
        [unit for unit in gathered if unit.startswith(kind)] for kind in ("injections", "updates", "block")
    )
    assert blocks == [f"block {i}" for i in range(4)]
    assert injections
    assert updates
    assert all(gathered[unit] == {unit} for unit in (*blocks, *injections))
    # An update is called within the call of the injection of the same boundary.
    assert all(
        len(gathered[unit]) == 2 and gathered[unit] & {*injections} and unit in gathered[unit]
        for unit in updates
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*short_run(tmp_path_factory.mktemp("data")), "--device", "cpu"]


@pytest.fixture(scope="module")
def in_one(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run in one process."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert main([*settings, "--output", str(folder), "--batch-size", "4"]) == 0
    return folder


@pytest.fixture(scope="module")
def accelerate(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return accelerate_launch(tmp_path_factory.mktemp("settings"))


def train_in_two(way: str, accelerate: list[str], *arguments: str) -> dict[str, Any]:
    if way == "ddp":
        done = launch(TORCHRUN, "-m", "shadowpeft", *arguments)
    else:
        done = launch(accelerate, *WORKER, "fsdp-cli", *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_run_in_two_processes_is_the_run_in_one(
    way: str, settings: list[str], in_one: Path, accelerate: list[str], tmp_path: Path
) -> None:
    """Catches two processes writing one file, a base in the checkpoint, an optimizer's state that only fits
    shards, and a wrong resume."""
    arguments = [*settings, "--output", str(tmp_path / "two"), "--batch-size", "2"]
    result = train_in_two(way, accelerate, *arguments)
    assert last_losses(tmp_path / "two") == pytest.approx(last_losses(in_one), rel=1e-4)
    assert result["eval_loss"] == last_losses(tmp_path / "two")["eval_loss"]
    assert same_weights(in_one / "adapter", tmp_path / "two" / "adapter", 1e-4)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "two" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        if '"loss"' in line
    ]
    assert steps == [1, 2, 3, 4], "one process writes the log"

    last, of_one = (run / "checkpoints" / "checkpoint-4" for run in (tmp_path / "two", in_one))
    written = {path.name: path.stat().st_size for path in last.iterdir()}
    assert {name for name in written if not name.startswith("rng_state")} == {
        path.name for path in of_one.iterdir() if not path.name.startswith("rng_state")
    }
    assert written["shadow.safetensors"] == (of_one / "shadow.safetensors").stat().st_size
    theirs, ours = (
        torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in (of_one, last)
    )
    for number, values in theirs.items():
        for name, tensor in values.items():
            torch.testing.assert_close(ours[number][name], tensor, rtol=1e-3, atol=1e-6)

    shutil.move(tmp_path / "two" / "adapter", tmp_path / "uninterrupted")
    shutil.rmtree(last)
    again = train_in_two(way, accelerate, *arguments, "--resume", "true")
    assert again["steps"] == 4
    assert "resumed from | checkpoint-2" in (tmp_path / "two" / "adapter" / "README.md").read_text(
        encoding="utf-8"
    )
    assert same_weights(tmp_path / "uninterrupted", tmp_path / "two" / "adapter", 0)


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
@pytest.mark.parametrize("inject_from", [0, 1, 3])
def test_every_trained_weight_has_a_gradient_from_the_first_step(
    variant: Any, task: arch.Task, inject_from: int
) -> None:
    """Catches a weight for which DDP would need find_unused_parameters: dead in a variant, in a task, or
    below `inject_from`."""
    config = ShadowConfig(variant=variant, shadow_loss_weight=0.5, inject_from=inject_from)
    model = attached(tiny_model("llama", task), config).train()
    ids = token_ids(2, 9)
    model(ids, labels=ids if task == "causal-lm" else torch.tensor([0, 2])).loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert [name for name, weight in trained.items() if weight.grad is None] == []


def accelerator(mixed_precision: str = "no", **settings: Any) -> Any:
    """What `prepare` reads of an Accelerator: one process cannot have a real one with FSDP."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        **{"fsdp_version": 2, "auto_wrap_policy": "transformer_based_wrap", **settings}
    )
    if mixed_precision != "no":
        plugin.set_mixed_precision(mixed_precision)
    state = SimpleNamespace(fsdp_plugin=plugin)
    return SimpleNamespace(
        distributed_type="FSDP", state=state, device=torch.device("cpu"), mixed_precision=mixed_precision
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp_version": 1}, "only version 2 is supported, got 1; set fsdp_version: 2"),
        ({"activation_checkpointing": True}, "fsdp_activation_checkpointing: false"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading: false"),
        ({"ignored_modules": "base.lm_head"}, "leave out fsdp_ignored_modules"),
        (
            {"auto_wrap_policy": "size_based_wrap", "min_num_params": 8},
            "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
        ),
    ],
)
def test_fsdp_settings_that_do_not_work_are_refused(
    settings: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches wrong gradients under recomputed dropout, weights that exist in one process only, and obscure
    errors in the first step."""
    monkeypatch.setenv(
        "FSDP_CPU_RAM_EFFICIENT_LOADING", str("cpu_ram_efficient_loading" in settings)
    )  # the plugin would write it
    with pytest.raises(ConfigError, match=message):
        fsdp.prepare(accelerator(**settings), attached(tiny_model("llama")))


def test_fsdp_with_an_old_accelerate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches accelerate 1.12, which makes a bfloat16 base float32 under FSDP, in twice the memory."""
    monkeypatch.setattr("shadowpeft.train.fsdp.is_accelerate_available", lambda minimum: False)
    with pytest.raises(UserError, match=r"accelerate 1\.13 or later"):
        fsdp.prepare(accelerator(), attached(tiny_model("llama")))


def test_fsdp_leaves_the_norms_whole_and_the_types_alone() -> None:
    """Catches a norm that is a shard when the boundary reads through it, and trained weights, gradients or
    losses in bfloat16."""
    model = attached(tiny_model("llama", dtype=torch.bfloat16))
    model.adapters.float()
    prepared = accelerator("bf16")
    plugin = prepared.state.fsdp_plugin
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    fsdp.prepare(prepared, model)
    assert plugin.mixed_precision_policy is None
    norms = [block.input_layernorm for block in arch.blocks_of(model.base)]
    assert len(plugin.ignored_modules) == len(norms)
    assert all(one is two for one, two in zip(plugin.ignored_modules, norms, strict=True))
    assert model(token_ids(2, 9), labels=token_ids(2, 9)).loss.dtype == torch.float32, (
        "the forward pass runs under autocast"
    )


def test_without_fsdp_nothing_is_prepared() -> None:
    """Catches `prepare` failing for one process or DDP, whose accelerators have no settings of FSDP."""
    model = attached(tiny_model("llama"))
    fsdp.prepare(SimpleNamespace(distributed_type="MULTI_GPU"), model)  # type: ignore[arg-type]
    assert "forward" not in vars(model)


def test_units_are_the_blocks_and_the_boundaries() -> None:
    """Catches a unit that accelerate would look for in vain, and the blocks of a shadow of another family."""
    assert attached(tiny_model("llama"))._no_split_modules == {"LlamaDecoderLayer", "Injection", "Update"}
    one_block = tiny_model("llama", config=tiny_config("llama", num_hidden_layers=1))
    assert attached(one_block, ShadowConfig(inject_from=0))._no_split_modules == {
        "LlamaDecoderLayer",
        "Injection",
    }
    explicit = attached(tiny_model("llama"), shadow=tiny_model("gpt2", seed=7))
    assert explicit._no_split_modules == {"LlamaDecoderLayer", "GPT2Block", "Injection", "Update"}
