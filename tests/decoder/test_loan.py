"""The base as it is lent and given back, whatever was done to it or beside it in between."""

import copy

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from helpers.families import attached, perturb, tiny_config, tiny_model, token_ids
from helpers.tiny import qwen3_config
from packaging.version import Version
from transformers import (
    AutoModelForSequenceClassification,
    StoppingCriteria,
    Trainer,
    TrainingArguments,
    __version__,
)

from shadowpeft import ConfigError, ShadowConfig, UnsupportedModelError, UserError, arch, attach


@pytest.mark.parametrize("how", ["dispatched", "compiled"])
def test_a_decoder_with_a_forward_of_its_own_is_still_shadowed(model, base, ids, how):
    """Catches a shadow that is skipped without a word: accelerate and torch.compile bind these to the module itself."""
    want = model(ids).logits
    if how == "dispatched":
        dispatch_model(base, {"": "cpu"}, force_hooks=True, main_device="cpu")
    else:
        arch.decoder_of(base).compile(backend="eager")
    assert torch.equal(model(ids).logits, want)
    assert not torch.allclose(base(ids).logits, want, atol=1e-2)


def test_a_plain_trainer_evaluates(model, tmp_path):
    """Catches a forward signature from which the Trainer concludes that batches have no labels."""
    rows = [{"input_ids": row, "labels": row} for row in token_ids(4, 9)]
    arguments = TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, max_steps=1, disable_tqdm=True, dataloader_pin_memory=False
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.label_names == ["labels"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        model(token_ids(4, 9), labels=token_ids(4, 9)).loss.item(), rel=1e-4
    )


class SwitchAfterTwo(StoppingCriteria):
    """Another thread's set_adapter(), in the middle of a generation."""

    def __init__(self, model, start):
        self.model, self.start = model, start

    def __call__(self, input_ids, scores, **_):
        if input_ids.shape[1] == self.start + 2:
            self.model.active_adapter = "b"
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_a_generation_keeps_the_adapter_it_started_with(base, ids):
    model = perturb(attach(base, ShadowConfig(alpha=0.5), adapter="a"), seed=1)
    model.add_adapter("b", ShadowConfig(alpha=0.5))
    perturb(model, seed=2)
    model.set_adapter("a")
    want = model.generate(ids, max_new_tokens=8, do_sample=False)
    got = model.generate(
        ids, max_new_tokens=8, do_sample=False, stopping_criteria=[SwitchAfterTwo(model, ids.shape[1])]
    )
    assert torch.equal(got, want)


def test_caches_that_do_not_fit_are_refused(model, ids):
    """Catches halves of a cache that part: filled by the bare base, or made for a shadow of another depth."""
    with model.disabled(), pytest.raises(UserError, match="of the base's own"):
        model(ids, past_key_values=model.new_cache())
    cache = model.new_cache()
    model.add_adapter("deeper", ShadowConfig(shadow_layers=2))
    with pytest.raises(UserError, match="a shadow of 1 blocks, the adapter's has 2"):
        model(ids, past_key_values=cache)
    with pytest.raises(UserError, match="not both"):
        model.generate(
            ids, past_key_values=model.new_cache(), cache_implementation="static", max_new_tokens=2
        )


def test_one_model_cannot_be_shadow_twice():
    base, other = tiny_model("llama"), tiny_model("llama", seed=4)
    model = attached(base, shadow=other)
    for again in (other, base):
        with pytest.raises(ConfigError, match="already part of the model"):
            model.add_adapter("b", shadow=again)


def test_an_offloaded_base_is_refused_before_the_adapter_is_lost(base):
    cpu_offload(base)
    with pytest.raises(UnsupportedModelError, match="not in memory"):
        attach(base)


def test_what_a_base_learned_while_lent_is_forgotten(base, ids):
    """Catches hooks and settings that outlive unload(): output capturing, attention code, training mode."""
    before = copy.deepcopy(base.config.to_dict())
    model = attach(base)
    model(ids, output_hidden_states=True)
    model.set_attn_implementation("eager")
    model.train()
    assert model.unload() is base
    assert base.config.to_dict() == before
    assert base.config._attn_implementation == "sdpa"
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or module.training for module in base.modules()
    )
    assert len(base(ids, output_hidden_states=True).hidden_states) == 5


