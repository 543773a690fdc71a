"""The recipe of the embedded model's shadow: tokens of tiny sources, two training steps, what ships."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.runs import write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowConfig, attach
from shadowpeft.embedded import MODEL, SHADOW
from shadowpeft.storage import shadow_folder

RECIPE = Path(__file__).parents[2] / "recipes" / "pretrained_shadow"


def recipe(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(RECIPE / f"{name}.py"), run_name="recipe"))


def write_sources(folder: Path) -> list[str]:
    """A few documents in the layout of the sources."""
    articles = [
        {"title": f"Town {number}", "text": "It is a town by the sea, and old. " * 20} for number in range(6)
    ]
    novels = [
        {"text": 'She said, "I will not go to the town today, my dear." And so\nhe went alone.\n' * 40}
        for _ in range(2)
    ]
    chats = [
        {"instruction": f"Name {number} towns.", "context": "", "response": "There are none by this sea."}
        for number in range(60)
    ]
    words = []
    for name, splits in (
        ("wiki", {"train": articles, "validation": articles[:2]}),
        ("novels", {"train": novels, "validation": novels}),
        ("dolly", {"train": chats}),
    ):
        (folder / name).mkdir()
        for split, rows in splits.items():
            write_rows(folder / name / f"{split}.jsonl", rows)
        words += [f"--{name}", str(folder / name)]
    return words


@pytest.fixture
def tokens(tmp_path, monkeypatch) -> Path:
    words = [
        "tokens.py",
        *write_sources(tmp_path),
        "--output",
        str(tmp_path / "tokens"),
        "--tokens",
        "9000",
        "--held-out",
        "1500",
    ]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", list(sys.path))
    recipe("tokens").main()
    return tmp_path / "tokens"


def test_two_steps_make_a_folder_that_ships(tokens, tmp_path, capsys):
    """Catches a recipe that no longer runs, a lost source, a shadow over its size, a local path shipped."""
    manifest = json.loads((tokens / "manifest.json").read_text(encoding="utf-8"))
    assert all(count > 0 for split in manifest.values() for count in split.values())
    ids = np.load(tokens / "train.npz")["ids"]
    assert ids.dtype == np.uint16
    assert len(ids) == sum(manifest["train"].values())
    assert "town" in AutoTokenizer.from_pretrained(MODEL).decode(ids[:200])

    train = recipe("train")
    flags = ["--steps", "2", "--batch", "2", "--length", "32", "--every", "1", "--eval-rows", "8"]
    result = train.main(["--tokens", str(tokens), "--output", str(tmp_path / "run"), *flags])
    assert result.steps == 2
    assert result.eval_loss < result.start_loss
    package = tmp_path / "run" / "package"
    assert (package / shadow_folder.WEIGHTS).stat().st_size <= train.MOST_BYTES
    assert str(tmp_path) not in "".join(
        (package / name).read_text(encoding="utf-8") for name in (shadow_folder.CONFIG, shadow_folder.CARD)
    )

    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    small = attach(base, ShadowConfig(), package).detached()
    assert small.config.num_hidden_layers == len(train.BLOCKS)
    again = ["--tokens", str(tokens), "--output", str(tmp_path / "again")]
    train.main([*again, "--ship", str(result.checkpoint)])
    saved = [
        (folder / shadow_folder.WEIGHTS).read_bytes() for folder in (package, tmp_path / "again" / "package")
    ]
    assert saved[0] == saved[1]


def test_copies_keep_the_neurons_that_say_most(tokens):
    """Catches an MLP cut at other neurons in one matrix than in the next: with all kept, it is unchanged."""
    train = recipe("train")
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    ids_BT = torch.from_numpy(np.load(tokens / "train.npz")["ids"][:512].astype(np.int64)).view(4, -1)
    chosen = train.loudest(base, train.BLOCKS, train.NEURONS, ids_BT)
    shadow = train.cut_copy(base, train.BLOCKS, train.NEURONS, ids_BT)
    for place, block in enumerate(train.BLOCKS):
        ours, theirs, kept = shadow.backbone.layers[place].mlp, base.model.layers[block].mlp, chosen[block]
        x_BTD = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0))
        inner_BTM = torch.nn.functional.silu(theirs.gate_proj(x_BTD)) * theirs.up_proj(x_BTD)
        torch.testing.assert_close(ours(x_BTD), inner_BTM[..., kept] @ theirs.down_proj.weight[:, kept].T)
        assert torch.equal(
            shadow.backbone.layers[place].self_attn.q_proj.weight,
            base.model.layers[block].self_attn.q_proj.weight,
        )


def test_blocks_of_a_shadow_are_taken_as_they_are() -> None:
    """Catches another block in a place, a norm that is left out, and a size of the base's."""
    train = recipe("train")
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    whole = shadow_folder.load(base, SHADOW).float().backbone
    part = train.part_of(base, SHADOW, (0, 3)).backbone
    assert part.config.num_hidden_layers == 2
    assert part.config.intermediate_size == whole.config.intermediate_size
    assert torch.equal(part.norm.weight, whole.norm.weight)
    for place, block in enumerate((0, 3)):
        for name, weight in part.layers[place].named_parameters():
            assert torch.equal(weight, whole.layers[block].get_parameter(name))
