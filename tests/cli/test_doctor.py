"""`shadowpeft doctor`."""

import torch
from helpers.command_line import mistake, result
from transformers import AutoConfig

from shadowpeft.cli import main


def test_doctor(capsys):
    facts = result(["doctor"], capsys)
    assert facts["versions"]["torch"] == torch.__version__
    assert "Qwen3" in facts["families"]
    assert facts["devices"][0]["device"] == "cpu"
    assert main(["doctor"]) == 0
    assert "transformers" in capsys.readouterr().out


def test_of_a_model_it_says_the_row_or_one_to_begin_with(base_folder, tmp_path, monkeypatch, capsys):
    assert result(["doctor", "--model", base_folder], capsys)["family"] == "Qwen3"
    assert main(["doctor", "--model", str(base_folder)]) == 0
    said = capsys.readouterr().out
    assert "row             Qwen3\n" in said
    assert "packing         yes\n" in said
    AutoConfig.for_model("mpt").save_pretrained(tmp_path)
    assert main(["doctor", "--model", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert '\nFamily("Mpt", "mpt", "MptForCausalLM", ' in said
    assert "What does not fit:\n- " in said
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sentence = "shadowpeft doctor: the model of the hub id nobody/nothing cannot be loaded: "
    assert mistake(["doctor", "--model", "nobody/nothing"], capsys).startswith(sentence)
