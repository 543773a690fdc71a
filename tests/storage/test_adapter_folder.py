"""Saved adapters: what was saved is what is loaded, and anything else is refused before memory is touched."""

import errno
import json
import os

import pytest
import torch
from helpers.families import perturb, tiny_model
from helpers.json_files import edit_json
from helpers.tiny import qwen3_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shadowpeft import CheckpointError, ConfigError, ShadowConfig, ShadowedModel, attach

WEIGHTS, CONFIG = "shadow.safetensors", "shadow_config.json"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_config(folder, change):
    edit_json(folder / CONFIG, change)


def test_round_trip_on_perturbed_weights(model, base, folder, ids):
    """Catches a tensor that is not saved, and a comparison that zero weights would pass."""
    loaded = ShadowedModel.from_pretrained(base, folder)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not torch.allclose(loaded(ids).logits, base(ids).logits, atol=1e-2)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", INDEX, WEIGHTS, CONFIG]


def test_only_the_adapter_is_saved(folder, base):
    """Catches a base table slipping into the adapter."""
    sizes = {tensor.shape for tensor in load_file(folder / WEIGHTS).values()}
    assert base.model.embed_tokens.weight.shape not in sizes


def test_the_file_names_every_setting_of_the_variant(model, folder, base):
    """Catches an adapter that changes what it computes once a variant's defaults do."""
    saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["shadow"]
    settings = model.adapters["default"].settings
    assert saved == settings.to_dict()
    assert ShadowedModel.from_pretrained(base, folder).adapters["default"].settings == settings


def test_a_file_without_the_shadow_s_size_means_the_base_s(base, ids, tmp_path):
    """Catches adapters of before the variant had a size of its own being refused, or built at the new one."""
    model = perturb(attach(base, ShadowConfig(shadow_intermediate_size=base.config.intermediate_size)))
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, lambda meta: meta["shadow"].update(shadow_intermediate_size=None))
    assert torch.equal(ShadowedModel.from_pretrained(base, tmp_path)(ids).logits, model(ids).logits)


def test_the_card_tells_of_the_run(model, tmp_path):
    model.save_pretrained(tmp_path, run={"steps": 7, "final loss": 1.23456})
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| steps | 7 |" in card
    assert "| final loss | 1.235 |" in card


@pytest.mark.parametrize("model", ["paper"], indirect=True)
@pytest.mark.parametrize(
    "name", ["injections.0.up.weight", "updates.1.gate_in.weight", "norm.bias", "shadow.backbone.norm.weight"]
)
def test_a_missing_tensor_is_named(base, folder, name):
    tensors = load_file(folder / WEIGHTS)
    del tensors[name]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"missing {name}"):
        ShadowedModel.from_pretrained(base, folder)


def test_every_tensor_counts_both_ways(base, folder):
    """Drops and adds every tensor in turn: strict loading has no exceptions."""
    tensors = load_file(folder / WEIGHTS)
    for name in tensors:
        save_file({key: value for key, value in tensors.items() if key != name}, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match=r"missing"):
            ShadowedModel.from_pretrained(base, folder)
    save_file({**tensors, "updates.9.gate_in.weight": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"extra updates\.9"):
        ShadowedModel.from_pretrained(base, folder)


def test_shapes_are_checked_before_allocation(base, folder, monkeypatch):
    """Catches a loader that allocates first: nothing real is built while the shapes do not fit."""
    tensors = load_file(folder / WEIGHTS)
    tensors["injections.0.up.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(
        CheckpointError, match=r"injections\.0\.up\.weight has shape \(3, 3\), expected \(32, 16\)"
    ):
        ShadowedModel.from_pretrained(base, folder)
    edit_config(folder, lambda meta: meta["shadow"].update(r=10**9, shadow_intermediate_size=10**9))
    with pytest.raises(CheckpointError, match=r"shape"):
        ShadowedModel.from_pretrained(base, folder)


def test_missing_files_and_folders(base, folder, tmp_path):
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"is missing"):
        ShadowedModel.from_pretrained(base, folder)
    (folder / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"not an adapter folder"):
        ShadowedModel.from_pretrained(base, folder)
    with pytest.raises(CheckpointError, match=r"there is no adapter folder"):
        ShadowedModel.from_pretrained(base, tmp_path / "nowhere")


