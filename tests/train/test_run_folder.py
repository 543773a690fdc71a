"""Folders that a run may write to, and runs that may be continued."""

import pytest
import yaml

from shadowpeft.cli import main
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.train import run_folder, train, trainer
from shadowpeft.train.config import TrainConfig


def test_a_run_of_before_a_setting_of_the_shadow_existed_goes_on(command, tmp_path, capsys):
    """Catches a new setting in the shadow's group of the file that ends every run begun without it."""
    assert main([*command, "--max-steps", "4"]) == 0
    settings = tmp_path / "run" / "run.yaml"
    settings.write_text(
        settings.read_text(encoding="utf-8").replace("  shadow_distil: 0.0\n", ""), encoding="utf-8"
    )
    assert main([*command, "--max-steps", "4", "--shadow.shadow_distil", "0.5", "--resume"]) == 2
    assert "to resume, shadow must be as in" in capsys.readouterr().err
    assert "shadow_distil" not in settings.read_text(encoding="utf-8")
    assert main(["train", "--config", str(settings), "--resume"]) == 0


def test_resume_needs_the_same_settings(command, tmp_path, capsys):
    """Catches a continuation that silently becomes another run."""
    assert main([*command, "--max-steps", "1"]) == 0
    assert main([*command, "--max-steps", "2", "--resume", "--seed", "3", "--shadow.r", "4"]) == 2
    assert "to resume, shadow, seed must be as in" in capsys.readouterr().err
    assert main([*command, "--max-steps", "2", "--resume", "--backbone-learning-rate", "0.001"]) == 2
    assert "to resume, backbone_learning_rate must be as in" in capsys.readouterr().err
    assert main([*command, "--max-steps", "2", "--resume", str(tmp_path)]) == 2
    assert "is not a complete checkpoint" in capsys.readouterr().err
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    assert main([*command, "--max-steps", "2", "--resume", str(checkpoint)]) == 0


@pytest.mark.parametrize("content", ["[1, 2]", "words", ""])
def test_a_settings_file_without_settings_differs(content, tmp_path):
    """Catches a file that holds no settings taken for one that agrees with all."""
    (tmp_path / "run.yaml").write_text(content, encoding="utf-8")
    before = run_folder.read_settings(tmp_path / "run.yaml", "run")
    now = {"model": "m", "seed": 0, "device": "cpu"}
    assert before == {}
    assert run_folder.changed_settings(before, now, free=("device",)) == ["model", "seed"]


@pytest.mark.parametrize("content", [b"- [", b"\xff"])
def test_a_settings_file_that_is_not_yaml_is_refused(content, base_folder, rows_file, tmp_path, no_weights):
    (tmp_path / "run.yaml").write_bytes(content)
    folders = {"model": str(base_folder), "data": str(rows_file), "output": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"run\.yaml is not valid YAML, so the run cannot be resumed"):
        train(TrainConfig(**folders, resume=True))


def test_output_folders_that_are_refused(base_folder, rows_file, tmp_path, no_weights):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work", encoding="utf-8")
    common = {"model": str(base_folder), "data": str(rows_file)}
    with pytest.raises(ConfigError, match="holds something other than a run"):
        train(TrainConfig(output=str(tmp_path / "thesis"), resume=True, **common))
    with pytest.raises(ConfigError, match="is a file"):
        train(TrainConfig(output=str(rows_file), **common))
    config = TrainConfig(output=str(tmp_path / "run"), **common)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(config.to_yaml(), encoding="utf-8")
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


@pytest.mark.parametrize("group", ["", "shadow"])
def test_a_run_of_settings_that_are_not_known_is_not_continued(tmp_path, group):
    """Catches a setting of a run that is dropped without a word when the run goes on."""
    config = TrainConfig(model="m", data="d", output=str(tmp_path), resume=True)
    settings = yaml.safe_load(config.to_yaml())
    (settings[group] if group else settings)["lora_r"] = 4
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    where = f"{group}.lora_r" if group else "lora_r"
    with pytest.raises(ConfigError, match=rf"run\.yaml has the unknown setting {where}; remove it"):
        run_folder.prepare(config, "adapter", run_folder.FREE_ON_RESUME)
