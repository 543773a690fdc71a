"""Scores of labels are exact likelihoods, and the likeliest label is found without scoring them all."""

import json

import pytest
import torch
from helpers.families import perturb
from transformers import AutoTokenizer

from shadowpeft import ShadowConfig, attach
from shadowpeft.data.rows import read_rows
from shadowpeft.demo import labels as module
from shadowpeft.demo.labels import label_scores, likeliest_labels
from shadowpeft.demo.run import load_base
from shadowpeft.embedded import CLINC150, MODEL

EMPTY = "Request: \nIntent:"
PROMPTS = [
    "Request: what is my balance\nIntent:",
    "Request: hi\nIntent:",
    "Request: could you book me a car for next tuesday please\nIntent:",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.mark.parametrize("shadowed", [False, True])
def test_label_scores_are_the_likelihoods_of_whole_answers(tokenizer, shadowed):
    """Catches wrong padding, positions or repeated cache: each score is checked alone and uncached."""
    model = perturb(attach(load_base(), ShadowConfig(alpha=1.0))) if shadowed else load_base()
    labels = [" cancel", " cancel reservation", " [REMOTE]", " fun fact"]
    scores = label_scores(model, tokenizer, PROMPTS, labels=labels)
    for i, prompt in enumerate(PROMPTS):
        start = tokenizer(prompt)["input_ids"]
        for j, label in enumerate(labels):
            answer = [*tokenizer(label)["input_ids"], tokenizer.eos_token_id]
            logits = model(torch.tensor([start + answer])).logits[0, len(start) - 1 : -1]
            want = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
            assert scores[i, j].item() == pytest.approx(want.item(), abs=1e-3)


@pytest.fixture(scope="module")
def names():
    return json.loads((CLINC150 / "labels.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("shadowed", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_likeliest_label_is_that_of_all_scores(tokenizer, names, shadowed, calibrated):
    """Catches a label that is given up though it would win: undecided models leave many a chance."""
    torch.manual_seed(0)  # some drawn shadows have one answer to all prompts
    model = perturb(attach(load_base(), ShadowConfig(alpha=1.0))) if shadowed else load_base()
    prompts = [row.fields["prompt"] for row in read_rows(str(CLINC150 / "validation.jsonl"))[:3]]
    worth_L = label_scores(model, tokenizer, [EMPTY], names)[0] * calibrated
    want = (label_scores(model, tokenizer, prompts, names) - worth_L).argmax(1).tolist()
    done = []
    found = likeliest_labels(model, tokenizer, prompts, names, worth_L=worth_L, batch=2, progress=done.append)
    assert found == want
    assert len(set(want)) > 1
    assert done == [2, 3]


def test_a_label_without_a_chance_is_not_scored(monkeypatch, tokenizer, names):
    """Catches the whole work done for every label."""
    model, sizes, continued = load_base(), [], module._continue

    def counted(model, read, rows_K, ids_KN):
        sizes.append(len(rows_K))
        return continued(model, read, rows_K, ids_KN)

    monkeypatch.setattr(module, "_continue", counted)
    worth_L = torch.zeros(len(names))
    label_scores(model, tokenizer, PROMPTS[:1], names)
    assert sum(sizes) == len(names)
    sizes.clear()
    worth_L[names.index(" balance")] = -100.0
    chosen = likeliest_labels(model, tokenizer, PROMPTS, names, worth_L=worth_L)
    assert [names[best] for best in chosen] == [" balance"] * len(PROMPTS)
    assert sum(sizes) == len(PROMPTS)


def test_what_a_label_is_worth_by_itself_is_taken_off(tokenizer):
    """Catches a calibration that is not subtracted: more worth makes the other label win."""
    model, labels = load_base(), [" cancel", " fun fact"]
    plain_L = label_scores(model, tokenizer, PROMPTS[:1], labels)[0]
    for margin, want in ((1e-3, 0), (-1e-3, 1)):
        worth_L = plain_L - torch.tensor([margin, 0.0])
        assert likeliest_labels(model, tokenizer, PROMPTS[:1], labels, worth_L=worth_L) == [want]
