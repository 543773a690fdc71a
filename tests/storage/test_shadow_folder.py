"""Shadow folders: what was saved is what is loaded, and adapters start from it."""

import errno
import json
import os

import pytest
import torch
from helpers.families import perturb, tiny_config, tiny_model, token_ids
from helpers.json_files import edit_json
from safetensors.torch import load_file, save_file

from shadowpeft import (
    CheckpointError,
    ConfigError,
    ShadowConfig,
    ShadowedModel,
    attach,
)
from shadowpeft.pretrain.start import fresh, from_base_blocks, from_model
from shadowpeft.shadow import Shadow
from shadowpeft.storage import shadow_folder
from shadowpeft.storage.base_facts import BaseFacts

FILES = ["README.md", "pretrained_shadow.json", "pretrained_shadow.safetensors"]
WEIGHTS, CONFIG = shadow_folder.WEIGHTS, shadow_folder.CONFIG
SMALL = {"shadow_intermediate_size": 16, "shadow_attention_heads": 2, "shadow_key_value_heads": 1}


def narrow(model_type: str = "llama"):
    """Another model of the base's vocabulary, narrower than the base, so that its shadow has a projection."""
    changes = {"hidden_size": 16, "intermediate_size": 24} if model_type == "llama" else {"n_embd": 16}
    return tiny_model(model_type, seed=7, config=tiny_config(model_type, **changes))


def started(kind: str, base) -> Shadow:
    torch.manual_seed(2)
    if kind == "fresh":
        return fresh(base, ShadowConfig(**SMALL))
    return from_base_blocks(base, [0, 2]) if kind == "blocks" else from_model(base, narrow())


@pytest.fixture(params=["fresh", "blocks", "model"])
def kept(request, tmp_path):
    """A base, a shadow of each kind with weights of its own, and the folder it was saved to."""
    base = tiny_model("qwen3")
    shadow = started(request.param, base)
    with torch.no_grad():
        for parameter in shadow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    shadow_folder.save(
        shadow, BaseFacts.of(base), tmp_path / "shadow", {"corpus": "some text", "steps": 3, "loss": 1.23456}
    )
    return base, shadow, tmp_path / "shadow"


