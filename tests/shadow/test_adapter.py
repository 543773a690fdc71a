"""The variant `normed`: it reads what the block's attention reads, crosses each boundary as written, and starts as documented."""

import copy
import math

import pytest
import torch
from helpers.families import TINY, attached, perturb, tiny_config, tiny_model, token_ids
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import ShadowConfig, ShadowedModel, UnsupportedModelError, arch
from shadowpeft.errors import ConfigError
from shadowpeft.shadow.adapter import Adapter

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
# Beside each family's tiny model, the layouts in which transformers places the norm before the attention otherwise.
LAYOUTS = {
    **{name: (name, {}) for name in sorted(TINY)},
    "falcon, one norm": ("falcon", {"num_ln_in_parallel_attn": 1}),
    "falcon, old": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "falcon, not parallel": (
        "falcon",
        {"new_decoder_architecture": False, "parallel_attn": False, "multi_query": True},
    ),
    "gpt_neox, not parallel": ("gpt_neox", {"use_parallel_residual": False}),
    "bloom, residual after the norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "opt, norms behind": ("opt", {"do_layer_norm_before": False}),
}
WITHOUT_NORM = {"olmo2", "opt, norms behind"}


def layout(name: str) -> PretrainedConfig:
    model_type, changes = LAYOUTS[name]
    return tiny_config(model_type, **changes)