def test_a_wrong_base_is_refused(base, folder):
    """Catches an adapter put on a base it was not trained on: another size, and the same size with other
    weights."""
    torch.manual_seed(9)
    twin = AutoModelForCausalLM.from_config(qwen3_config())
    with pytest.raises(CheckpointError, match=r"other weights"):
        ShadowedModel.from_pretrained(twin, folder)
    deeper = AutoModelForCausalLM.from_config(qwen3_config(num_hidden_layers=5))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers 4, this base has 5"):
        ShadowedModel.from_pretrained(deeper, folder)
    assert all(parameter.requires_grad for parameter in deeper.parameters()), "a refused base stays as it was"


def test_the_same_base_at_lower_precision_is_accepted(base, folder, ids):
    loaded = ShadowedModel.from_pretrained(base.to(torch.bfloat16), folder)
    assert loaded.adapters["default"].dtype == torch.bfloat16
    assert loaded(ids).logits.dtype == torch.bfloat16


def test_double_precision_survives(base, ids, tmp_path):
    """Catches a loader that rounds to the default type on the way."""
    model = perturb(attach(base.double(), ShadowConfig(alpha=0.5)))
    model.save_pretrained(tmp_path)
    assert torch.equal(ShadowedModel.from_pretrained(base, tmp_path)(ids).logits, model(ids).logits)


def test_bad_configurations(base, folder):
    edit_config(folder, lambda meta: meta["shadow"].update(drpout=0.1))
    with pytest.raises(ConfigError, match=r"did you mean 'dropout'"):
        ShadowedModel.from_pretrained(base, folder)
    edit_config(folder, lambda meta: meta["shadow"].pop("drpout"))
    edit_config(folder, lambda meta: meta.update(explicit_shadw=None))
    with pytest.raises(CheckpointError, match=r"unknown key explicit_shadw \(did you mean 'explicit_shadow'"):
        ShadowedModel.from_pretrained(base, folder)
    edit_config(folder, lambda meta: meta.pop("explicit_shadw"))
    edit_config(folder, lambda meta: meta["base"].update(names="x"))
    with pytest.raises(CheckpointError, match=r"unknown key base\.names \(did you mean 'name'"):
        ShadowedModel.from_pretrained(base, folder)
    edit_config(folder, lambda meta: meta.pop("base"))
    with pytest.raises(CheckpointError, match=r"not an adapter's configuration"):
        ShadowedModel.from_pretrained(base, folder)
    edit_config(folder, lambda meta: meta.update(format=99))
    with pytest.raises(CheckpointError, match=r"format 99"):
        ShadowedModel.from_pretrained(base, folder)
    (folder / CONFIG).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"not valid JSON"):
        ShadowedModel.from_pretrained(base, folder)


@pytest.mark.parametrize("setting", ["alpha", "dropout", "shadow_loss_weight", "unit_state", "output_gains"])
def test_a_setting_that_decides_what_is_computed_is_not_guessed(base, folder, setting):
    """Catches an adapter that computes something else, without a word, since its file leaves a setting to
    today's default."""
    edit_config(folder, lambda meta: meta["shadow"].pop(setting))
    with pytest.raises(
        CheckpointError,
        match="must say alpha, dropout, shadow_loss_weight, unit_state and output_gains, and does not",
    ):
        ShadowedModel.from_pretrained(base, folder)


