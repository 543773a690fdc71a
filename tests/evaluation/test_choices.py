"""The likelihood of given answers."""

import pytest
import torch
from helpers.families import tiny_model

from shadowpeft.evaluation.choices import choice_log_likelihoods

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]


@pytest.mark.parametrize(
    "choices",
    [[[[20], [21]], [[22], [23], [24]], [[20], [25]]], [[[20, 21], [22]], [[23, 24, 25]], [[20], [21, 22]]]],
    ids=["one token", "several"],
)
@pytest.mark.parametrize("model_type", ["qwen3", "gpt2"])
@torch.inference_mode()
def test_likelihoods_equal_those_of_one_choice_at_a_time(model_type, choices):
    """Catches padding that is attended to, positions that it moves, and a score of the wrong question."""
    model = tiny_model(model_type).eval()
    found = choice_log_likelihoods(model, PROMPTS, choices, pad=0, batch_size=2)
    for prompt, question, scores in zip(PROMPTS, choices, found, strict=True):
        expected = []
        for ids in question:
            logs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            expected.append(sum(logs[len(prompt) - 1 + k, token].item() for k, token in enumerate(ids)))
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)
