"""The shadow that a run begins with, from each kind of start."""

import numpy as np
import pytest
import torch
from helpers.pretraining import facts_of, pretrained, settings, weights_of

from shadowpeft import ConfigError, attach
from shadowpeft.pretrain.choose_start import initial_shadow
from shadowpeft.pretrain.text import Text, read_text
from shadowpeft.storage import stock_models

NO_TEXT = Text([], [], [])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def loaded_base(base_folder):
    return stock_models.load_model(str(base_folder), torch.float32)


def test_start_from_blocks_copies_them(loaded_base, base_folder, text_file, tmp_path):
    """Catches other blocks than those named, or a spread that leaves out the ends."""
    for changes, blocks in (({"blocks": [2, 1]}, [2, 1]), ({"layers": 3}, [0, 2, 3]), ({}, [0, 3])):
        config = settings(base_folder, text_file, tmp_path / "run", **changes)
        shadow, model_loss = initial_shadow(config, loaded_base, NO_TEXT, resumes=False)
        assert model_loss is None
        for place, block in enumerate(blocks):
            ours = shadow.backbone.layers[place].state_dict()
            theirs = loaded_base.model.layers[block].state_dict()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_more_layers_than_the_base_has_are_refused(loaded_base, base_folder, text_file, tmp_path):
    """Catches a spread over the base's blocks that names one of them twice."""
    config = settings(base_folder, text_file, tmp_path / "run", layers=5)
    with pytest.raises(ConfigError, match="layers must be at most the base's 4 blocks, got 5"):
        initial_shadow(config, loaded_base, NO_TEXT, resumes=False)


def test_a_fresh_shadow_has_the_sizes_asked_for(loaded_base, base_folder, text_file, tmp_path):
    """Catches a size that is taken and not applied."""
    sizes = {"layers": 1, "intermediate_size": 20, "attention_heads": 2, "key_value_heads": 1, "head_dim": 4}
    config = settings(base_folder, text_file, tmp_path / "run", start="fresh", **sizes)
    shadow, _ = initial_shadow(config, loaded_base, NO_TEXT, resumes=False)
    (block,) = shadow.backbone.layers
    assert block.mlp.gate_proj.weight.shape == (20, 32)
    assert block.self_attn.q_proj.weight.shape == (2 * 4, 32)
    assert block.self_attn.k_proj.weight.shape == (1 * 4, 32)


def test_a_resumed_run_fits_no_projection(
    loaded_base, base_folder, small_folder, text_file, tmp_path, capsys
):
    """Catches a warm start that is computed only to be overwritten by the checkpoint."""
    config = settings(base_folder, text_file, tmp_path / "run", start=str(small_folder), warm_start="pinv")
    text = Text([], [np.arange(16)], [])  # type: ignore[arg-type]
    said = []
    for resumes in (True, False):
        initial_shadow(config, loaded_base, text, resumes=resumes)
        said.append("warm start pinv" in capsys.readouterr().err)
    assert said == [False, True]


@pytest.mark.parametrize("method", ["none", "pinv", "weighted", "ridge"])
def test_start_from_a_smaller_model(base_folder, small_folder, text_file, tmp_path, capsys, method):
    """Catches a warm start not applied or not told, and a shadow that cannot be trained or attached."""
    changes = {"start": str(small_folder), "warm_start": method, "max_steps": 2, "train_parts": "projection"}
    if method in ("weighted", "ridge"):
        changes["warm_start_rows"] = 8
    result = pretrained(base_folder, text_file, tmp_path / "run", **changes)
    assert result.parameters == 16 * 32
    small = stock_models.load_model(str(small_folder), torch.float32)
    read = read_text(settings(base_folder, text_file, tmp_path / "same"))
    rows = torch.stack([torch.from_numpy(row) for row in read.held_out])
    assert result.model_loss == pytest.approx(small(rows, labels=rows).loss.item(), rel=1e-4)
    assert (f"warm start {method}" in capsys.readouterr().err) == (method != "none")
    saved, before = weights_of(tmp_path / "run" / "shadow"), small.model.state_dict()
    assert all(torch.equal(saved[f"backbone.{name}"], tensor) for name, tensor in before.items()), (
        "only the projection is trained"
    )
    base = stock_models.load_model(str(base_folder), torch.float32)
    assert attach(base, None, tmp_path / "run" / "shadow") is not None


def test_start_from_a_shadow_folder(straight, base_folder, text_file, tmp_path):
    """Catches a pretrained shadow that begins anew when it is to be trained further."""
    start = {"start": str(straight / "shadow"), "max_steps": 1}
    result = pretrained(base_folder, text_file, tmp_path / "run", **start)
    assert result.start_loss == pytest.approx(facts_of(straight)["eval loss"], rel=1e-6)
