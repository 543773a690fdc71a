"""A compiled step of every family: one graph where its row says so, and the answers of an uncompiled one."""

from collections.abc import Iterator

import pytest
import torch
from helpers.families import attached, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import CONFIG, FAMILIES, gradients, loss_and_gradients

from shadowpeft import ShadowedModel, arch

WHOLE = [name for name in FAMILIES if arch.FAMILIES[name].passes_kwargs]
BROKEN = [name for name in FAMILIES if not arch.FAMILIES[name].passes_kwargs]


@pytest.fixture(autouse=True)
def _no_older_graphs() -> Iterator[None]:
    """Tracing slows down with the graphs that are kept, and past a limit it stops."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_same_step(compiled: ShadowedModel, model: ShadowedModel) -> None:
    ids = token_ids(2, 12)
    loss, expected = loss_and_gradients(model, ids, ids)
    model.zero_grad()
    compiled_loss = compiled(ids, labels=ids).loss
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss.detach(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


# Jamba's own code asks a cached function which torch there is.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
# Six seconds each, and the row's trait is also tested on Llama (`test_shadowed.py`).
@pytest.mark.families
@pytest.mark.parametrize("model_type", WHOLE)
def test_a_step_compiles_whole(model_type: str) -> None:
    """Catches what breaks the graph of one family: its own masks, experts or recurrent blocks, or a shadow of
    them."""
    model = perturb(attached(tiny_model(model_type), CONFIG)).train()
    assert_same_step(torch.compile(model, fullgraph=True, backend="eager"), model)


# Of torch.compile's own tracing behind a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "falcon" else pytest.mark.families)
        for name in BROKEN
    ],
)
def test_a_step_that_does_not_compile_whole_compiles_in_parts(model_type: str) -> None:
    """Catches a row that says less than is so, and one whose base would not compile without a shadow
    either."""
    base, ids = tiny_model(model_type, config=tiny_config(model_type, num_hidden_layers=2)), token_ids(2, 12)
    whole_base = torch.compile(base, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole_base(ids).logits, base(ids).logits)
    model = perturb(attached(base, CONFIG)).train()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ContextVar"):
        torch.compile(model, fullgraph=True, backend="eager")(ids, labels=ids)
    assert_same_step(torch.compile(model, backend="eager"), model)