def test_an_adapter_from_before_there_were_output_gains_computes_what_it_was_trained_to(tmp_path, ids):
    """Catches an older file that is refused, or read as today's function."""
    base = tiny_model("gemma3_text")
    model = perturb(attach(base, ShadowConfig(output_gains=False)))
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, lambda meta: (meta.update(format=2), meta["shadow"].pop("output_gains")))
    again = ShadowedModel.from_pretrained(base, tmp_path)
    assert not again.adapters["default"].settings.output_gains
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_what_the_shadow_learns_from_is_saved_and_read(tmp_path, base, ids):
    """Catches a setting that is lost on the way, and an adapter from before there was `shadow_distil` that is
    refused or read otherwise."""
    model = perturb(attach(base, ShadowConfig(shadow_distil=0.25)))
    model.save_pretrained(tmp_path)
    again = ShadowedModel.from_pretrained(base, tmp_path)
    assert again.adapters["default"].settings == model.adapters["default"].settings
    assert again.adapters["default"].settings.shadow_distil == 0.25
    torch.testing.assert_close(again(ids, labels=ids).loss, model(ids, labels=ids).loss, rtol=0, atol=0)
    edit_config(tmp_path, lambda meta: meta["shadow"].pop("shadow_distil"))
    older = ShadowedModel.from_pretrained(base, tmp_path)
    assert older.adapters["default"].settings.shadow_distil == 0
    assert torch.equal(older(ids).logits, model(ids).logits)
    edit_config(tmp_path, lambda meta: meta["shadow"].update(shadow_distil=2))
    with pytest.raises(ConfigError, match=r"shadow_distil must be from 0 to 1, got 2"):
        ShadowedModel.from_pretrained(base, tmp_path)


def test_nothing_named_by_a_file_is_imported(base, folder, tmp_path, monkeypatch):
    """Catches a loader that follows a class or module named in a downloaded JSON."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    hostile = {
        "model_type": "evil",
        "architectures": ["evil.Model"],
        "auto_map": {"AutoConfig": "evil.Config"},
    }
    edit_config(folder, lambda meta: meta.update(explicit_shadow=hostile))
    with pytest.raises(CheckpointError, match=r"'evil', which is not supported"):
        ShadowedModel.from_pretrained(base, folder)


def test_a_full_disk_loses_nothing(model, base, folder, ids, monkeypatch):
    """Catches writing in place: the adapter saved before survives, and no partial file is left."""
    want = model(ids).logits
    perturb(model, seed=5)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shadowpeft.storage.adapter_folder.save_file", full)
    with pytest.raises(
        CheckpointError, match="No space left on device; what was saved there before is unchanged"
    ):
        model.save_pretrained(folder)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", INDEX, WEIGHTS, CONFIG]
    assert torch.equal(ShadowedModel.from_pretrained(base, folder)(ids).logits, want)


BAD_JSON = {
    "sample of strings": lambda meta: meta["base"]["sample"].update(embeddings=["a"]),
    "sample of nan": lambda meta: meta["base"]["sample"].update(embeddings=[float("nan")]),
    "sample null": lambda meta: meta["base"].update(sample=None),
    "shadow null": lambda meta: meta.update(shadow=None),
    "shadow a number": lambda meta: meta.update(shadow=3),
    "variant a list": lambda meta: meta["shadow"].update(variant=["paper"]),
    "rank beyond counting": lambda meta: meta["shadow"].update(r=2**62),
    "rank a float": lambda meta: meta["shadow"].update(r=1e30),
    "alpha infinite": lambda meta: meta["shadow"].update(alpha=float("inf")),
    "alpha null": lambda meta: meta["shadow"].update(alpha=None),
    "a hundred thousand blocks": lambda meta: meta["shadow"].update(shadow_layers=100000),
    "explicit a list": lambda meta: meta.update(explicit_shadow=[]),
    "explicit of no family": lambda meta: meta.update(explicit_shadow={"model_type": []}),
    "explicit of a bad size": lambda meta: meta.update(
        explicit_shadow={"model_type": "llama", "hidden_size": "x"}
    ),
    "explicit of an odd activation": lambda meta: meta.update(
        explicit_shadow={"model_type": "llama", "hidden_act": "nope"}
    ),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_every_damaged_value_is_a_typed_error(base, folder, case):
    """Catches a value from a file that reaches torch or transformers unchecked and ends in a trace."""
    edit_config(folder, BAD_JSON[case])
    with pytest.raises((CheckpointError, ConfigError)):
        ShadowedModel.from_pretrained(base, folder)


# The draft vocabulary

VOCABULARY, IDS = "draft_vocabulary.safetensors", [9, 2, 40]


@pytest.fixture
def drafting(model, tmp_path):
    model.set_draft_vocabulary(IDS)
    model.save_pretrained(tmp_path / "drafting")
    return tmp_path / "drafting"


def test_a_draft_vocabulary_is_kept_with_its_adapter(base, folder, drafting):
    """Catches one that is lost, and one that an adapter without it gets."""
    assert ShadowedModel.from_pretrained(base, drafting).adapter.draft_vocabulary.tolist() == sorted(IDS)
    assert ShadowedModel.from_pretrained(base, folder).adapter.draft_vocabulary is None


def test_a_vocabulary_that_an_earlier_adapter_left_is_not_read(model, base, drafting):
    """Catches an adapter that drafts what another's answers were made of."""
    model.set_draft_vocabulary(None)
    model.save_pretrained(drafting)
    assert ShadowedModel.from_pretrained(base, drafting).adapter.draft_vocabulary is None


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"ids": torch.tensor([2, 9])}, "holds 2 ids, and shadow_config.json names 3"),
        ({"ids": torch.tensor([2, 9, 1000])}, "from 0 to .*got 1000"),
        ({"ids": torch.tensor([2, 9, 9])}, "each id once"),
        ({"ids": torch.tensor([2.0, 9.0, 40.0])}, "must hold whole numbers by the name 'ids'"),
        ({"more": torch.tensor([1]), "ids": torch.tensor([2, 9, 40])}, "and nothing else"),
        (None, "is missing"),
        (b"{", "is damaged or cut short"),
    ],
)
def test_a_vocabulary_that_is_not_this_adapters_is_refused(base, drafting, tensors, says):
    """Catches ids that fail at the first draft, or rows of another adapter's."""
    path = drafting / VOCABULARY
    if tensors is None:
        path.unlink()
    elif isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        save_file(tensors, path)
    with pytest.raises(CheckpointError, match=says):
        ShadowedModel.from_pretrained(base, drafting)


