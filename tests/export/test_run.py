"""The exported folder against the attached run: one family after another, through files and stock transformers."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.families import (
    LABELS,
    TINY,
    VOCAB,
    attached,
    padded,
    perturb,
    tiny_config,
    tiny_model,
    token_ids,
)
from helpers.tokenizers import CHATML, build_tokenizer
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from shadowpeft import ShadowConfig, ShadowedModel, arch
from shadowpeft.errors import CheckpointError, ConfigError, UserError
from shadowpeft.export import export
from shadowpeft.storage import shadow_folder
from shadowpeft.storage.base_facts import BaseFacts

# In float32, relative to the largest logit: the stated bound.
BOUND = 1e-5

# Explicit shadows, as (base, shadow): of one family and another's, with P; soft caps that differ, and heads with and without a bias.
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


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """One thread is faster for models this small, and transformers' bars tell nothing here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    torch.set_num_threads(before)


def saved(model: ShadowedModel, folder: Path, adapter: Path) -> None:
    """Write base, tokenizer and adapter as a user has them."""
    model.base.save_pretrained(folder)
    build_tokenizer(CHATML).save_pretrained(folder)
    model.save_pretrained(adapter)


def made(
    base: PretrainedConfig,
    shadow: PretrainedConfig | None = None,
    task: arch.Task = "causal-lm",
    **settings: Any,
) -> ShadowedModel:
    network = None if shadow is None else tiny_model(shadow.model_type, seed=7, config=shadow)
    if network is not None and network.lm_head.bias is not None:
        network.lm_head.bias.data.fill_(5.0)  # must not reach the export
    return perturb(
        attached(tiny_model(base.model_type, task, config=base), ShadowConfig(**settings), network)
    ).eval()


def exported(model: ShadowedModel, tmp_path: Path, **arguments: Any) -> Path:
    saved(model, tmp_path / "base", tmp_path / "adapter")
    export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small", **arguments)
    return tmp_path / "small"


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def stock_logits(folder: Path, **inputs: torch.Tensor) -> torch.Tensor:
    auto = (
        AutoModelForCausalLM
        if "Classification" not in (folder / "config.json").read_text()
        else AutoModelForSequenceClassification
    )
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[f"{how}_keys"] for how in ("missing", "unexpected", "mismatched"))
    with torch.no_grad():
        return model(**inputs).logits


def shadow_logits(model: ShadowedModel, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, output_shadow_logits=True).shadow_logits


def batch() -> dict[str, torch.Tensor]:
    ids, mask, _ = padded([token_ids(1, 12)[0], token_ids(1, 7, seed=1)[0]], "right")
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("model_type", TINY)
def test_the_folder_computes_the_shadows_logits(model_type: str, tmp_path: Path) -> None:
    """Catches a tensor lost on its way to the file, a head folded wrongly, and a head that is tied or untied by mistake."""
    model = made(tiny_config(model_type), alpha=0.5)
    inputs = batch()
    got, want = stock_logits(exported(model, tmp_path), **inputs), shadow_logits(model, **inputs)
    assert error(got[inputs["attention_mask"] == 1], want[inputs["attention_mask"] == 1]) < BOUND


@pytest.mark.parametrize("pair", PAIRS)
def test_an_explicit_shadow_is_folded_with_the_bases_head(pair: str, tmp_path: Path) -> None:
    """Catches P left out, the shadow's own soft cap or bias in place of the base's, and the shadow's tied table in place of the head."""
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
    assert json.loads((folder / "config.json").read_text())["id2label"] == {
        "0": "no",
        "1": "maybe",
        "2": "yes",
    }
    assert "pipeline_tag: text-classification" in (folder / "README.md").read_text()


def test_a_classifier_on_a_base_saved_as_language_model(tmp_path: Path) -> None:
    """Catches a score drawn at random in place of the adapter's: users load the base with num_labels and train from there."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    build_tokenizer(CHATML).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=LABELS)
    model = perturb(attached(base)).eval()
    model.save_pretrained(tmp_path / "adapter")
    export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small")
    inputs = batch()
    assert error(stock_logits(tmp_path / "small", **inputs), shadow_logits(model, **inputs)) < BOUND


@pytest.mark.parametrize("how", ["missing", "misshapen"])
def test_a_classifiers_base_must_be_whole(how: str, tmp_path: Path) -> None:
    """Catches a weight other than the head that transformers draws at random, as it does for every one that does not fit."""
    model = made(tiny_config("llama"), task="sequence-classification")
    saved(model, tmp_path / "base", tmp_path / "adapter")
    state = load_file(tmp_path / "base" / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    left = {key: tensor for key, tensor in state.items() if key != name} | (
        {} if how == "missing" else {name: torch.zeros(3, 3)}
    )
    save_file(left, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks 1 weights of the right shape, such as {name}"):
        export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small")


@pytest.mark.parametrize(
    "shadow_config", [None, lambda: tiny_config("qwen3", hidden_size=16)], ids=["implicit", "explicit"]
)
def test_a_pretrained_shadow_is_exported_alone(
    shadow_config: Callable[[], PretrainedConfig] | None, tmp_path: Path
) -> None:
    """Catches a shadow folder that only an adapter can bring to the edge, or that is folded otherwise than an adapter's."""
    model = made(tiny_config("llama"), None if shadow_config is None else shadow_config())
    saved(model, tmp_path / "base", tmp_path / "adapter")
    shadow_folder.save(
        model.adapters["default"].shadow, BaseFacts.of(model.base), tmp_path / "shadow", {"corpus": "wiki"}
    )
    result = export(str(tmp_path / "base"), None, tmp_path / "small", shadow=tmp_path / "shadow")
    ids = token_ids(2, 9)
    assert error(stock_logits(tmp_path / "small", input_ids=ids), shadow_logits(model, input_ids=ids)) < BOUND
    assert result.model_class == ("LlamaForCausalLM" if shadow_config is None else "Qwen3ForCausalLM")
    assert "the pretrained shadow `shadow`" in (tmp_path / "small" / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_type_is_the_one_asked_for(dtype: str, tmp_path: Path) -> None:
    """Catches weights kept in the base's type, and a config that says another one than the file has."""
    model = made(tiny_config("llama"), tiny_config("llama", hidden_size=16))
    folder = exported(model, tmp_path, dtype=dtype)
    small = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in small.parameters()} == {vars(torch)[dtype]}
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    assert f"in {dtype}" in (folder / "README.md").read_text()
    ids = token_ids(2, 9)
    with torch.no_grad():
        assert error(small(input_ids=ids).logits.float(), shadow_logits(model, input_ids=ids)) < {
            "float32": BOUND
        }.get(dtype, 0.1)


