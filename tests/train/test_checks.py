"""Settings that a machine or a launcher does not allow, refused before any work."""

from pathlib import Path

import pytest

from shadowpeft.cli import main
from shadowpeft.embedded import MODEL
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.ops import choice
from shadowpeft.train import TrainConfig, checks, train


@pytest.mark.parametrize(
    ("setting", "message"),
    [("", "fsdp_cpu_ram_efficient_loading: false"), ("--load-in-4bit", "4-bit base is not sharded")],
)
def test_fsdp_settings_are_refused_before_any_work(
    setting: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    """Catches a base loaded in one process only, as accelerate does by default, and a folder that is in the
    way of the next try."""
    variables = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("shadowpeft.train.checks.check_4bit", lambda config: None)
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text('{"text": "a"}', encoding="utf-8")
    words = f"train --model {MODEL} --data {rows} --output {run} {setting}"
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert not run.exists()


def test_an_implementation_that_cannot_run_is_refused_first(monkeypatch, tmp_path):
    """Catches a folder made, and a model loaded, for kernels that have no GPU to run on."""
    monkeypatch.setattr(choice, "no_triton", lambda: "needs a GPU that torch can use, found none")
    wanted = r"^impl='triton' needs a GPU that torch can use, found none; set impl='auto' or 'reference'$"
    with pytest.raises(ConfigError, match=wanted):
        train(TrainConfig(model="m", data="d", output=str(tmp_path / "run"), impl="triton"))
    assert not (tmp_path / "run").exists()


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    wanted = r"^pretraining needs the accelerate library; pip install 'shadowpeft\[train\]'$"
    with pytest.raises(UserError, match=wanted):
        checks.require_accelerate("pretraining")
    with pytest.raises(UserError, match=r"^training needs the accelerate library"):
        checks.check(TrainConfig(model="m", data="d", output="o"))
