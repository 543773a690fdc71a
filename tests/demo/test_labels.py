"""Scores of labels are exact likelihoods, and calibration takes out what a label is worth by itself."""

import pytest
import torch
from helpers.families import perturb
from transformers import AutoTokenizer

from shadowpeft import ShadowConfig, attach
from shadowpeft.demo.labels import calibrated_scores, label_scores
from shadowpeft.demo.run import load_base
from shadowpeft.embedded import MODEL

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
    scores = label_scores(model, tokenizer, PROMPTS, labels=labels, batch=2)
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
    assert calibrated_scores(model, tokenizer, scores, labels=labels, empty=empty).abs().max() < 1e-5