def test_a_copy_made_while_disabled_is_not_disabled(model, base, ids):
    with model.disabled():
        other = copy.deepcopy(model)
        assert torch.equal(model(ids).logits, base(ids).logits)
    assert torch.equal(other(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "call", ["set_adapter", "delete_adapter", "save_pretrained", "detached", "new_cache"]
)
def test_everything_says_that_it_was_unloaded(model, call):
    model.unload()
    with pytest.raises(UserError, match="unloaded"):
        getattr(model, call)("default")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"base": "gpt2"}, UnsupportedModelError),
        ({"config": {"r": 8}}, ConfigError),
        ({"config": ShadowConfig(shadow_attention_heads=3)}, ConfigError),
        ({"config": ShadowConfig(shadow_head_dim=7)}, ConfigError),
        ({"config": ShadowConfig(shadow_key_value_heads=3)}, ConfigError),
    ],
)
def test_what_attach_cannot_use_is_a_typed_error_and_leaves_the_base_alone(base, wrong, error):
    with pytest.raises(error):
        attach(**{"base": base, **wrong})
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_heads_that_do_not_divide_the_width_are_refused():
    base = tiny_model("gpt2")
    with pytest.raises(ConfigError, match="divide the base's width"):
        attach(base, ShadowConfig(shadow_attention_heads=3))
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_the_detached_model_has_the_settings_of_the_model(base):
    """Catches a padding token set after attaching that the edge model never hears of, and an edge model named as its base."""
    model = attach(base)
    model.config.pad_token_id = 5
    small = model.detached()
    assert small.config.pad_token_id == 5
    assert small.config.name_or_path == ""


def test_a_classifier_cannot_guess_where_rows_end():
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(
        qwen3_config(num_labels=3, pad_token_id=None)
    ).eval()
    model = attach(base)
    with pytest.raises(UserError, match="attention_mask"):
        model(token_ids(2, 7))
    cache = model.new_cache()
    ids, mask = token_ids(2, 7), torch.ones(2, 7, dtype=torch.long)
    model(ids[:, :5], attention_mask=mask[:, :5], past_key_values=cache, use_cache=True)
    last = model(ids[:, 5:], attention_mask=mask, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(last, model(ids, attention_mask=mask).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_shadowed_model_can_be_the_assistant(family):
    """Catches a sliding cache that forgot what a rejected proposal must be rolled back to."""
    big, helper = tiny_model(family, seed=5), perturb(attached(tiny_model(family)))
    ids = token_ids(1, 9)
    want = big.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(big.generate(ids, max_new_tokens=10, do_sample=False, assistant_model=helper), want)


@pytest.mark.skipif(
    Version(__version__) < Version("5.23"), reason="the stock model itself is wrong here before 5.23"
)
def test_phi3_recomputes_where_its_rotary_factors_change():
    """Catches keys cached under the short factors and read under the long ones."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    rope["original_max_position_embeddings"] = 12
    base = tiny_model(
        "phi3", config=tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=12)
    )
    model, ids = perturb(attached(base)), token_ids(1, 9)
    greedy = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(ids, **greedy), model.generate(ids, use_cache=False, **greedy))


def test_transformers_adapter_verbs_answer_for_ours(model):
    """Catches inherited methods that say no adapter is loaded while one is."""
    assert model.active_adapters() == ["default"]
    for call in (model.enable_adapters, model.disable_adapters):
        with pytest.raises(UserError, match="disabled"):
            call()


def test_saving_refuses_what_it_would_not_do(model, tmp_path):
    with pytest.raises(ConfigError, match="push_to_hub"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(UserError, match="holds nothing of adapter 'default'"):
        model.save_pretrained(tmp_path, state_dict={"module.adapters.default.norm.weight": torch.zeros(1)})
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path, max_shard_size="5GB", state_dict=model.state_dict())


def test_several_threads_save_to_one_folder(model, base, tmp_path):
    """Catches partial files that share one name."""
    import threading

    errors = []

    def save():
        try:
            for _ in range(5):
                model.save_pretrained(tmp_path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "shadow.safetensors",
        "shadow_config.json",
    ]
