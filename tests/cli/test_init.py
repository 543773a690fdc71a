"""The command line as a whole: help at once, verbs frozen, every mistake one sentence, closed pipes."""

import json
import os
import subprocess
import sys

import pytest
from helpers.command_line import mistake
from helpers.runs import write_rows

from shadowpeft import cli as command_line
from shadowpeft.cli import main

HELP = [["--help"], ["train", "--help"], ["generate", "--help"], ["compare", "--help"], ["doctor", "--help"]]
# Prints the help of each command line after its name, and which heavy libraries are imported by then.
ASK = """
import contextlib, io, json, sys
from shadowpeft.cli import main

found = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(line)
    heavy = sorted({"torch", "transformers"} & set(sys.modules))
    found[" ".join(line)] = (code, out.getvalue(), heavy)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def help_of_each() -> dict[str, tuple[int, str, list[str]]]:
    """What one process printed for every command line of `HELP`; torch is imported in this one already."""
    words = [sys.executable, "-c", ASK, json.dumps(HELP)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_does_not_wait_for_torch(words, help_of_each):
    """Catches an import at the top of a verb's file that makes every `--help` slow."""
    code, shown, heavy = help_of_each[" ".join(words)]
    assert (code, heavy) == (0, [])
    assert "usage: shadowpeft" in shown


def test_verbs_are_frozen(capsys):
    assert set(command_line.VERBS) >= {"demo", "train", "generate", "eval", "compare", "export", "doctor"}
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {verb} " in said for verb in command_line.VERBS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no verb 'trian' (did you mean 'train'?)"),
        (["train", "--modle", "x"], "unknown flag --modle (did you mean '--model'?)"),
        (["train", "--shadow.alhpa=1"], "unknown flag --shadow.alhpa (did you mean '--shadow.alpha'?)"),
        (["train", "--learning-rate", "fast", "--model", "m"], "learning_rate"),
        (["train", "--model", "m"], "required: data, output"),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--shadow.dropout", "2"],
            "dropout must be at least 0 and below 1",
        ),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--shadow.variant", "papr"],
            "shadow.variant",
        ),
        (["train", "--config", "nowhere.yaml"], "there is none at 'nowhere.yaml'"),
        (["eval", "--model", "m", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["generate", "--model", "./nowhere", "--prompt", "x"], "there is no model folder ./nowhere"),
        (["generate", "--model", "m", "--prompt", "x", "--detached"], "--detached needs --adapter"),
        (
            ["generate", "--model", "m", "--prompt", "x", "--detached", "--adapter", "nowhere"],
            "no adapter folder at nowhere",
        ),
        (["generate", "--model", "m", "--prompt", "x", "--temperature=-1"], "temperature"),
        (
            ["export", "--model", "m", "--adapter", "nowhere", "--output", "new"],
            "no adapter folder at nowhere",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(words, message, capsys):
    assert message in mistake(words, capsys)


def test_unexpected_errors_keep_their_trace(monkeypatch, base_folder):
    """Catches an `except` so wide that a fault of ours looks like the user's."""
    monkeypatch.setattr("shadowpeft.storage.stock_models.load_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["generate", "--model", str(base_folder), "--prompt", "x"])


def test_own_warnings_are_one_line(base_folder, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "what", "completion": " two plus two is four"}])
    words = ["eval", "--model", str(base_folder), "--data", str(rows)]
    assert main([*words, "--max-length", "4", "--exact-match", "false"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: 1 of 1 rows are longer than max_length=4")


def test_nothing_but_the_result_is_printed(base_folder, adapter_folder, rows_file):
    """Catches bars, warnings and log lines of libraries in a script's output."""
    words = ["eval", "--model", base_folder, "--adapter", adapter_folder, "--data", rows_file, "--json"]
    run = "import sys; from shadowpeft.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", run, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == 2


# A verb that prints so many lines; a real one would add the seconds that importing torch takes.
PRINT = """
import sys
from shadowpeft.cli import doctor, main

def run():
    print("line\\n" * int(sys.argv[1]))

doctor.run = run
sys.exit(main(["doctor"]))
"""


def test_help_may_be_cut_off_and_texts_need_no_character_of_the_screen():
    """Catches the trace of `--help | head -1`, and one after the work where the screen knows no emoji."""
    run = "import sys; from shadowpeft.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", run, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)
    process.stderr.close()
    shows = PRINT.replace("line", "\U0001f642")
    done = subprocess.run(
        [sys.executable, "-c", shows, "1"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, b"", b"\\U0001f642")


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "while writing"])
def test_reader_that_has_seen_enough(lines):
    """Catches the trace of a closed pipe, as `| head -c 5` makes one, while writing and at exit."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRINT, str(lines)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)
    process.stderr.close()
