"""Choosing what computes the boundaries, as far as it needs no Triton; the rest is in `test_triton.py`."""

import pytest
import torch
from helpers.boundary_cases import DEVICE, Kind, assert_as_exact, draw, run
from helpers.families import tiny_model, token_ids
from torch import Tensor
from torch._dynamo.utils import counters

from shadowpeft import ShadowConfig, attach
from shadowpeft.errors import ConfigError
from shadowpeft.ops import choice, reference

# Of torch's own code on its way to inductor.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_names_are_checked() -> None:
    with pytest.raises(
        ConfigError, match="impl must be 'auto', 'reference', 'compile', 'triton', got 'fast'"
    ):
        attach(tiny_model("qwen3"), impl="fast")


@pytest.mark.slow
def test_compile_computes_the_same_and_compiles_once_for_all_blocks() -> None:
    """Catches a compiled copy for each block, after eight of which torch gives up, and a result that fusing changed."""
    boundary = choice.boundary_of("compile")
    assert_as_exact(boundary, draw(Kind()), times=3.0, floor=1e-6)
    before = counters["stats"]["unique_graphs"]
    for seed in range(1, 10):  # other weights, and another norm object
        run(boundary, draw(Kind(), seed))
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch's own, while it traces
def test_compile_bears_any_number_of_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches one compiled copy for adapters of several ranks, which torch gives up on at the ninth."""
    real = torch.compile
    monkeypatch.setattr(
        choice.torch,
        "compile",
        lambda function, fullgraph: real(function, fullgraph=fullgraph, backend="eager"),
    )
    choice._compiled.cache_clear()
    for rank in range(2, 12):
        attach(tiny_model("qwen3"), ShadowConfig(r=rank), impl="compile")(token_ids(1, 3))
    choice._compiled.cache_clear()


def test_compile_inside_a_compilation_is_the_reference() -> None:
    drawn = draw(Kind(shape=(5,), D=24))
    want = run(reference.boundary, drawn)
    got = run(torch.compile(choice.compiled, fullgraph=True, backend="eager"), drawn)
    for name in want:
        torch.testing.assert_close(got[name], want[name])


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU needs no C++ compiler")
def test_compile_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"impl='compile' on a CPU needs a C\+\+ compiler, found none; install g\+\+ or set impl=",
    ):
        attach(tiny_model("qwen3"), impl="compile")


def test_the_chosen_function_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a choice that does not reach the boundaries, or only the first call."""
    calls: list[str] = []

    def spy(name: str):
        def boundary(*args) -> tuple[Tensor, Tensor]:
            calls.append(name)
            return reference.boundary(*args)

        return boundary

    monkeypatch.setattr(choice, "boundary_of", spy)
    model = attach(tiny_model("qwen3"), ShadowConfig(inject_from=1), impl="compile")
    model(token_ids(1, 5))
    assert calls == ["compile"] * 3
    model.set_impl("reference")
    model(token_ids(1, 5))
    assert calls[3:] == ["reference"] * 3
