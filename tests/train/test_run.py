"""Training through the real command line: what a run learns, logs and repeats."""

from pathlib import Path

import pytest
import torch
from helpers.runs import adapter_of, assert_same_bits, logged
from safetensors.torch import load_file
from transformers import AutoTokenizer

from shadowpeft import ShadowConfig, attach
from shadowpeft.cli import main
from shadowpeft.data.encode import encode_all
from shadowpeft.data.packing import Collator
from shadowpeft.data.rows import read_rows
from shadowpeft.storage import stock_models
from shadowpeft.train import train
from shadowpeft.train.config import TrainConfig


def test_run_file_repeats_the_run(straight, tmp_path):
    """Catches a field missing from run.yaml and a random choice that the seed does not decide."""
    again = ["train", "--config", str(straight / "run.yaml"), "--output", str(tmp_path / "again")]
    assert main([*again, "--logging-steps", "5"]) == 0
    assert_same_bits(straight, tmp_path / "again")
    for name in ("loss", "shadow_loss"):  # each entry is the mean over its own steps
        each = logged(straight, name)
        assert logged(tmp_path / "again", name) == pytest.approx([sum(each[:5]) / 5, sum(each[5:]) / 5])
    changes = ["--output", str(tmp_path / "other"), "--seed", "5", "--max-steps", "1"]
    assert main(["train", "--config", str(straight / "run.yaml"), *changes]) == 0
    name = "shadow.backbone.layers.0.self_attn.q_proj.weight"
    assert (adapter_of(straight)[name] - adapter_of(tmp_path / "other")[name]).abs().max() > 0.1


def test_first_loss_is_the_models_own(base_folder, rows_file, tmp_path):
    """Catches labels counted unshifted, which scales the loss of rows learned from their first token."""
    folders = {"model": str(base_folder), "data": str(rows_file), "output": str(tmp_path / "run")}
    steps = {"batch_size": 24, "max_steps": 1, "logging_steps": 1, "eval_fraction": 0}
    result = train(TrainConfig(**folders, **steps, shadow=ShadowConfig(dropout=0.0)))
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
        output = tmp_path / f"{batch}x{accumulation}"
        changes = f"--batch-size {batch} --gradient-accumulation {accumulation} --max-steps 4"
        assert main([*command, *changes.split(), "--shadow.dropout", "0", "--output", str(output)]) == 0
    one, other = tmp_path / "8x1", tmp_path / "1x8"
    assert logged(one) == pytest.approx(logged(other), rel=1e-5)
    for name, tensor in adapter_of(one).items():
        torch.testing.assert_close(adapter_of(other)[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


TWO_STEPS = ["--max-steps", "2", "--shadow.dropout", "0"]


@pytest.fixture(scope="module")
def plain(ten_steps, tmp_path_factory) -> Path:
    """The folder of two steps in the plainest way: float32, all activations kept."""
    output = tmp_path_factory.mktemp("plain") / "run"
    assert main([*ten_steps, *TWO_STEPS, "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize(("flag", "exact"), [("--gradient-checkpointing", 1e-5), ("--bf16", 0.02)])
def test_other_ways_to_train(flag, exact, command, plain, tmp_path):
    """Catches a switch that does not reach the Trainer, and an adapter trained in bfloat16."""
    assert main([*command, flag, *TWO_STEPS]) == 0
    saved = adapter_of(tmp_path / "run")
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    assert saved.keys() == adapter_of(plain).keys()
    assert logged(tmp_path / "run") == pytest.approx(logged(plain), rel=exact)
    assert flag != "--bf16" or logged(tmp_path / "run") != logged(plain)


def test_a_shadow_that_starts_from_a_model(command, plain, base_folder, tmp_path):
    """Catches a folder that is not used, and an adapter trained in another type."""
    assert main([*command, "--shadow-model", str(base_folder), *TWO_STEPS]) == 0
    saved = adapter_of(tmp_path / "run")
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    assert saved.keys() != adapter_of(plain).keys()


def test_a_draft_vocabulary_changes_no_weight_and_is_saved(command, plain, tmp_path):
    """Catches a vocabulary that reaches the answers' loss, or only some of the folders that a run writes."""
    assert main([*command, "--draft-vocabulary", "12", *TWO_STEPS]) == 0
    saved, want = adapter_of(tmp_path / "run"), adapter_of(plain)
    assert all(torch.equal(saved[name], want[name]) for name in want)
    files = (tmp_path / "run").rglob("draft_vocabulary.safetensors")
    sizes = {file.parent.name: len(load_file(file)["ids"]) for file in files}
    assert set(sizes) == {"adapter", "checkpoint-2"}
    # Twelve and the special ones.
    assert len(set(sizes.values())) == 1
    assert 12 < sizes["adapter"] < 24
