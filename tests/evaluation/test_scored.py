"""Answers with what the model says of their tokens."""

import pytest
import torch
from helpers.rows import row
from helpers.runs import one_thread  # noqa: F401 - a fixture
from helpers.tokenizers import build_tokenizer

from shadowpeft.data.rows import Row
from shadowpeft.errors import ConfigError, DataError
from shadowpeft.evaluation.answers import greedy_answers
from shadowpeft.evaluation.scored import scored_answers, scored_labels

ROWS = [
    row(f"rows:{at}", prompt=prompt, completion=completion)
    for at, (prompt, completion) in enumerate(
        [("what is", " two"), ("hello think", " two plus"), ("the city you are system what is", " four")]
    )
]


def distribution(model, ids, position):
    """The log-probabilities of the token at a position, from one pass over the whole text without padding."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, position - 1].float().log_softmax(-1)


@pytest.mark.parametrize("detached", [True, False])
def test_scores_are_those_of_a_pass_over_the_whole_text(shadowed, tokenizer, detached):
    """Catches tokens off by one, padding that is scored, and a distribution of another row of the batch."""
    model = shadowed.detached() if detached else shadowed
    found = scored_answers(model, tokenizer, ROWS, batch_size=3, max_new_tokens=5, progress=False)
    for question, scored in zip(ROWS, found, strict=True):
        ids = tokenizer(question.fields["prompt"]).input_ids
        for logprob, margin, entropy in zip(
            scored.tokens.logprobs, scored.tokens.margins, scored.tokens.entropies, strict=True
        ):
            logs_V = distribution(model, ids, len(ids))
            (first, second), (token, _) = (part.tolist() for part in logs_V.topk(2))
            assert logprob == pytest.approx(first, abs=1e-4)
            assert margin == pytest.approx(first - second, abs=1e-4)
            assert entropy == pytest.approx(-(logs_V.exp() * logs_V).sum().item(), abs=1e-3)
            ids.append(token)


def test_the_token_that_ends_an_answer_is_scored_and_those_behind_it_are_not(shadowed, tokenizer):
    """Catches the padding behind a short answer in the scores, and an end that does not count."""
    given = {"max_new_tokens": 5, "progress": False}
    free = scored_answers(shadowed, tokenizer, ROWS, **given)
    assert {len(each.tokens.logprobs) for each in free} == {5}
    ids = tokenizer(ROWS[0].fields["prompt"]).input_ids
    texts = shadowed.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=5)[0, len(ids) :].tolist()
    later = next(at for at, token in enumerate(texts) if at and token not in texts[:at])
    ending = build_tokenizer()
    ending.eos_token = ending.convert_ids_to_tokens(texts[later])
    found = scored_answers(shadowed, ending, ROWS, batch_size=3, **given)
    assert found[0].tokens.logprobs == pytest.approx(free[0].tokens.logprobs[: later + 1], abs=1e-4)
    assert later + 1 < 5


def test_answers_are_those_of_an_evaluation(shadowed, tokenizer):
    texts = greedy_answers(
        shadowed,
        tokenizer,
        [tokenizer(each.fields["prompt"]).input_ids for each in ROWS],
        5,
        3,
        progress=False,
    )
    rows = [Row({**ROWS[0].fields, "completion": texts[0]}, "rows:0"), *ROWS[1:]]
    shadowed.train()
    found = scored_answers(shadowed, tokenizer, rows, batch_size=2, max_new_tokens=5, progress=False)
    assert shadowed.training
    shadowed.eval()
    assert [each.answer for each in found] == [text.strip() for text in texts]
    assert [each.right for each in found] == [True, False, False]
    assert [each.expected for each in found] == [texts[0].strip(), "two plus", "four"]


def test_a_label_has_its_share_of_all_labels(shadowed, tokenizer):
    """Catches labels without the token that ends them, and shares that do not add up."""
    labels = [" two", " two plus", " four"]
    found = scored_labels(shadowed, tokenizer, ROWS, labels, batch_size=4)
    for question, scored in zip(ROWS, found, strict=True):
        prompt, sums = tokenizer(question.fields["prompt"]).input_ids, []
        for label in labels:
            ids = [*prompt, *tokenizer(label, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            places = range(len(prompt), len(ids))
            sums.append(sum(distribution(shadowed, ids, place)[ids[place]].item() for place in places))
        shares = torch.tensor(sums).softmax(0)
        assert scored.answer == labels[int(shares.argmax())].strip()
        assert scored.tokens.logprobs == pytest.approx([shares.max().log().item()], abs=1e-3)
        first, second = shares.log().topk(2).values.tolist()
        assert scored.tokens.margins == pytest.approx([first - second], abs=1e-3)
        assert scored.right == (scored.answer == question.fields["completion"].strip())


def test_rows_and_labels_that_cannot_be_answered_are_refused(shadowed, tokenizer):
    with pytest.raises(DataError, match="rows:9: expected a row with the right answer"):
        scored_answers(shadowed, tokenizer, [*ROWS, row("rows:9", prompt="what")], progress=False)
    with pytest.raises(DataError, match="rows:0: expected one of the 2 labels as the answer, got 'two'"):
        scored_labels(shadowed, tokenizer, ROWS, ["four", "plus"])
    with pytest.raises(ConfigError, match="two or more different answers, got two, two"):
        scored_labels(shadowed, tokenizer, ROWS, ["two", " two"])


def test_logits_that_are_not_numbers_are_told(shadowed, tokenizer):
    model = shadowed.detached()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(DataError, match=r"rows:0: the model's logits are not numbers"):
        scored_answers(model, tokenizer, ROWS, max_new_tokens=2, progress=False)
