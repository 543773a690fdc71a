"""The steps of an export: mistakes and a full disk are found first, and what is written computes the shadow's
logits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.exports import BOUND, batch, error, exported, made, shadow_logits, stock_logits
from helpers.families import TINY, tiny_config, token_ids
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.export import export

# Explicit shadows, as (base, shadow): of one family and another's, with P; soft caps that differ, and heads
# with and without a bias.
PAIRS: dict[str, tuple[Callable[[], PretrainedConfig], Callable[[], PretrainedConfig]]] = {
    **{
        name: (lambda name=name: tiny_config(name), lambda name=name: tiny_config(name, hidden_size=16))
        for name in ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
    },
    "gpt2": (lambda: tiny_config("gpt2"), lambda: tiny_config("gpt2", n_embd=16)),
    "qwen2 beside llama": (lambda: tiny_config("llama"), lambda: tiny_config("qwen2", hidden_size=16)),
    "capped beside uncapped": (lambda: tiny_config("llama"), lambda: tiny_config("gemma2", hidden_size=16)),
    "another cap": (
        lambda: tiny_config("gemma2"),
        lambda: tiny_config("gemma2", hidden_size=16, final_logit_softcapping=30.0),
    ),
    "no cap of its own": (
        lambda: tiny_config("gemma2"),
        lambda: tiny_config("gemma2", hidden_size=16, final_logit_softcapping=None),
    ),
    "bias beside none": (lambda: tiny_config("llama"), lambda: tiny_config("gptj", n_embd=16)),
    "tied, one width": (lambda: tiny_config("qwen3"), lambda: tiny_config("qwen3")),
}


@pytest.mark.parametrize("model_type", TINY)
def test_the_folder_computes_the_shadows_logits(model_type: str, tmp_path: Path) -> None:
    """Catches a tensor lost on its way to the file, a head folded wrongly, and a head that is tied or untied
    by mistake."""
    model = made(tiny_config(model_type), alpha=0.5)
    inputs = batch()
    got, want = stock_logits(exported(model, tmp_path), **inputs), shadow_logits(model, **inputs)
    assert error(got[inputs["attention_mask"] == 1], want[inputs["attention_mask"] == 1]) < BOUND


@pytest.mark.parametrize("pair", PAIRS)
def test_an_explicit_shadow_is_folded_with_the_bases_head(pair: str, tmp_path: Path) -> None:
    """Catches P left out, the shadow's own soft cap or bias in place of the base's, and the shadow's tied
    table in place of the head."""
    base, shadow = (make() for make in PAIRS[pair])
    model = made(base, shadow)
    ids = token_ids(2, 9)
    assert (
        error(stock_logits(exported(model, tmp_path), input_ids=ids), shadow_logits(model, input_ids=ids))
        < BOUND
    )


@pytest.mark.parametrize("explicit", [False, True], ids=["implicit", "explicit"])
@pytest.mark.parametrize(
    "pair", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "qwen2 beside llama", "bias beside none"]
)
def test_a_classifier_is_a_stock_classifier(pair: str, explicit: bool, tmp_path: Path) -> None:
    """Catches a classifier exported as a language model, with the base's score, or without its labels."""
    base, shadow = PAIRS[pair][0](), PAIRS[pair][1]() if explicit else None
    base.id2label, base.label2id = {0: "no", 1: "maybe", 2: "yes"}, {"no": 0, "maybe": 1, "yes": 2}
    model = made(base, shadow, "sequence-classification")
    inputs, folder = batch(), exported(model, tmp_path)
    assert error(stock_logits(folder, **inputs), shadow_logits(model, **inputs)) < BOUND
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"] == {
        "0": "no",
        "1": "maybe",
        "2": "yes",
    }
    assert "pipeline_tag: text-classification" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_type_is_the_one_asked_for(dtype: str, tmp_path: Path) -> None:
    """Catches weights kept in the base's type, and a config that says another one than the file has."""
    model = made(tiny_config("llama"), tiny_config("llama", hidden_size=16))
    folder = exported(model, tmp_path, dtype=dtype)
    small = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in small.parameters()} == {vars(torch)[dtype]}
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == dtype
    assert f"in {dtype}" in (folder / "README.md").read_text(encoding="utf-8")
    ids = token_ids(2, 9)
    with torch.no_grad():
        assert error(small(input_ids=ids).logits.float(), shadow_logits(model, input_ids=ids)) < {
            "float32": BOUND
        }.get(dtype, 0.1)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_shard_size": "2 gigabytes"}, "such as 500MB or 2GB, got '2 gigabytes'"),
        ({"dtype": "q8_0"}, "q8_0 is a type of GGUF files"),
        ({"to": "gguf", "max_shard_size": "2GB"}, "max_shard_size is of a model folder"),
        ({"shadow": "somewhere"}, "give either --adapter"),
        ({"adapter": None}, "give either --adapter"),
        ({"adapter": None, "shadow": "somewhere"}, "there is no shadow folder somewhere"),
        ({"adapter": "somewhere"}, "no adapter folder at somewhere"),
        ({"push": "three/part/name"}, "--push needs the name of a repository such as user/name"),
    ],
)
def test_mistakes_are_found_before_the_work(
    arguments: dict[str, Any], message: str, ready: SimpleNamespace, tmp_path: Path
) -> None:
    """Catches minutes of loading before a sentence that could have been said at once."""
    with pytest.raises((ConfigError, CheckpointError), match=message):
        export(**{"base": ready.base, "adapter": ready.adapter, "output": tmp_path / "small", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_before_the_first_byte(
    ready: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a disk filled to the brim by an export that cannot end well."""
    monkeypatch.setattr(
        PreTrainedModel, "save_pretrained", lambda *_, **__: pytest.fail("it was written all the same")
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(CheckpointError, match=r"takes about 1\.\d MB, and 1\.0 MB are free in"):
        export(ready.base, ready.adapter, tmp_path / "new" / "small")
    assert list(tmp_path.iterdir()) == []


def test_an_export_asks_for_little_more_room_than_it_takes(
    ready: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a small export refused for want of room that it would never take, and a large one without room
    for its tokenizer."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 20))
    assert export(ready.base, ready.adapter, tmp_path / "small").size_bytes < 2 << 20
    monkeypatch.setattr("shadowpeft.export.folder.bytes_of", lambda _: 2_000_000_000)
    with pytest.raises(CheckpointError, match=r"takes about 2\.1 GB, and 3\.1 MB are free in"):
        export(ready.base, ready.adapter, tmp_path / "other")