def inputs_of(modules: list[nn.Module], seen: list[Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
    """Note the hidden states that each module is called with, in the order of the calls."""

    def note(module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    return [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]


def attention_of(block: nn.Module) -> nn.Module:
    (found,) = (module for name, module in block.named_children() if name in ATTENTION)
    return found


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_what_is_read_through_is_the_norm_that_the_attention_reads_through(name: str) -> None:
    """Catches a wrong name in the table: the norm of the MLP, one behind the attention, or one where there is none."""
    base = tiny_model(LAYOUTS[name][0], config=layout(name))
    blocks, entered, read = [*arch.blocks_of(base)], [], []
    handles = inputs_of(blocks, entered) + inputs_of([attention_of(block) for block in blocks], read)
    base(token_ids(2, 7))
    for handle in handles:
        handle.remove()
    assert len(entered) == len(read) == len(blocks)
    for block, h, x in zip(blocks, entered, read, strict=True):
        assert torch.equal(arch.input_norm_of(block, arch.family_of(base))(h), x)
        assert torch.equal(h, x) == (name in WITHOUT_NORM)


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_the_norms_behind_a_blocks_layers_are_all_that_it_adds_to_the_stream(name: str) -> None:
    """Catches a wrong name in the table, such as that of the norm before the MLP."""
    base = tiny_model(LAYOUTS[name][0], config=layout(name))
    names = arch.family_of(base).output_norms
    for block in arch.blocks_of(base):
        added, passed = [], []
        block.register_forward_hook(
            lambda _, args, out, added=added: added.append(
                (out[0] if isinstance(out, tuple) else out) - args[0]
            )
        )
        for behind in names:
            block.get_submodule(behind).register_forward_hook(
                lambda _, args, out, passed=passed: passed.append(out)
            )
        base(token_ids(2, 7))
        if names:
            torch.testing.assert_close(added[0], sum(passed), rtol=1e-4, atol=1e-5)
    assert bool(names) == (LAYOUTS[name][0] in ("gemma2", "gemma3_text", "olmo2"))


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def written_out(base: PreTrainedModel, adapter: Adapter, ids: Tensor, outputs: list[Tensor]) -> list[Tensor]:
    """Compute each block's input, from the outputs of the blocks before, as docs/concepts/method.md writes the variant."""
    family, settings = arch.family_of(base), adapter.settings
    state, inputs = adapter.shadow(ids, None, None, None, None), [outputs[0]]
    if settings.unit_state:
        state = state / (state.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for i, block in enumerate([*arch.blocks_of(base)][1:]):
        h = outputs[i + 1]
        x = arch.input_norm_of(block, family)(h)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        if i > 0:
            update = adapter.updates[i - 1]
            target = silu(x @ update.transform_in.weight.T) @ update.transform_out.weight.T
            gate = 1 / (1 + (1 - silu(x @ update.gate_in.weight.T) @ update.gate_out.weight.T).exp())
            state = (1 - gate) * state + gate * target
        injection = adapter.injections[i]
        low = silu((x - state) @ injection.down.weight.T)
        gains = torch.ones(h.shape[-1])
        if settings.output_gains:
            behind = (block.post_attention_layernorm.weight, block.post_feedforward_layernorm.weight)
            offset = base.config.model_type.startswith("gemma")
            gains = ((behind[0] + offset) ** 2 + (behind[1] + offset) ** 2).sqrt()
            gains = gains / gains.mean()
        inputs.append(
            h + settings.alpha * h.abs().mean(-1, keepdim=True) * gains * (low @ injection.up.weight.T)
        )
    return inputs


@pytest.mark.parametrize(
    ("model_type", "unit_state"),
    [("gemma3_text", False), ("gemma3_text", True), ("falcon", False), ("olmo2", True)],
)
@torch.no_grad()
def test_every_boundary_is_crossed_as_written(model_type: str, unit_state: bool) -> None:
    """Catches the norm or the weights of another block, a stale state, a correction before the update, alpha, shift or size left out."""
    base = tiny_model(model_type, dtype=torch.float64)
    config, ids = ShadowConfig(variant="normed", alpha=0.7, unit_state=unit_state), token_ids(2, 7)
    model = perturb(attached(base, config))
    blocks, entered, put_out = [*arch.blocks_of(base)], [], []
    inputs_of(blocks, entered)
    for block in blocks:
        block.register_forward_hook(
            lambda module, args, out: put_out.append((out[0] if isinstance(out, tuple) else out).clone())
        )
    model(ids, use_cache=False)
    expected = written_out(base, model.adapters["default"], ids, [entered[0], *put_out[:-1]])
    for h, want in zip(entered, expected, strict=True):
        torch.testing.assert_close(h, want, rtol=1e-10, atol=1e-12)
    assert all((h - out).abs().mean() > 1e-3 for h, out in zip(entered[1:], put_out, strict=False)), (
        "nothing was corrected"
    )
    assert model.adapters["default"].settings.output_gains == (model_type != "falcon")


def test_where_corrections_are_spread_as_a_block_writes(tmp_path) -> None:
    """Catches gains where no norm has any, gains that are lost by a file, a copy or another type, and a setting that does nothing."""
    base, ids = tiny_model("gemma3_text"), token_ids(2, 7)
    model, even = (perturb(attached(base, ShadowConfig(output_gains=given))) for given in (None, False))
    spread = model(ids).logits
    model.save_pretrained(tmp_path)
    assert not torch.allclose(even(ids).logits, spread, atol=1e-3)
    again = ShadowedModel.from_pretrained(base, tmp_path)
    assert again.adapters["default"].settings.output_gains
    assert torch.equal(again(ids).logits, spread)
    assert torch.equal(copy.deepcopy(again)(ids).logits, spread)
    gains = [injection.gains_D for injection in again.adapters["default"].injections]
    rounded = ShadowedModel.from_pretrained(base.to(torch.bfloat16), tmp_path).adapters["default"]
    for exact_D, near_D in zip(gains, (injection.gains_D for injection in rounded.injections), strict=True):
        torch.testing.assert_close(near_D.float(), exact_D, rtol=1e-2, atol=0)
    assert not any("gains" in name for name in again.adapters["default"].state_dict()), (
        "they follow from the base"
    )
    with pytest.raises(
        ConfigError,
        match="output_gains needs norms behind a block's layers, and Llama has none; leave it out",
    ):
        attached(tiny_model("llama"), ShadowConfig(output_gains=True))
    with pytest.raises(
        ConfigError, match="output_gains belongs to the variant 'normed', got it with 'peft'; leave it out"
    ):
        ShadowConfig(variant="peft", output_gains=True)


def test_gains_of_an_offloaded_base(tmp_path) -> None:
    """Catches gains that are taken from weights which are not in memory, by `attach` or by a file's loader."""
    accelerate = pytest.importorskip("accelerate")
    attached(tiny_model("gemma3_text")).save_pretrained(tmp_path / "adapter")
    places = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
        "model.layers.0": "cpu",
    }
    places |= {f"model.layers.{i}": "disk" for i in range(1, 4)}

    def gains(of) -> list[Tensor]:
        return [injection.gains_D for injection in of.adapters["default"].injections]

    want = gains(attached(tiny_model("gemma3_text")))
    for make in (attached, lambda base: ShadowedModel.from_pretrained(base, tmp_path / "adapter")):
        base = accelerate.dispatch_model(
            tiny_model("gemma3_text"), places, main_device="cpu", offload_dir=tmp_path / "offload"
        )
        assert arch.blocks_of(base)[1].post_attention_layernorm.weight.is_meta
        assert all(torch.equal(got_D, want_D) for got_D, want_D in zip(gains(make(base)), want, strict=True))


def test_gains_of_a_base_without_values(tmp_path) -> None:
    """Catches gains on the meta device beside a base that is used, and the refusal of one that is only counted there."""
    attached(tiny_model("gemma3_text")).save_pretrained(tmp_path)
    for make in (attached, lambda base: ShadowedModel.from_pretrained(base, tmp_path)):
        base = tiny_model("gemma3_text")
        arch.blocks_of(base)[2].to("meta")
        with pytest.raises(
            UnsupportedModelError,
            match=r"the base's weights are on the meta device.*load them first.*then attach",
        ):
            make(base)
        assert all(parameter.requires_grad for parameter in base.parameters()), (
            "a refused base stays as it was"
        )
    with torch.device("meta"):
        counted = attached(arch.build(tiny_config("gemma3_text"), "causal-lm"))
    assert counted.adapters["default"].settings.output_gains
    assert counted.num_parameters(only_trainable=True) == attached(tiny_model("gemma3_text")).num_parameters(
        only_trainable=True
    )


@pytest.mark.parametrize(
    ("variant", "gate", "deviation"), [("normed", 1 / (1 + math.exp(1)), 96**-0.5), ("paper", 0.5, 0.02)]
)
def test_a_fresh_boundary_starts_as_documented(variant: str, gate: float, deviation: float) -> None:
    """Catches a gate that forgets the first state at once, or one that is shut, and a W_down at another variant's scale."""
    base = tiny_model("llama", config=tiny_config("llama", hidden_size=96))
    adapter = attached(base, ShadowConfig(variant=variant, r=32)).adapters["default"]
    assert (adapter.norm is None) == (variant == "normed")
    for update in adapter.updates:
        weights = update.weights(None)
        x = torch.nn.functional.rms_norm(
            torch.randn(64, 96, generator=torch.Generator().manual_seed(0)), (96,)
        )
        hidden = torch.nn.functional.silu(x @ weights.gate_in_UD.T)
        opened = (hidden @ weights.gate_out_DU.T - weights.gate_shift).sigmoid()
        assert opened.mean().item() == pytest.approx(gate, rel=0.1)
    for injection in adapter.injections:
        assert injection.down.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert not injection.up.weight.any()


def test_a_pretrained_shadow_is_brought_to_the_size_of_what_it_is_compared_with(tmp_path) -> None:
    """Catches states of any size that drown the difference, a detached model that changes with them, and a setting that is not kept."""
    base, other, ids = tiny_model("llama"), tiny_model("llama", seed=1), token_ids(2, 7)
    with torch.no_grad():
        other.model.norm.weight.mul_(50)
        other.lm_head.weight.copy_(base.lm_head.weight)
    model = perturb(attached(base, ShadowConfig(), shadow=other))
    adapter = model.adapters["default"]
    assert adapter.settings.unit_state
    first = adapter.shadow(ids, None, None, None, None)
    assert first.square().mean(-1).sqrt().min() > 10
    torch.testing.assert_close(adapter.start(first).square().mean(-1), torch.ones(2, 7), rtol=1e-4, atol=0)
    with torch.no_grad():
        before, alone = model(ids).logits, model.detached()(ids).logits
        adapter.shadow.backbone.norm.weight.mul_(2)
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.detached()(ids).logits, 2 * alone, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = ShadowedModel.from_pretrained(model.unload(), tmp_path)
    assert again.adapters["default"].settings.unit_state
    torch.testing.assert_close(again(ids).logits, before, rtol=1e-4, atol=1e-5)


def test_how_strong_a_fresh_shadow_is() -> None:
    """Catches a pretrained shadow at a strength that it was never measured with, and a wish that is not heard."""

    def alpha(given: bool, **settings) -> float:
        other = tiny_model("llama", seed=1) if given else None
        return (
            attached(tiny_model("llama"), ShadowConfig(**settings), shadow=other)
            .adapters["default"]
            .settings.alpha
        )

    assert [alpha(False), alpha(True), alpha(True, alpha=0.7), alpha(True, variant="paper")] == [
        0.6,
        0.3,
        0.7,
        0.1,
    ]


def test_whose_state_is_brought_to_unit_size() -> None:
    """Catches a random shadow that loses the size it learns, a published variant that is changed, and a wish that is not heard."""

    def unit_state(given: bool, **settings) -> bool:
        other = tiny_model("llama", seed=1) if given else None
        return (
            attached(tiny_model("llama"), ShadowConfig(**settings), shadow=other)
            .adapters["default"]
            .settings.unit_state
        )

    assert [unit_state(False), unit_state(True)] == [False, True]
    assert [unit_state(False, unit_state=True), unit_state(True, unit_state=False)] == [True, False]
    assert [unit_state(True, variant=variant) for variant in ("paper", "peft")] == [False, False]
    with pytest.raises(
        ConfigError, match="unit_state belongs to the variant 'normed', got it with 'paper'; leave it out"
    ):
        ShadowConfig(variant="paper", unit_state=True)
    with pytest.raises(ConfigError, match="unit_state must be true or false, got 1"):
        ShadowConfig(unit_state=1)
