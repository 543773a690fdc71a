"""The text that grows."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)
from transformers.generation import MaxLengthCriteria

from shadowpeft.generate import Text

LOGITS = torch.tensor([[1.0, 2.0, 3.0]])


class Own(LogitsProcessor):
    """A caller's processor, which notes the length of what it sees."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.lengths.append(input_ids.shape[1])
        return scores.fill_(0.0)


def text(*processors: LogitsProcessor, **settings: Any) -> Text:
    config = GenerationConfig(max_length=4, return_dict_in_generate=True, **settings)
    criteria = StoppingCriteriaList([MaxLengthCriteria(4)])
    return Text(torch.tensor([[2, 1]]), LogitsProcessorList(processors), criteria, None, config)


def test_drafts_are_processed_as_the_answer_is() -> None:
    """Catches drafts that the processors would never let through."""
    made = text(RepetitionPenaltyLogitsProcessor(2.0))
    assert made.processed(LOGITS).tolist() == [[1.0, 1.0, 1.5]]
    assert made.processed_draft([torch.tensor([[0]])], LOGITS).tolist() == [[0.5, 1.0, 1.5]]


@pytest.mark.parametrize(
    "processor", [Own(), PrefixConstrainedLogitsProcessor(lambda batch, ids: [0], 1)], ids=["own", "function"]
)
def test_what_may_have_a_state_is_not_asked_about_drafts(processor: LogitsProcessor) -> None:
    """Catches a processor that sees tokens which are then rejected."""
    made = text(processor)
    assert torch.equal(made.processed_draft([torch.tensor([[0]])], LOGITS), LOGITS)
    if isinstance(processor, Own):
        assert processor.lengths == []


def test_a_processor_does_not_write_into_the_logits() -> None:
    """Catches logits that are changed before they are returned as `logits`."""
    made, logits_1V = text(Own(), output_logits=True, output_scores=True), LOGITS.clone()
    scores_1V = made.processed(logits_1V)
    made.add(torch.tensor([[0]]), scores_1V, logits_1V)
    assert made.logits is not None
    assert made.scores is not None
    assert torch.equal(made.logits[0], LOGITS)
    assert made.scores[0].tolist() == [[0.0, 0.0, 0.0]]


def test_a_text_ends_where_a_criterion_says() -> None:
    """Catches a text that goes on, or outputs that nobody asked for."""
    made = text()
    for room, finished in ((1, False), (0, True)):
        made.add(torch.tensor([[0]]), LOGITS, LOGITS)
        assert (made.room, made.finished) == (room, finished)
    assert (made.scores, made.logits) == (None, None)