def test_the_folder_is_complete(tmp_path: Path) -> None:
    """Catches a folder without chat template, generation settings or special tokens: it would answer otherwise than the adapter did."""
    model = made(tiny_config("qwen3"))
    model.base.generation_config.update(temperature=0.5, do_sample=True, max_new_tokens=9, eos_token_id=7)
    folder = exported(model, tmp_path)
    tokenizer, before = (
        AutoTokenizer.from_pretrained(folder),
        AutoTokenizer.from_pretrained(tmp_path / "base"),
    )
    assert tokenizer.get_vocab() == before.get_vocab()
    assert tokenizer.special_tokens_map == before.special_tokens_map
    chat = [{"role": "user", "content": "what is two"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(
        chat, tokenize=False
    )
    settings = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (settings.temperature, settings.do_sample, settings.max_new_tokens) == (0.5, True, 9)
    assert settings.eos_token_id == sorted({7, before.eos_token_id}), (
        "what ends a completion in training ends one here"
    )
    assert "auto_map" not in json.loads((folder / "config.json").read_text()), "no code of ours is needed"


def test_large_weights_are_sharded(tmp_path: Path) -> None:
    """Catches --max-shard-size without effect."""
    model = made(tiny_config("llama"))
    folder = exported(model, tmp_path, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    ids = token_ids(2, 9)
    assert error(stock_logits(folder, input_ids=ids), shadow_logits(model, input_ids=ids)) < BOUND


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("ready")
    saved(made(tiny_config("qwen3")), folder / "base", folder / "adapter")
    return SimpleNamespace(base=str(folder / "base"), adapter=folder / "adapter")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shadowpeft.storage.stock_models.load_model",
        lambda *_: pytest.fail("the model was loaded before the check"),
    )


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
    """Catches a small export refused for want of room that it would never take, and a large one without room for its tokenizer."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 20))
    assert export(ready.base, ready.adapter, tmp_path / "small").size_bytes < 2 << 20
    monkeypatch.setattr("shadowpeft.export.folder.bytes_of", lambda _: 2_000_000_000)
    with pytest.raises(CheckpointError, match=r"takes about 2\.1 GB, and 3\.1 MB are free in"):
        export(ready.base, ready.adapter, tmp_path / "other")


# The hub, which a fake stands for


class Hub:
    """Takes uploads like `HfApi`, and keeps what was uploaded."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.repository = ""

    def create_repo(self, repo_id: str, exist_ok: bool) -> str:
        assert exist_ok
        self.repository = repo_id
        return f"https://hub/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path) -> None:
        assert repo_id == self.repository
        self.files = {path.name: path.stat().st_size for path in folder_path.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr(HfApi, "whoami", lambda _: {"name": "somebody"})
    monkeypatch.setattr(HfApi, "create_repo", lambda _, *args, **kwargs: fake.create_repo(*args, **kwargs))
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **kwargs: fake.upload_folder(**kwargs))
    return fake


def test_push_uploads_the_whole_folder(hub: Hub, ready: SimpleNamespace, tmp_path: Path) -> None:
    """Catches an upload that lacks files, or that begins before the folder is whole."""
    done = export(ready.base, ready.adapter, tmp_path / "small", push="somebody/small")
    assert (hub.repository, done.pushed) == ("somebody/small", "https://hub/somebody/small")
    assert hub.files == {
        name: (tmp_path / "small" / name).stat().st_size for name in os.listdir(tmp_path / "small")
    }
    assert {"model.safetensors", "tokenizer.json", "config.json", "README.md"} <= set(hub.files)


@pytest.mark.usefixtures("no_model")
def test_push_without_a_login_costs_no_work(
    ready: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a login that is missed only when everything has been computed."""

    def nobody(_: HfApi) -> None:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(HfApi, "whoami", nobody)
    with pytest.raises(ConfigError, match="run hf auth login"):
        export(ready.base, ready.adapter, tmp_path / "small", push="somebody/small")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_upload_keeps_the_folder(
    hub: Hub, ready: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches work thrown away because the network broke, and a sentence that does not say how to go on."""

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(HfApi, "upload_folder", broken)
    with pytest.raises(
        CheckpointError,
        match=r"is written and could not be uploaded \(the line is dead\); try again with hf upload",
    ):
        export(ready.base, ready.adapter, tmp_path / "small", push="somebody/small")
    assert stock_logits(tmp_path / "small", input_ids=token_ids(1, 5)).shape == (1, 5, VOCAB)
