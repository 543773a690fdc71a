"""Times of single answers: a warm-up that does not count, and quantiles."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from shadowpeft.data.rows import Row
from shadowpeft.demo.timing import quantile, time_answers
from shadowpeft.embedded import MODEL


def test_models_take_turns_and_the_first_answers_do_not_count():
    """Catches a model that is timed while the machine warms up, and answers of other lengths."""
    asked, moved = [], []

    def model(name):
        def generate(input_ids, attention_mask, **settings):
            asked.append((name, input_ids.shape[1]))
            assert settings == {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}

        return SimpleNamespace(generate=generate, device=torch.device("cpu"))

    models = {name: model(name) for name in ("base", "LoRA")}
    rows = [Row({"prompt": text}, "row") for text in ("hi", "what is my balance")]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    taken = time_answers(models, tokenizer, rows, progress=lambda done, total: moved.append((done, total)))
    short, long = (len(tokenizer(row.fields["prompt"])["input_ids"]) for row in rows)
    turns = [(name, length) for length in (short, short, long) for name in models]
    assert asked == turns
    assert {name: len(times) for name, times in taken.items()} == {"base": 2, "LoRA": 2}
    assert moved == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (1.0, 5.0)])
def test_a_quantile_is_one_of_the_values(share, value):
    assert quantile([5.0, 1.0, 4.0, 2.0, 3.0], share) == value
