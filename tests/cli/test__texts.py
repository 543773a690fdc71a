"""Text on the command line and in files: it arrives as it was written, whatever YAML would make of it."""

import dataclasses
import typing

import pytest
import yaml
from helpers.command_line import mistake

from shadowpeft.cli import _parser, compare, eval, export, generate, pretrain, train
from shadowpeft.cli._texts import Texts

# Each means something else in YAML, or is written in a way of its own.
ODD = [
    *("no", "1e-3", "[a]", "{x: y}", "# c", "a # c", "  lead", "trail  ", "a\nb", "thanks 🙂", "0123", "~"),
    *("- x", "2024-01-01", "1_000", "true", "a: b", "'q'", '"q"', "*x", "&x", "!x", "", "0x1f", "1:30", "%x"),
    *("|", "\t", "nan", "\u0085x", "\x07", "=", "a=b", "\\n", ".5", "+.5e2", "0o17", "\ud83d", "<<"),
    *("\u2028y", "null"),
]
NEEDED = {train: "model data output", pretrain: "model data output"} | dict.fromkeys(
    (compare, export), "model output"
)


def words_without(module, name: str) -> list[str]:
    words = [f"--{other}=x" for other in NEEDED.get(module, "model").split() if other != name]
    if module is pretrain:
        words.append("--max-steps=1")
    if module is compare:
        words.append("--tasks=gsm8k")
    return words


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *((train, "output"), (train, "eval_data"), (generate, "prompt"), (generate, "adapter")),
        *((eval, "split"), (compare, "output"), (pretrain, "text_field"), (export, "push")),
    ],
)
def test_text_on_the_command_line_is_what_was_typed(module, name):
    """Catches text read as YAML: a list, a number, a comment or nothing in place of what was typed."""
    allowed = [text for text in ODD if text != "null" or name in ("prompt", "output", "text_field", "split")]
    if module is compare:
        allowed = [text for text in allowed if text.strip() not in ("", "no")]
    for text in allowed:
        found = _parser.parse("verb", module.run, [*words_without(module, name), f"--{name}={text}"])
        found = found.get(name) if name in found else getattr(found["settings"], name)
        assert found == ([text] if name == "prompt" else text)


def test_null_means_no_value_where_there_may_be_none():
    """A flag can so take back what a file sets."""
    found = _parser.parse("verb", generate.run, ["--model", "m", "--adapter", "null"])
    assert found["adapter"] is None


def test_prompts_may_begin_with_dashes():
    for text in ("- a list", "-x", "-- so", "--unknown"):
        found = _parser.parse("verb", generate.run, ["--model", "m", "--prompt", text, "--prompt=--json"])
        assert found["prompt"] == [text, "--json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "m", "--prompt", "--json"], "--prompt needs a value behind it, got --json"),
        (["--model", "m", "--prompt"], "--prompt needs a value behind it, got none"),
        (["--model", "--raw"], "--model needs a value behind it, got --raw"),
    ],
)
def test_a_flag_is_no_value(words, message, capsys):
    """Catches `--prompt --json`, which answered the prompt "--json"."""
    assert message in mistake(["generate", *words], capsys)


@pytest.mark.parametrize("module", [train, pretrain, compare])
def test_a_written_file_is_read_back(module, tmp_path):
    """Catches a folder named 1e-3, written without quotes and read as a number."""
    settings = typing.get_type_hints(module.run)["settings"]
    fields = [
        entry.name
        for entry in dataclasses.fields(settings)
        if not entry.metadata and typing.get_type_hints(settings)[entry.name] in (str, str | None)
    ]
    wanted = {"model": "m", "data": "d", "output": "o", "tasks": "gsm8k", "max_steps": 1}
    wanted = {name: value for name, value in wanted.items() if name in settings.__dataclass_fields__}
    file = tmp_path / "run.yaml"
    for place, text in enumerate(ODD):
        if module is compare and (not text.strip() or text == "no"):
            continue
        name = fields[place % len(fields)]
        if name in ("name", "device", "start"):
            name = "output"
        config = settings(**{**wanted, name: text})
        file.write_text(config.to_yaml(), encoding="utf-8")
        assert _parser.parse("verb", module.run, ["--config", str(file)])["settings"] == config
        assert yaml.safe_load(config.to_yaml())[name] == text


def test_text_in_a_file_needs_no_quotes(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: 0123\ndata: 2024-01-01\noutput: no\neval_data: ~\nreport_to: '~'\n", encoding="utf-8-sig"
    )
    found = _parser.parse("verb", train.run, ["--config", str(file)])["settings"]
    assert (found.model, found.data, found.output, found.report_to) == ("0123", "2024-01-01", "no", "~")
    assert found.eval_data is None


def test_a_stand_in_is_not_taken_for_text():
    texts = Texts({"name": str})
    (word,) = texts.from_words(["--name=text-0"], ["name"])
    assert word != "--name=text-0"
