"""A compiled training step is one graph with the same gradients."""

from typing import Any

import pytest
import torch
from helpers.families import (
    BLOCKS,
    TINY,
    WINDOW,
    language_batch,
    tiny_config,
    tiny_model,
    token_ids,
)
from helpers.steps import build, step
from torch import Tensor

from shadowpeft import arch
from shadowpeft.train.arguments import recompute_activations

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


# Of the compilers' own doing.
own_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


COMPILED = [
    ("llama", "normed", True),
    ("llama", "peft", False),
    ("qwen3", "normed", False),
    ("qwen3", "paper", True),
    ("gemma3_text", "normed", True),
    ("gemma3_text", "paper", False),
]


@own_warnings
@pytest.mark.parametrize(("model_type", "variant", "checkpointing"), COMPILED)
def test_a_compiled_step_is_one_graph_with_the_same_gradients(model_type, variant, checkpointing):
    """Catches a graph break, and a graph compiled anew for each batch, forward and backward, with padding."""
    layers = {"num_hidden_layers": 3}
    if model_type == "gemma3_text":
        layers["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    model, batch = build(model_type, layers, variant=variant, dropout=0.0).train(), language_batch()
    loss, expected = step(model, batch)
    if checkpointing:
        recompute_activations(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled_loss, found = step(compiled, batch)
        found = {name.removeprefix("_orig_mod."): grad for name, grad in found.items()}
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_blocks_that_need_no_mask():
    """Catches a window or another kind of attention that is taken for one that sees all before it."""
    found = {}
    for model_type in TINY:
        config = tiny_model(model_type).config
        found[model_type] = "".join(
            "ny"[not arch.needs_no_mask(config, block, WINDOW + 1)] for block in range(BLOCKS)
        )
        if arch.FAMILIES[model_type].masks_itself:
            assert all(arch.needs_no_mask(config, block, WINDOW) for block in range(BLOCKS))
            config._attn_implementation = "eager"
            assert not any(arch.needs_no_mask(config, block, WINDOW) for block in range(BLOCKS))
    windows = {
        "qwen2": "nyyy",
        **dict.fromkeys(("mistral", "ministral3", "mixtral", "starcoder2"), "yyyy"),
        "lfm3": "ynyy",
        **dict.fromkeys(("afmoe", "cohere2", "cohere2_moe", "cwm", "exaone4", "exaone_moe"), "ynyn"),
        **dict.fromkeys(("gemma3_text", "gemma4_text", "gemma4_unified_text", "mellum"), "ynyn"),
        **dict.fromkeys(("ministral", "olmo3"), "ynyn"),
    }
    windows = {name: blocks for name, blocks in windows.items() if name in TINY}
    others = dict.fromkeys((name for name in TINY if not arch.FAMILIES[name].masks_itself), "yyyy")
    assert found == {**dict.fromkeys(TINY, "nnnn"), **others, **windows}


@own_warnings
@pytest.mark.parametrize(
    ("model_type", "shadow_type", "long_rows"), [("llama", "qwen2", "ny nn"), ("gemma3_text", None, "yn yn")]
)
def test_a_compiled_step_masks_nothing_where_rows_are_whole(model_type, shadow_type, long_rows):
    """Catches a mask made by transformers, with which a GPU has no flash attention; and one left out where a
    window or padding needs it.

    The shadow's two blocks come first: Qwen2's, taken from a model of its own, of which the second has a
    window, and Gemma's two kinds.
    """
    layers: dict[str, Any] = {"num_hidden_layers": 2}
    explicit = shadow_type and tiny_model(shadow_type, config=tiny_config(shadow_type, **layers))
    if model_type == "gemma3_text":
        layers["layer_types"] = ["sliding_attention", "full_attention"]
    settings = {} if explicit else {"shadow_layers": 2}
    model = build(model_type, layers, explicit, variant="normed", dropout=0.0, **settings).train()
    ids_BT = token_ids(2, WINDOW + 1)
    found: list[str] = []

    def looking(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls = [node for node in graph.graph.nodes if "scaled_dot_product_attention" in str(node.target)]
        found.append("".join("n" if node.kwargs.get("attn_mask") is None else "y" for node in calls))
        return graph.forward

    def masks_of(**inputs: Tensor) -> str:
        loss, expected = step(model, inputs)
        torch._dynamo.reset()
        compiled_loss, grads = step(torch.compile(model, fullgraph=True, backend=looking), inputs)
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(
            {name.removeprefix("_orig_mod."): grad for name, grad in grads.items()},
            expected,
            rtol=1e-4,
            atol=1e-6,
        )
        return f"{found[-1][:2]} {found[-1][2:]}"

    whole = {"input_ids": ids_BT, "labels": ids_BT}
    assert masks_of(**whole) == long_rows
    if model_type == "llama":  # the same in all families, and each time is a compilation
        assert masks_of(**whole, attention_mask=torch.ones_like(ids_BT)) == "yy yy"
        assert masks_of(**whole, position_ids=torch.arange(WINDOW + 1)[None].expand(2, -1)) == "yy yy"


@pytest.mark.slow
@own_warnings
def test_a_step_compiled_by_inductor_has_the_same_gradients():
    """Catches what only the default compiler does with the same graph."""
    model, batch = (
        build("qwen3", {"num_hidden_layers": 2}, variant="normed", dropout=0.0).train(),
        language_batch(),
    )
    loss, expected = step(model, batch)
    torch._dynamo.reset()
    compiled_loss, found = step(torch.compile(model, fullgraph=True), batch)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        {name.removeprefix("_orig_mod."): grad for name, grad in found.items()},
        expected,
        rtol=1e-3,
        atol=1e-5,
    )
