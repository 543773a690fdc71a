"""Projected models that the authors' package wrote, read by ours; the package itself is the oracle."""

import json

import pytest
import torch
from helpers.families import tiny_config, tiny_model, token_ids
from safetensors.torch import load_file, save_file
from shadow_peft import AutoModelForCausalLMWithHiddenProjection, get_shadow_model
from shadow_peft import ShadowConfig as TheirConfig

from shadowpeft import (
    CheckpointError,
    ConfigError,
    ShadowConfig,
    ShadowedModel,
    UnsupportedModelError,
    attach,
)
from shadowpeft.model import sources
from shadowpeft.model.preflight import Preflight
from shadowpeft.pretrain import text, warm
from shadowpeft.pretrain.choose_start import initial_shadow
from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.storage import authors_folder

# The authors' package hands over the cache by the name that transformers 5.24 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")

WEIGHTS = authors_folder.WEIGHTS


def narrow(seed: int = 7, **changes):
    return tiny_model(
        "llama", seed=seed, config=tiny_config("llama", hidden_size=16, intermediate_size=24, **changes)
    )


def wrapped(base, model, projection=None):
    """Their class around a base's head, with the projection their package starts with, or a given one."""
    their = AutoModelForCausalLMWithHiddenProjection
    given = {"init_optimal_projection": projection is None, "reference_lm_head": model.lm_head}
    projection = projection or torch.nn.Linear(16, 32, bias=False)
    return their.wrap(
        shadow_model=model, shadow_hidden_projection=projection, lm_head=base.lm_head, **given
    ).eval()


@pytest.fixture(params=["one file", "several files"])
def kept(request, tmp_path):
    base = tiny_model("qwen3")
    theirs = wrapped(base, narrow(), torch.nn.Linear(16, 32, bias=False))
    theirs.save_pretrained(
        tmp_path / "theirs", **({"max_shard_size": "10KB"} if request.param == "several files" else {})
    )
    return base, theirs, tmp_path / "theirs"


def test_it_says_what_their_model_says(kept):
    """Catches a projection transposed, embeddings or a norm left out: shadow logits, attached and detached,
    against theirs."""
    base, theirs, folder = kept
    ids = token_ids(2, 9)
    with torch.no_grad():
        want = AutoModelForCausalLMWithHiddenProjection.from_pretrained(folder).eval()(ids).logits
        assert torch.equal(want, theirs(ids).logits)
        model = attach(base, ShadowConfig(), shadow=folder)
        assert torch.allclose(model(ids, output_shadow_logits=True).shadow_logits, want, atol=1e-5)
        assert torch.allclose(model.detached()(ids).logits, want, atol=1e-4)
    assert not model.adapters["default"].shadow.embeddings().weight.requires_grad


def test_their_package_attaches_the_same(kept):
    """Their own reader of such a model, attached: with W_up at zero both compute the base, and the shadows
    are the same tensors."""
    _, theirs, folder = kept
    adapted = get_shadow_model(tiny_model("qwen3"), TheirConfig(), shadow_model=theirs)
    state = {name: tensor for name, tensor in adapted.state_dict().items() if "shadow" in name}
    ours = authors_folder.load(tiny_model("qwen3"), folder).state_dict()
    for name, tensor in ours.items():
        ending = (
            "shadow_hidden_projection.weight"
            if name == "projection.weight"
            else f"shadow_model.{name.removeprefix('backbone.')}"
        )
        assert any(key.endswith(ending) and torch.equal(tensor, value) for key, value in state.items()), name


def test_pretraining_goes_on_from_it(kept):
    """Catches `--start FOLDER` taking it for a whole model, whose projection would then be fitted anew."""
    base, _, folder = kept
    config = PretrainConfig(model="base", data="text", output="run", start=str(folder), max_steps=1)
    shadow, _ = initial_shadow(config, base, text.Text([], [], []), resumes=False)
    ours = authors_folder.load(tiny_model("qwen3"), folder).state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in shadow.state_dict().items())
    started = sources.config_of(folder, base.config)
    assert Preflight(base.config, None, started).positions == started.max_position_embeddings


