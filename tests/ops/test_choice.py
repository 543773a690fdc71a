"""Choosing what computes the boundaries."""

import pytest
import torch
from helpers.boundary_cases import BFLOAT16, DEVICE, Kind, assert_as_exact, draw, run
from helpers.families import tiny_model, token_ids
from helpers.interpreter import needs_triton
from helpers.runs import save_base, text_rows, write_rows
from torch import Tensor
from torch._dynamo.utils import counters

from shadowpeft import ShadowConfig, ShadowedModel, attach
from shadowpeft.cli import main
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
    """Catches a compiled copy for each block, after eight of which torch gives up, and a result that fusing
    changed.
    """
    boundary = choice.boundary_of("compile")
    assert_as_exact(boundary, draw(Kind()), times=3.0, floor=1e-6)
    assert_as_exact(boundary, draw(Kind(stream=torch.bfloat16, weights=torch.float32)), **BFLOAT16)
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


@needs_triton
def test_a_model_that_cannot_be_served_is_refused_before_its_first_forward() -> None:
    """Catches a base that stays frozen after a refusal, and a choice that is kept although it was refused."""
    base = tiny_model("qwen3")
    with pytest.raises(ConfigError, match="up to 128, got 200"):
        attach(base, ShadowConfig(r=200), impl="triton")
    assert all(p.requires_grad for p in base.parameters())
    with pytest.raises(ConfigError, match="float64"):
        attach(base.double(), ShadowConfig(), impl="triton")
    model = attach(base, ShadowConfig(r=200))
    assert model.impl == "auto"
    with pytest.raises(ConfigError):
        model.set_impl("triton")
    assert model.impl == "auto"
    served = attach(model.unload().float(), ShadowConfig(), impl="triton")
    with pytest.raises(ConfigError, match="up to 128, got 300"):
        served.add_adapter("wide", ShadowConfig(update_width=300))
    assert list(served.adapters) == ["default"]


@needs_triton
def test_the_command_line_hands_the_choice_on(tmp_path, capsys) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", text_rows(4))
    words = [
        "train",
        "--model",
        save_base(tmp_path / "base"),
        "--data",
        rows,
        "--output",
        tmp_path / "run",
        "--max-steps",
        1,
    ]
    assert main([str(word) for word in [*words, "--impl", "triton", "--shadow.r", 200]]) == 2
    assert "impl='triton' takes r and update_width up to 128, got 200" in capsys.readouterr().err


@needs_triton
def test_a_machine_without_triton_or_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a named implementation that gives way in silence, and `auto` that does not give way."""
    from shadowpeft.ops.triton import op, parts

    base, ids = tiny_model("qwen3"), token_ids(1, 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(parts.INTERPRETED, "value", False)
    with pytest.raises(
        ConfigError,
        match="impl='triton' needs a GPU that torch can use, found none; set impl='auto' or 'reference'",
    ):
        attach(base, impl="triton")
    drawn = draw(Kind(), device="cpu")
    with pytest.raises(ConfigError, match="needs tensors on a GPU, got them on 'cpu'"):
        op.boundary(drawn.h, drawn.s, drawn.crossing)
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="impl='triton' needs the package triton, which is not installed"):
        attach(base, impl="triton")
    assert attach(base).eval()(ids).logits.isfinite().all()


@needs_triton
def test_the_choice_is_kept_with_the_model_and_not_with_the_adapter(tmp_path) -> None:
    model = attach(tiny_model("qwen3"), impl="reference")
    model.save_pretrained(tmp_path)
    base = model.unload()
    assert ShadowedModel.from_pretrained(base, tmp_path).impl == "auto"
    assert ShadowedModel.from_pretrained(base, tmp_path, impl="triton").impl == "triton"


@needs_triton
def test_the_interpreter_is_never_chosen_by_itself() -> None:
    from shadowpeft.ops.triton import op

    if DEVICE == "cpu":
        assert choice.boundary_of("auto") is reference.boundary
    else:
        assert choice.boundary_of("auto") is op.boundary_or_reference
