"""The demo: scoring by likelihood is exact, and the whole thing runs, small."""

import errno
import io
import json
import os
import re

import pytest
import torch
from helpers.families import perturb
from rich.console import Console
from transformers import AutoTokenizer

from shadowpeft import ShadowConfig, attach
from shadowpeft.cli import main
from shadowpeft.demo import screen
from shadowpeft.demo.labels import calibrated_scores, label_scores
from shadowpeft.demo.run import DemoResult, MethodResult, load_base
from shadowpeft.demo.settings import Settings
from shadowpeft.embedded import CLINC150, FOLDER, MODEL, SHADOW

# Of PEFT's own making: it reads a property that transformers renamed. And torch's, told of no GPU.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROMPTS = [
    "Request: what is my balance\nIntent:",
    "Request: hi\nIntent:",
    "Request: could you book me a car for next tuesday please\nIntent:",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def test_the_embedded_files_keep_to_their_limits():
    """Catches a model too large for the package, and a missing credit."""
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 16_000_000
    assert sum(parameter.numel() for parameter in load_base().parameters()) <= 8_000_000
    assert sum(path.stat().st_size for path in SHADOW.iterdir()) <= 4_000_000
    assert "CC BY 3.0" in (CLINC150 / "README.md").read_text()
    assert re.search(r"licen[cs]e", (MODEL / "README.md").read_text(), re.I)
    assert {path.name for path in FOLDER.iterdir()} >= {"model", "clinc150", "shadow"}


@pytest.mark.parametrize("shadowed", [False, True])
def test_label_scores_are_the_likelihoods_of_whole_answers(tokenizer, shadowed):
    """Catches padding, positions or the repeated cache going wrong: each score is checked alone and uncached."""
    model = perturb(attach(load_base(), ShadowConfig(alpha=1.0))) if shadowed else load_base()
    labels = [" cancel", " cancel reservation", " [REMOTE]", " fun fact"]
    scores = label_scores(model, tokenizer, PROMPTS, labels, batch=2)
    for i, prompt in enumerate(PROMPTS):
        start = tokenizer(prompt)["input_ids"]
        for j, label in enumerate(labels):
            answer = [*tokenizer(label)["input_ids"], tokenizer.eos_token_id]
            logits = model(torch.tensor([start + answer])).logits[0, len(start) - 1 : -1]
            want = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
            assert scores[i, j].item() == pytest.approx(want.item(), abs=1e-3)


def test_calibration_takes_out_the_empty_request(tokenizer):
    model, labels = load_base(), [" cancel", " fun fact"]
    empty = "Request: \nIntent:"
    scores = label_scores(model, tokenizer, [empty], labels)
    assert calibrated_scores(model, tokenizer, scores, labels, empty).abs().max() < 1e-5


def test_the_demo_runs_small(monkeypatch, tmp_path, capsys):
    """Catches a demo that only its author could run: through the command line, table, JSON and report."""
    small = Settings(epochs=0.02, test_rows=12, timed_answers=2)
    monkeypatch.setattr(screen, "Settings", lambda seed: small)
    assert main(["demo", "--report", str(tmp_path / "report.html"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    shadows = [
        "shadow attached",
        "shadow detached",
        "pretrained shadow attached",
        "pretrained shadow detached",
    ]
    assert [method["name"] for method in result["methods"]] == ["base", "LoRA", *shadows]
    for attached, alone in ((2, 3), (4, 5)):
        assert result["methods"][attached]["trainable"] > result["methods"][alone]["trainable"] > 0
    assert result["methods"][2]["trainable"] != result["methods"][4]["trainable"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "12\nheld-out requests" in page
    assert "[REMOTE]" in page


def test_a_report_in_a_missing_folder_is_refused_before_work(tmp_path, capsys):
    assert main(["demo", "--report", str(tmp_path / "no" / "report.html")]) == 2
    assert "folder that exists" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_before_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(screen, "run", lambda *_: pytest.fail("the work began before the check"))
    assert main(["demo", "--report", str(tmp_path)]) == 2
    assert "is a folder; give a name in it" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["demo", "--report", str(tmp_path / "report.html")]) == 2
    assert "can be written" in capsys.readouterr().err


def test_the_table_does_not_wait_for_the_report(monkeypatch, tmp_path, capsys):
    """Catches minutes of work lost to a full disk."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    methods = [MethodResult("base", 0.5, 2, 0, None, float("nan"), (1.0, 2.0))]
    monkeypatch.setattr(screen, "run", lambda *_: DemoResult(methods, {}, [], 2, 2, 1.0))
    monkeypatch.setattr(screen, "write_report", full)
    assert main(["demo", "--report", str(tmp_path / "report.html"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["methods"][0]["ms_per_answer"] is None


def test_the_table_shows_every_number_on_a_narrow_screen():
    """Catches numbers that end in three dots at 80 columns."""
    names = ["base", "LoRA", "pretrained shadow attached", "pretrained shadow detached"]
    methods = [MethodResult(name, 0.905, 1000, 2260224, 56.0, 41.0, (40.0, 44.0)) for name in names]
    console = Console(width=80, file=io.StringIO())
    console.print(screen.table(DemoResult(methods, {}, [], 1000, 31, 256.0)))
    shown = console.file.getvalue()
    assert (
        shown.count("2,260,224") == shown.count("90.5 ± 1.8 %") == shown.count("41 (40 to 44)") == len(names)
    )
    assert "…" not in shown