def test_an_adapter_that_started_from_it_is_kept_as_any_other(kept, tmp_path):
    base, theirs, folder = kept
    ids = token_ids(2, 9)
    model = attach(base, shadow=folder)
    model.save_pretrained(tmp_path / "adapter")
    model.unload()
    again = ShadowedModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.allclose(again(ids, output_shadow_logits=True).shadow_logits, theirs(ids).logits, atol=1e-5)


def test_their_start_is_our_pinv():
    """The published warm start against ours, which never holds more than a few rows in float64; theirs is in
    float32."""
    base, model = tiny_model("qwen3"), narrow()
    theirs = wrapped(base, model).shadow_hidden_projection.weight
    ours = warm.pinv(base.lm_head.weight.detach(), model.lm_head.weight.detach())
    assert ((ours - theirs).norm() / ours.norm()).item() < 1e-4


def test_the_command_line_takes_it(kept):
    _, _, folder = kept
    assert sources.holds(folder)
    assert sources.open_source(str(folder), torch.float32) == str(folder)
    assert sources.config_of(str(folder), tiny_config("qwen3")).model_type == "llama"


def test_sizes_that_contradict_it_are_refused(kept):
    base, _, folder = kept
    with pytest.raises(
        ConfigError, match=r"shadow_intermediate_size is set to 8, and the shadow in .* has 24"
    ):
        attach(base, ShadowConfig(shadow_intermediate_size=8), shadow=folder)


def test_another_base_is_refused(kept):
    _, _, folder = kept
    with pytest.raises(
        CheckpointError, match="was pretrained beside another base: the head saved with it is not this base's"
    ):
        attach(tiny_model("qwen3", seed=9), shadow=folder)
    with pytest.raises(UnsupportedModelError, match=r"must share one vocabulary"):
        attach(tiny_model("qwen3", config=tiny_config("qwen3", vocab_size=101)), shadow=folder)
    with pytest.raises(
        CheckpointError, match=r"shadow_hidden_projection\.weight has shape \(32, 16\), expected \(24, 16\)"
    ):
        attach(tiny_model("qwen3", config=tiny_config("qwen3", hidden_size=24)), shadow=folder)
    with pytest.raises(
        CheckpointError, match="of the base's width, 16, where no shadow here has a projection"
    ):
        attach(narrow(), shadow=folder)


def test_the_same_base_at_lower_precision_is_accepted(kept):
    base, _, folder = kept
    attach(base.to(torch.bfloat16), shadow=folder)


def test_every_tensor_counts_both_ways(tmp_path):
    base = tiny_model("qwen3")
    wrapped(base, narrow()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    for name in tensors:
        save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / WEIGHTS)
        with pytest.raises(CheckpointError, match=f"missing {name}"):
            authors_folder.load(base, tmp_path)
    save_file({**tensors, "shadow_model.extra": torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"extra shadow_model\.extra"):
        authors_folder.load(base, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        authors_folder.load(base, tmp_path)


def change(path, edit) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_nothing_named_by_the_files_is_imported_or_followed(kept, tmp_path, monkeypatch):
    """Catches a reader that imports the class paths of a downloaded file, as theirs does, or opens files
    elsewhere."""
    base, _, folder = kept
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    change(
        folder / "config.json",
        lambda content: content.update(
            shadow_model_class="evil:Model", shadow_model_config_class="evil:Config"
        ),
    )
    authors_folder.load(base, folder)
    if (folder / authors_folder.INDEX).exists():
        change(
            folder / authors_folder.INDEX,
            lambda content: content["weight_map"].update({"lm_head.weight": "../elsewhere.safetensors"}),
        )
        with pytest.raises(CheckpointError, match=r"'weight_map' must name files of its folder"):
            authors_folder.load(base, folder)
    change(folder / "config.json", lambda content: content["shadow_model_config"].update(model_type="evil"))
    with pytest.raises(CheckpointError, match=r"'evil', which is not supported"):
        authors_folder.load(base, folder)
    change(folder / "config.json", lambda content: content.update(shadow_model_config=None))
    with pytest.raises(CheckpointError, match=r"'shadow_model_config' must hold a configuration"):
        authors_folder.load(base, folder)


def test_a_shard_that_was_not_copied_is_named(tmp_path):
    base = tiny_model("qwen3")
    wrapped(base, narrow()).save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "model-00002-of-00007.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00007\.safetensors is missing"):
        authors_folder.load(base, tmp_path)