def say(shadow: Shadow, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return shadow.eval()(ids, None, None, None, None)


def edit(folder, change):
    edit_json(folder / CONFIG, change)


def test_what_was_saved_is_what_is_loaded(kept):
    """Catches a tensor or a size that is not kept."""
    base, shadow, folder = kept
    loaded = shadow_folder.load(base, folder)
    assert torch.equal(say(loaded, token_ids(2, 9)), say(shadow, token_ids(2, 9)))
    assert loaded.borrows == shadow.borrows
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert shadow_folder.holds(folder)
    assert not shadow_folder.holds(folder.parent)


def test_the_files_tell_of_the_run(kept):
    folder = kept[2]
    assert json.loads((folder / CONFIG).read_text(encoding="utf-8"))["run"] == {
        "corpus": "some text",
        "steps": 3,
        "loss": 1.23456,
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| steps | 3 |" in card
    assert "| loss | 1.235 |" in card


@pytest.mark.parametrize("variant", ["normed", "paper"])
def test_an_adapter_starts_from_the_folder_and_is_kept_as_any_other(kept, variant, tmp_path):
    """Catches an adapter that starts elsewhere, or whose settings do not say the sizes that its shadow
    has."""
    base, shadow, folder = kept
    ids = token_ids(2, 9)
    model = attach(base, ShadowConfig(variant=variant, alpha=0.5), shadow=folder)
    assert torch.equal(say(model.adapters["default"].shadow, ids), say(shadow, ids))
    perturb(model).save_pretrained(tmp_path / "adapter")
    want = model(ids, output_shadow_logits=True)
    model.unload()
    again = ShadowedModel.from_pretrained(base, tmp_path / "adapter")
    got = again(ids, output_shadow_logits=True)
    assert torch.equal(got.logits, want.logits)
    assert torch.equal(got.shadow_logits, want.shadow_logits)
    assert torch.allclose(again.detached()(ids).logits, want.shadow_logits, atol=1e-4)


def test_the_embeddings_of_an_explicit_shadow_stay_frozen(tmp_path):
    """Catches a shadow from a folder that trains what one from a model does not."""
    base = tiny_model("qwen3")
    shadow_folder.save(from_model(base, narrow()), BaseFacts.of(base), tmp_path, {})
    model = attach(base, shadow=tmp_path)
    assert not model.adapters["default"].shadow.embeddings().weight.requires_grad


@pytest.mark.parametrize("name", list(SMALL))
def test_sizes_that_contradict_the_folder_are_refused_by_name(name, tmp_path):
    base = tiny_model("qwen3")
    shadow_folder.save(fresh(base, ShadowConfig(**SMALL)), BaseFacts.of(base), tmp_path, {})
    with pytest.raises(
        ConfigError,
        match=rf"{name} is set to {SMALL[name] * 2}, and the shadow in .* has {SMALL[name]}; "
        f"leave {name} out",
    ):
        attach(base, ShadowConfig(**{name: SMALL[name] * 2}), shadow=tmp_path)
    assert all(parameter.requires_grad for parameter in base.parameters()), "a refused base stays as it was"
    settings = attach(base, ShadowConfig(**{name: SMALL[name]}), shadow=tmp_path).adapters["default"].settings
    assert {key: vars(settings)[key] for key in SMALL} == SMALL


def test_another_base_is_refused(kept):
    _, _, folder = kept
    with pytest.raises(
        CheckpointError,
        match=r"the shadow in .* was trained on another base .*: this base has the same shape but other",
    ):
        attach(tiny_model("qwen3", seed=9), shadow=folder)
    with pytest.raises(CheckpointError, match=r"model_type qwen3, this base has llama"):
        shadow_folder.load(tiny_model("llama"), folder)


def test_a_classifier_of_the_same_base_takes_the_shadow(kept):
    """Catches a shadow tied to the head that it was pretrained under, which it does not hold."""
    base, shadow, folder = kept
    classifier = tiny_model("qwen3", "sequence-classification")
    classifier.model.load_state_dict(base.model.state_dict())
    model = attach(classifier, shadow=folder)
    assert torch.equal(say(model.adapters["default"].shadow, token_ids(2, 9)), say(shadow, token_ids(2, 9)))


def test_every_tensor_counts_both_ways(kept):
    base, _, folder = kept
    tensors = load_file(folder / WEIGHTS)
    for name in tensors:
        save_file({key: value for key, value in tensors.items() if key != name}, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match=f"missing {name}"):
            shadow_folder.load(base, folder)
    save_file({**tensors, "backbone.extra": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"extra backbone\.extra"):
        shadow_folder.load(base, folder)
    name = "backbone.norm.weight"
    save_file({**tensors, name: torch.zeros(3)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"backbone\.norm\.weight has shape \(3,\)"):
        shadow_folder.load(base, folder)


BAD_JSON = {
    "other format": lambda meta: meta.update(format=99),
    "neither kind": lambda meta: meta.update(shadow=None, explicit_shadow=None),
    "both kinds": lambda meta: meta.update(shadow={}, explicit_shadow={}),
    "sizes a number": lambda meta: meta.update(shadow=3, explicit_shadow=None),
    "a size missing": lambda meta: meta.update(shadow={"shadow_layers": 1}, explicit_shadow=None),
    "blocks null": lambda meta: meta.update(shadow=dict.fromkeys(SIZES), explicit_shadow=None),
    "blocks without end": lambda meta: meta.update(
        shadow={**dict.fromkeys(SIZES), "shadow_layers": 10**6}, explicit_shadow=None
    ),
    "explicit of no family": lambda meta: meta.update(shadow=None, explicit_shadow={"model_type": "evil"}),
    "explicit of a bad size": lambda meta: meta.update(
        shadow=None, explicit_shadow={"model_type": "llama", "hidden_size": "x"}
    ),
    "no facts": lambda meta: meta.pop("base"),
}
SIZES = [
    "shadow_layers",
    "shadow_intermediate_size",
    "shadow_attention_heads",
    "shadow_key_value_heads",
    "shadow_head_dim",
]


@pytest.mark.parametrize("case", BAD_JSON)
def test_every_damaged_value_is_a_typed_error(kept, case):
    """Catches a value from a file that reaches torch or transformers unchecked and ends in a trace."""
    base, _, folder = kept
    edit(folder, BAD_JSON[case])
    with pytest.raises((CheckpointError, ConfigError)):
        shadow_folder.load(base, folder)


def test_what_is_no_shadow_folder(kept, tmp_path):
    base, _, folder = kept
    with pytest.raises(CheckpointError, match=r"there is no shadow folder"):
        attach(base, shadow=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"it is not a shadow folder; did you mean its shadow/\?"):
        attach(base, shadow=folder.parent)
    base.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"it seems to be a model: load it"):
        attach(base, shadow=tmp_path / "model")
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"pretrained_shadow\.safetensors is missing"):
        attach(base, shadow=folder)


def test_a_full_disk_loses_nothing(kept, monkeypatch):
    """Catches writing in place: the shadow saved before survives, and no partial file is left."""
    base, shadow, folder = kept
    want = say(shadow, token_ids(2, 9))

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shadowpeft.storage.shadow_folder.save_file", full)
    with pytest.raises(
        CheckpointError, match="No space left on device; what was saved there before is unchanged"
    ):
        shadow_folder.save(started("fresh", base), BaseFacts.of(base), folder, {})
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert torch.equal(say(shadow_folder.load(base, folder), token_ids(2, 9)), want)