# The head for drafts


def test_a_draft_head_is_saved_with_its_adapter(model, base, ids, tmp_path):
    """Catches a head that is lost, one that appears where there was none, and a folder without one that
    programs from before cannot read.
    """
    model.save_pretrained(tmp_path / "without")
    assert "draft_head" not in json.loads((tmp_path / "without" / CONFIG).read_text(encoding="utf-8"))
    assert ShadowedModel.from_pretrained(base, tmp_path / "without").adapter.draft_head is None
    torch.nn.init.normal_(model.adapter.new_draft_head(5).up.weight)
    model.save_pretrained(tmp_path / "with")
    loaded = ShadowedModel.from_pretrained(base, tmp_path / "with")
    assert loaded.adapter.draft_head.rank == 5
    s_BTD = torch.randn(1, 3, 32)
    assert torch.equal(loaded.adapter.for_drafts(s_BTD), model.adapter.for_drafts(s_BTD))
    assert not torch.equal(loaded.adapter.for_drafts(s_BTD), s_BTD)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("found", [{}, {"rank": 0}, {"rank": "5"}, {"rank": True}, {"rank": 5, "r": 5}, 5])
def test_a_draft_head_that_is_not_described_is_refused(found, model, base, tmp_path):
    model.adapter.new_draft_head(5)
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, lambda meta: meta.update(draft_head=found))
    with pytest.raises(CheckpointError, match=r"draft_head must hold its rank, a whole number"):
        ShadowedModel.from_pretrained(base, tmp_path)
    edit_config(tmp_path, lambda meta: meta.update(draft_head={"rank": 10**9}))
    with pytest.raises(CheckpointError, match=r"draft_head.*shape"):
        ShadowedModel.from_pretrained(base, tmp_path)
