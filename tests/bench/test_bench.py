"""`shadowpeft bench`: what is measured is what a user would run, one bad method does not cost the others, and a wrong one all.

The sizes are tiny: these tests are of the bench, not of speed.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shadowpeft import arch, cli
from shadowpeft.bench import measure, methods, report, shapes
from shadowpeft.bench.bare import Bare
from shadowpeft.bench.check import check
from shadowpeft.bench.record import read
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.bench.specs import DEFAULTS, Spec, parse
from shadowpeft.cli import _parser, main
from shadowpeft.cli import bench as verb
from shadowpeft.ops import choice, reference
from shadowpeft.shadow.open_settings import settle

# PEFT and the bench ask transformers 5.23 under names it has since deprecated, since 5.17 knows no others.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FIELDS = "shape batch tokens method impl inject_from ms ms_spread peak_gb trainable device run"
FLAGS = "shape batch tokens methods compiled variant rounds repeats warmup dtype adapter_dtype device seed limit_seconds output json"
CPU = torch.device("cpu")
QUICK = ["--device", "cpu", "--shape", "tiny", "--batch", "1", "--tokens", "8", "--repeats", "2"]


@pytest.fixture(scope="module")
def bare() -> Bare:
    return Bare(shapes.build("tiny", CPU, torch.float32, 0))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 512, (2, 16), generator=torch.Generator().manual_seed(1))


def command(kind: str, methods: str, output: Path, *more: str) -> list[str]:
    return ["bench", kind, *QUICK, "--methods", methods, "--output", str(output), *more]


def spec(text: str, kind: str = "train") -> Spec:
    (found,) = parse(text, "", kind)
    return found


# The command line


@pytest.mark.parametrize("part", ["train", "forward"])
def test_measures_side_by_side(part, tmp_path, capsys):
    """Catches a row without its facts, a table or picture that is not made, and a run that loses the rows of earlier ones."""
    rows = tmp_path / "rows.jsonl"
    names = ["base", "lora", "peft-shadow", "shadow:reference", "shadow@1/2", "lora@1/2"]
    assert main(command(part, "base", rows, "--rounds", "1")) == 0
    assert main(command(part, ",".join(names), rows, "--rounds", "2", "--json")) == 0
    said = capsys.readouterr()
    first, *found = map(json.loads, rows.read_text().splitlines())
    assert [row["name"] for row in found] == names
    assert len({row["run"] for row in found} | {first["run"]}) == 2
    for row in found:
        assert {*FIELDS.split(), "tokens_per_second", "dtype", "versions", "commit"} <= row.keys()
        assert [len(turn) for turn in row["samples"]] == [2, 2]
        assert row["ms"] > 0
        assert row["tokens_per_second"] == pytest.approx(8000 / row["ms"])
        assert row["peak_gb"] is None
    assert [row["inject_from"] for row in found] == [None, None, 0, 1, 2, 2]
    assert [bool(row["trainable"]) for row in found] == [False] + [True] * 5
    turns = [line.split(":")[0].split()[1] for line in said.err.splitlines() if line.startswith("tiny ")]
    assert [name.partition("@")[0] for name in turns[1:]] == [
        name.partition(":")[0].partition("@")[0] for name in names
    ] * 2  # A B C A B C
    assert (tmp_path / "rows.png").stat().st_size > 10_000
    assert "| `shadow@1/2` | 2 |" in (tmp_path / "rows.md").read_text()
    shown = json.loads(said.out[said.out.index('{\n  "rows"') :])
    assert shown["rows"] == found
    assert shown["ratios"][1]["ms/lora"] == 1.0


def test_table_is_printed_again(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base,lora", rows, "--rounds", "1")) == 0
    before = capsys.readouterr().out
    assert main(["bench", "table", "--rows", str(rows)]) == 0
    assert capsys.readouterr().out == before
    assert main(["bench", "table", "--rows", str(rows), "--run", "other"]) == 2
    assert "there is no run 'other' in the file" in capsys.readouterr().err
    assert main(["bench", "table", "--rows", str(tmp_path / "none.jsonl")]) == 2
    assert "there is no file of rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no bench 'trian' (did you mean 'train'?)"),
        (["train", "--shape", "7b"], "there is no shape '7b'"),
        (["train", "--shape", ""], "shape must name at least one"),
        (["train", "--methods", "lora,shadw"], "there is no method 'shadw' here (did you mean 'shadow'?)"),
        (["forward", "--methods", "base-chunked"], "there is no method 'base-chunked' here"),
        (["train", "--methods", ""], "methods must name at least one"),
        (["train", "--methods", "lora,lora"], "lora is named twice"),
        (["train", "--methods", "shadow:cuda"], "there is no implementation 'cuda'"),
        (["train", "--methods", "lora:triton"], "only shadow has implementations"),
        (["train", "--methods", "shadow@4"], "inject_from must be below the model's 4 blocks, got 4"),
        (["train", "--methods", "shadow@4/4"], "a depth must be a block or a share below 1"),
        (["train", "--methods", "dora@1/2"], "dora takes no depth"),
        (["train", "--methods", "shadow@half"], "expected METHOD, METHOD:IMPL or METHOD@DEPTH"),
        (["train", "--compiled", "dora"], "dora cannot be compiled whole"),
        (["train", "--batch", "0"], "batch must be a whole number, 1 or more, got 0"),
        (["train", "--rounds", "0"], "rounds must be a whole number, 1 or more"),
        (["train", "--tokens", "257"], "tokens must be at most 256, the context of the shape tiny, got 257"),
        (["train", "--limit-seconds", "0"], "limit_seconds must be above 0"),
        (["train", "--device", "gpu"], "there is no device 'gpu' here"),
        (["train", "--device", "cuda:99"], "there is no device 'cuda:99' here"),
        (["train", "--variant", "papr"], "variant"),
        (["train", "--output", "."], "expected a file of JSON lines"),
        (["train", "--output", "other.jsonl"], "expected a row of a measurement"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_before_any_weights(words, message, tmp_path, capsys, monkeypatch):
    def built(*_):
        raise AssertionError("weights were built")

    monkeypatch.setattr(shapes, "build", built)
    monkeypatch.chdir(tmp_path)
    Path("other.jsonl").write_text('{"a": 1}\n')
    before = ["--shape", "tiny"] if "--shape" not in words and words[0] != "trian" else []
    assert main(["bench", words[0], *before, *words[1:]]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert Path("other.jsonl").read_text() == '{"a": 1}\n'
    assert not Path("results").exists() or not list(Path("results").iterdir())


def test_flags_are_frozen_and_have_help(capsys):
    for function, more in ((verb.train, " checkpointing"), (verb.forward, "")):
        parser = _parser.build("bench", function)
        assert sorted(_parser.flags(parser)) == sorted((FLAGS + more).split())
        assert [
            action.dest for action in parser._actions if not action.help or action.help.startswith("(")
        ] == []
    assert main(["bench"]) == 2
    assert main(["bench", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {part} " in said for part in ("train", "forward", "table"))
    assert set(cli.PARTS) <= set(cli.VERBS)


# What goes wrong on the way


def test_a_method_that_fails_does_not_cost_the_others(tmp_path, capsys, monkeypatch):
    """Catches a run that ends with the first missing library or full memory, and one that tries it again in every round."""
    monkeypatch.setitem(sys.modules, "shadow_peft", None)
    tries = []

    def full(*_):
        tries.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    monkeypatch.setitem(methods._METHODS, "dora", full)
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base,dora,shadow-peft,lora", rows, "--rounds", "2")) == 0
    found = {row["name"]: row for row in read(rows)}
    assert found["dora"]["status"] == "out of memory"
    assert found["dora"]["ms"] is None
    assert found["shadow-peft"]["status"] == "missing: shadow_peft is not installed"
    assert len(found["lora"]["samples"]) == 2
    assert len(tries) == 1
    said = capsys.readouterr().out
    assert "- `dora`: out of memory" in said
    assert "- `shadow-peft`: missing: shadow_peft is not installed" in said
    assert main(command("train", "dora", rows, "--rounds", "1")) == 1


def test_a_base_that_does_not_fit_is_one_sentence(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(shapes, "build", full)
    assert main(command("train", "base", tmp_path / "rows.jsonl")) == 2
    assert (
        "the shape tiny and its numerical test do not fit into the memory of cpu" in capsys.readouterr().err
    )


def test_what_was_measured_outlives_an_interruption(tmp_path, capsys, monkeypatch):
    """Catches rows that are only written at the end."""
    real, calls = measure.train, []

    def train(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(measure, "train", train)
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base,lora", rows, "--rounds", "3")) == 130
    assert {row["name"]: len(row["samples"]) for row in read(rows)} == {"base": 2, "lora": 1}


def test_no_turn_begins_after_the_limit(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base,lora", rows, "--rounds", "100", "--limit-seconds", "0.01")) == 1
    assert read(rows) == []
    assert "limit_seconds are over" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_not_timed(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    monkeypatch.setattr(measure, "LEARNING_RATE", float("inf"))
    assert main(command("train", "base,lora", rows, "--rounds", "1")) == 0
    found = {row["name"]: row for row in read(rows)}
    assert found["base"]["status"] == "ok"
    assert "not a finite number" in found["lora"]["status"]


# The numerical test


@pytest.mark.parametrize("wrong", ["forward", "backward"])
def test_red_reports_nothing(wrong, tmp_path, capsys, monkeypatch):
    """Catches a wrong implementation whose speed is reported all the same; rows of earlier runs stay."""
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base", rows, "--rounds", "1")) == 0
    before = rows.read_text()

    def spoiled(*args):
        h_BTD, s_BTD = reference.boundary(*args)
        return (1.001 * h_BTD if wrong == "forward" else h_BTD + 0.001 * (h_BTD - h_BTD.detach())), s_BTD

    monkeypatch.setattr(choice, "compiled", spoiled)
    monkeypatch.setattr(choice, "_require_compiler", lambda: None)
    assert main(command("train", "base,shadow:compile", rows, "--rounds", "1")) != 0
    said = capsys.readouterr().err
    assert "nothing is reported, since the numerical test is red" in said.splitlines()[-1]
    assert "'compile'" in said.splitlines()[-1]
    assert rows.read_text() == before


def test_red_while_compiling_takes_back_what_was_written(tmp_path, capsys, monkeypatch):
    def wrong(graph, examples):
        return lambda *args: [out * 1.01 if out.dtype.is_floating_point else out for out in graph(*args)]

    monkeypatch.setattr(measure, "COMPILER", wrong)
    rows = tmp_path / "rows.jsonl"
    assert (
        main(command("forward", "base,shadow:reference", rows, "--rounds", "1", "--compiled", "shadow")) != 0
    )
    assert "nothing is reported" in capsys.readouterr().err.splitlines()[-1]
    assert read(rows) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numerical_test_leaves_the_base_as_it_was(dtype, ids):
    """Catches weights or rotary frequencies that do not survive the way to higher precision and back."""
    base = shapes.build("tiny", CPU, dtype, 0)
    before = {name: tensor.clone() for name, tensor in [*base.named_parameters(), *base.named_buffers()]}
    assert 0 < check(Bare(base), ["reference"], ids, TrainBench()) < 0.1
    after = dict([*base.named_parameters(), *base.named_buffers()])
    assert after.keys() == before.keys()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor)
        for name, tensor in before.items()
    )


# The methods


@pytest.mark.parametrize(
    "text",
    [
        "lora",
        "dora",
        "lora@1/2",
        "lora-chunked",
        "peft-shadow",
        "shadow-peft",
        "shadow:reference",
        "shadow@2",
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_method_comes_off_without_a_trace(text, checkpointing, bare, ids):
    """Catches LoRA layers, hooks, flags or marks of one method that are still on the base when the next is timed."""
    base, settings = bare.base, TrainBench(checkpointing=checkpointing, warmup=0, repeats=1)
    names, marks = [name for name, _ in base.named_parameters()], set(vars(base))
    with torch.no_grad():
        before = base(ids).logits
    fitted = methods.fit(spec(text), base, settings)
    measure.prepare(fitted, settings)
    visit = measure.train(measure.Call(fitted, False), base, ids, settings)
    assert len(visit.ms) == 1
    assert fitted.trained()
    bare.take_off()
    assert [name for name, _ in base.named_parameters()] == names
    assert set(vars(base)) == marks
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in base.parameters())
    assert not any(
        hooks
        for module in base.modules()
        for name, hooks in vars(module).items()
        if "_forward_" in name and "hooks" in name
    )
    assert not base.is_gradient_checkpointing
    with torch.no_grad():
        assert torch.equal(base(ids).logits, before)


def test_the_floor_hands_gradients_through_every_block_and_keeps_none(bare, ids):
    """Catches a floor that is too low, since nothing asks its lower blocks for a gradient."""
    losses = []
    for text in ("base", "base-chunked"):
        fitted = methods.fit(spec(text), bare.base, TrainBench())
        x_BTD, same = fitted.inputs(ids)
        loss = fitted.loss(x_BTD, same)
        loss.backward()
        assert x_BTD.grad.any()
        assert fitted.trained() == []
        losses.append(loss.item())
    assert losses == pytest.approx([bare.base(ids, labels=ids).loss.item()] * 2, rel=1e-5)


def test_methods_are_what_a_user_would_build(bare, ids):
    """Catches LoRA of another rank or on other layers, and a shadow with other settings than the defaults."""
    linear = sum(isinstance(module, torch.nn.Linear) for module in arch.blocks_of(bare.base).modules())
    for text, layers in (("lora", linear), ("lora@1/2", linear // 2), ("lora@3", linear // 4)):
        fitted = methods.fit(spec(text), bare.base, TrainBench())
        trained = [name for name, parameter in fitted.model.named_parameters() if parameter.requires_grad]
        assert len(trained) == 2 * layers
        assert {
            parameter.shape[0] for name, parameter in fitted.model.named_parameters() if "lora_A" in name
        } == {8}
        assert all(
            int(name.split("layers.")[1].split(".")[0]) >= (fitted.inject_from or 0) for name in trained
        )
        bare.take_off()
    fitted = methods.fit(spec("shadow"), bare.base, TrainBench())
    assert fitted.model.adapter.settings == settle(bare.base.config, methods.config_of(None))
    bare.take_off()
    fitted = methods.fit(spec("shadow@2"), bare.base, TrainBench(variant="peft"))
    assert (fitted.model.adapter.settings.variant, fitted.inject_from) == ("peft", 2)
    bare.take_off()


@pytest.mark.parametrize("choice", ["base", "float32", "own"])
@pytest.mark.parametrize("text", ["lora", "peft-shadow", "shadow-peft", "shadow:reference"])
def test_types_of_what_is_trained(text, choice, ids):
    """Catches LoRA in float32 beside a shadow in bfloat16: then their times are not of the same work."""
    base = shapes.build("tiny", CPU, torch.bfloat16, 0)
    settings = TrainBench(adapter_dtype=choice, warmup=0, repeats=1)
    fitted = methods.fit(spec(text), base, settings)
    found = {parameter.dtype for parameter in fitted.trained()}
    if choice == "own":
        assert (torch.float32 in found) == (text in ("lora", "peft-shadow"))
    else:
        assert found == {torch.bfloat16 if choice == "base" else torch.float32}
    measure.prepare(fitted, settings)
    measure.train(measure.Call(fitted, False), base, ids, settings)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "compiled"), [("train", "lora,shadow"), ("forward", "base,shadow")])
def test_compiled_methods_compile_once(part, compiled, tmp_path, monkeypatch):
    """Catches a method that is compiled anew in each round, so that its time is that of the compiler."""
    graphs = []

    def count(graph, examples):
        graphs.append(1)
        return graph.forward

    real, compiled_at = measure.train if part == "train" else measure.prefill, []

    def timed(*args):
        result = real(*args)
        compiled_at.append(len(graphs))
        return result

    monkeypatch.setattr(measure, "COMPILER", count)
    monkeypatch.setattr(measure, "train" if part == "train" else "prefill", timed)
    rows = tmp_path / "rows.jsonl"
    words = command(part, "base,peft-shadow", rows, "--rounds", "2", "--warmup", "0", "--compiled", compiled)
    assert main(words) == 0
    found = [row for row in read(rows) if row["compiled"]]
    assert [row["name"] for row in found] == [f"{name}+compiled" for name in compiled.split(",")]
    assert all(row["status"] == "ok" and row["compile_seconds"] > 0 for row in found), [
        row["status"] for row in found
    ]
    assert len(compiled_at) == 8
    assert compiled_at[3] == compiled_at[-1] == len(graphs) > 0


# Shapes and tables


@pytest.mark.parametrize(
    ("shape", "parameters"), [("0.6b", 596_049_920), ("4b", 4_022_468_096), ("8b", 8_190_735_360)]
)
def test_shapes_are_those_of_the_published_models(shape, parameters):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes.SHAPES[shape].config())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert arch.context_of(model.config) == 40960


def test_the_embedded_shape_is_the_packaged_model():
    base = shapes.build("embedded", CPU, torch.float32, 0)
    assert base.dtype == torch.float32
    assert base.config.num_hidden_layers == 8


def row(name: str, ms: float | None, peak: float | None, **more) -> dict:
    facts = {
        "kind": "train",
        "shape": "8b",
        "batch": 4,
        "tokens": 1024,
        "dtype": "bfloat16",
        "adapter_dtype": "base",
        "inject_from": None,
    }
    made = {
        "run": "r",
        "device": "d",
        "commit": None,
        "versions": {"torch": "2"},
        "command": "c",
        "checkpointing": False,
    }
    value = {
        "ms": ms,
        "ms_spread": 2.0,
        "peak_gb": peak,
        "trainable": 1,
        "tokens_per_second": 5.0,
        "status": "ok",
    }
    return {
        "name": name,
        "method": name.partition("+")[0],
        "compiled": "+" in name,
        **facts,
        **made,
        **value,
        **more,
    }


def test_ratios_are_to_the_named_references():
    rows = [
        row("base-chunked", 350.0, 20.0),
        row("lora", 400.0, 30.0),
        row("lora+compiled", 320.0, 25.0),
        row("shadow", 368.0, 24.0),
    ]
    *_, ours = report.ratios(rows)
    assert ours["ms/lora"] == pytest.approx(0.92)
    assert ours["ms/lora+compiled"] == pytest.approx(1.15)
    assert ours["ms/base-chunked"] == pytest.approx(368 / 350)
    assert ours["peak_gb/lora"] == pytest.approx(0.8)
    assert ours["ms/peft-shadow"] is None
    table = report.markdown([*rows, row("dora", None, None, status="out of memory")])
    assert "| `shadow` | - | 368.0 ± 1.0 | 5 | 24.00 | 1 | 0.920 | 1.051 | 1.150 | 0.800 |" in table
    assert "- `dora`: out of memory" in table


def test_defaults_that_cannot_run_are_named(tmp_path, capsys, monkeypatch):
    """Catches a default that refuses to run at all where there is no GPU, and one that is left out in silence."""
    monkeypatch.setattr(choice, "no_triton", lambda: "needs a GPU")
    monkeypatch.setitem(DEFAULTS, "train", "base,shadow,shadow:triton")
    words = command("train", "shadow:triton", tmp_path / "rows.jsonl", "--rounds", "1")
    assert main(words) == 2
    assert "impl='triton' needs a GPU" in capsys.readouterr().err
    words[words.index("--methods") : words.index("--methods") + 2] = []
    assert main(words) == 0
    assert {row["name"]: row["status"][:7] for row in read(tmp_path / "rows.jsonl")} == {
        "base": "ok",
        "shadow": "ok",
        "shadow:triton": "missing",
    }
    assert "- `shadow:triton`: missing: impl='triton' needs a GPU" in capsys.readouterr().out


def test_defaults_are_read():
    assert {spec.method for spec in Bench().specs()} == {
        "base",
        "lora",
        "dora",
        "peft-shadow",
        "shadow-peft",
        "shadow",
    }
    assert {spec.name for spec in TrainBench().specs()} >= {
        "base-chunked",
        "shadow",
        "shadow:triton",
        "shadow@1/2",
        "lora@3/4",
    }
    compiled = [
        spec.name
        for spec in TrainBench(methods="base,lora,dora,shadow,shadow@1/2", compiled="all").specs()
        if spec.compiled
    ]
    assert compiled == ["base+compiled", "lora+compiled", "shadow+compiled", "shadow@1/2+compiled"]
    assert Bench().size("8b") == (8, 1024)
    assert TrainBench(batch=3).size("8b") == (3, 1024)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path, capsys):
    """Catches a peak that is not the step's own, and an implementation that is red where it is meant to run."""
    methods = "base,base-chunked,lora,peft-shadow,shadow-peft,shadow,shadow:reference,shadow:compile,shadow:triton,shadow@1/2"
    for part, left_out in (("train", ""), ("forward", "base-chunked,")):
        rows = tmp_path / f"{part}.jsonl"
        words = [
            "bench",
            part,
            "--shape",
            "tiny",
            "--tokens",
            "128",
            "--rounds",
            "2",
            "--methods",
            methods.replace(left_out, ""),
        ]
        assert main([*words, "--compiled", "lora,shadow", "--output", str(rows)]) == 0, (
            capsys.readouterr().err
        )
        found = read(rows)
        assert [row["status"] for row in found] == ["ok"] * len(found)
        assert all(0 < row["peak_gb"] < 1 and row["dtype"] == "bfloat16" for row in found)
        assert not found[0]["device"].startswith("cpu")
