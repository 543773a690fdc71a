"""The settings of a bench, and its flags."""

from pathlib import Path

import pytest

from shadowpeft import cli
from shadowpeft.bench import shapes
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.cli import _parser, main
from shadowpeft.cli import bench as verb

FLAGS = (
    "shape batch tokens methods compiled variant rounds repeats warmup dtype adapter_dtype device seed "
    "limit_seconds output json"
)


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
        (["train", "--adapter-dtype", "bf16"], "there is no adapter_dtype 'bf16'"),
        (["train", "--adapter-dtype", "base,base"], "adapter_dtype names base twice"),
        (["train", "--adapter-dtype", ""], "adapter_dtype must name at least one type"),
        (["train", "--limit-seconds", "0"], "limit_seconds must be above 0"),
        (["train", "--device", "gpu"], "there is no device 'gpu' here"),
        (["train", "--device", "cuda:99"], "there is no device 'cuda:99' here"),
        (["train", "--variant", "papr"], "variant"),
        (["train", "--output", "."], "expected a file of JSON lines"),
        (["train", "--output", "other.jsonl"], "expected a measurement"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_before_any_weights(words, message, tmp_path, capsys, monkeypatch):
    def built(*_, **options):
        raise AssertionError("weights were built")

    monkeypatch.setattr(shapes, "build", built)
    monkeypatch.chdir(tmp_path)
    Path("other.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    before = ["--shape", "tiny"] if "--shape" not in words and words[0] != "trian" else []
    assert main(["bench", words[0], *before, *words[1:]]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert Path("other.jsonl").read_text(encoding="utf-8") == '{"a": 1}\n'
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
    typed = TrainBench(methods="base,lora,shadow", adapter_dtype="float32, base").specs()
    assert [(spec.name, spec.trained_in) for spec in typed] == [
        ("base", None),
        ("lora", "float32"),
        ("lora", "base"),
        ("shadow", "float32"),
        ("shadow", "base"),
    ]
    assert Bench().size("8b") == (8, 1024)
    assert TrainBench(batch=3).size("8b") == (3, 1024)
