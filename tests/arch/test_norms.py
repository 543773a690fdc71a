"""The norms of a block, in every layout, and the gains that follow from them."""

from typing import Any

import pytest
import torch
from helpers.families import attached, tiny_config, tiny_model, token_ids
from helpers.family_cases import FAMILIES
from helpers.layouts import LAYOUTS, inputs_of, layout
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft import ShadowedModel, UnsupportedModelError, arch

MIXERS = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "conv", "mamba", "mixer")
WITH_NORMS_BEHIND = {
    *("afmoe", "exaone4", "flex_olmo", "gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text", "glm4"),
    *("hyperclovax", "lfm3", "olmo2", "olmo3"),
}
WITHOUT_NORM = {"exaone4", "flex_olmo", "olmo2", "olmo3", "opt, norms behind"}


def attention_of(block: nn.Module) -> nn.Module:
    # Falcon-H1 has two in a block, which read the same.
    return next(module for name, module in block.named_children() if name in MIXERS)


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_what_is_read_through_is_the_norm_that_the_attention_reads_through(name: str) -> None:
    """Catches a wrong name in the table: the norm of the MLP, one behind the attention, or one where there is
    none.
    """
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
    names = arch.family_of(base).norms_behind(base.config)
    for block in arch.blocks_of(base):
        added, passed = [], []
        # Gemma 4 multiplies the whole stream behind a block.
        scale = dict(block.named_buffers()).get("layer_scalar", 1.0)
        block.register_forward_hook(
            lambda _, args, out, added=added, scale=scale: added.append(
                (out[0] if isinstance(out, tuple) else out) / scale - args[0]
            )
        )
        for behind in names:
            block.get_submodule(behind).register_forward_hook(
                lambda _, args, out, passed=passed: passed.append(out)
            )
        base(token_ids(2, 7))
        if names:
            torch.testing.assert_close(added[0], sum(passed), rtol=1e-4, atol=1e-5)
    assert bool(names) == (LAYOUTS[name][0] in WITH_NORMS_BEHIND)


# Nodes of the graph that hand a sum on; a product is one of them where its other factor is a number.
HANDS_ON = {
    "AddBackward0",
    "ViewBackward0",
    "ReshapeAliasBackward0",
    "UnsafeViewBackward0",
    "ToCopyBackward0",
    "MulBackward0",
}


def addends(out: Tensor, ends: set[Any]) -> set[Any]:
    """The nodes of the graph whose results are added up to a tensor; those of `ends` are not taken apart
    further.
    """
    found, left = set(), [out.grad_fn]
    while left:
        node = left.pop()
        before = [earlier for earlier, _ in node.next_functions if earlier is not None]
        if node in ends or node.name() not in HANDS_ON or (node.name() == "MulBackward0" and len(before) > 1):
            found.add(node)
        else:
            left += before
    return found


def crossing(base: PreTrainedModel, block: nn.Module) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Run a base; return what entered a block, what it put out, and the nodes of what its norms put out, by
    their names in the block.
    """
    crossed: list[Tensor] = []
    put_out: dict[str, Any] = {}

    def note(_: nn.Module, args: Any, out: Any) -> None:
        crossed.extend((args[0], out[0] if isinstance(out, tuple) else out))

    handles = [block.register_forward_hook(note)]
    for name, norm in block.named_modules():
        if "norm" in type(norm).__name__.lower():
            handles.append(
                norm.register_forward_hook(lambda _, __, x, name=name: put_out.update({name: x.grad_fn}))
            )
    base(token_ids(2, 7), use_cache=False)
    for handle in handles:
        handle.remove()
    entered, left = crossed
    return entered, left, put_out


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_names_every_norm_behind_a_blocks_layers(name: str) -> None:
    """Catches a new family whose attention's and MLP's outputs pass norms that its row does not name:
    corrections would not follow them.
    """
    base = tiny_model(name)
    for block in arch.blocks_of(base):
        entered, left, norms = crossing(base, block)
        assert norms
        added = addends(left, {entered.grad_fn, *norms.values()})
        assert entered.grad_fn in added
        # A mixture may add what its experts write and what its shared expert writes.
        parts = 4 if any("experts" in part for part, _ in block.named_modules()) else 3
        parts_more = {"falcon_h1": 1, "nemotron_h": -1}.get(name, 0)
        assert len(added) - parts_more in (3, parts), "what entered, and what attention and MLP write"
        assert {norm for norm, node in norms.items() if node in added} == set(
            arch.FAMILIES[name].output_norms
        )


def test_gains_of_an_offloaded_base(tmp_path) -> None:
    """Catches gains that are taken from weights which are not in memory, by `attach` or by a file's
    loader.
    """
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
    """Catches gains on the meta device beside a base that is used, and the refusal of one that is only
    counted there.
    """
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


class Gathering(dict):
    """A module's parameters as a sharding library keeps them: whole only once they are asked for."""

    def __getitem__(self, name: str) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.ones(8))


def test_a_norms_parameters_are_asked_for_as_its_attributes_are() -> None:
    """Catches a shard that is read for the whole weight."""
    norm = torch.nn.LayerNorm(8)
    norm._parameters = Gathering({name: torch.nn.Parameter(torch.ones(0)) for name in ("weight", "bias")})
    parts = arch.norm_parts(norm)
    assert parts is not None
    assert (parts.weight.shape, parts.bias.shape) == (norm.weight.shape, norm.bias.shape) == ((8,), (8,))
