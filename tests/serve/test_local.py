"""Models of this process: the texts of `generate`, several at once, stopped when nobody listens."""

import asyncio
import dataclasses
from contextlib import aclosing
from typing import Any

import pytest
import torch
from helpers.families import tiny_model
from helpers.tokenizers import build_tokenizer

from shadowpeft.generate.batch import Batch
from shadowpeft.serve import worker
from shadowpeft.serve.answers import joined
from shadowpeft.serve.backend import Piece
from shadowpeft.serve.errors import RequestError
from shadowpeft.serve.local import LocalBackend, LocalModel, batches
from shadowpeft.serve.protocol import Ask
from shadowpeft.serve.writing import Writing

GREEDY = Ask(prompt="what is", max_tokens=12, temperature=0.0)
NAMES = ["attached", "other", "drafting", "detached", "base"]


def answers(models: dict[str, LocalModel], *asks: Ask, rows: int = 8) -> list[Piece]:
    """Ask all at once; return the answers, each as one piece."""

    async def run() -> list[Piece]:
        backend = LocalBackend(models, rows, max_tokens=90)
        await backend.start()

        async def one(ask: Ask) -> Piece:
            async with aclosing(backend.answer(ask)) as pieces:
                return joined([piece async for piece in pieces])

        try:
            return await asyncio.gather(*map(one, asks))
        finally:
            await backend.close()

    return asyncio.run(run())


def generated(local: LocalModel, text: str, most: int = 12) -> str:
    """What transformers generates greedily."""
    ids = local.tokenizer(text, return_tensors="pt").input_ids
    given: dict[str, Any] = {} if local.adapter is None else {"adapter": local.adapter}
    settings = {"max_new_tokens": most, "do_sample": False, "pad_token_id": 2, "eos_token_id": [1]}
    out = local.model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **given)
    return local.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_each_model_writes_what_generate_does(models):
    """Catches the wrong adapter, a text that depends on those beside it, and a needless template."""
    texts = ["what is", "hello", "two plus two is four system you are", "a"]
    asks = [dataclasses.replace(GREEDY, model=name, prompt=text) for name in NAMES for text in texts]
    found = [each.text for each in answers(models, *asks, rows=3)]
    want = [generated(models[name], text) for name in NAMES for text in texts]
    assert found == want
    # Else it would not be seen which of them answered.
    assert len({found[len(texts) * index] for index, name in enumerate(NAMES) if name != "drafting"}) == 4


def test_a_chat_has_the_template_and_goes_on_from_its_beginning(models):
    chat = Ask("base", messages=({"role": "user", "content": "what"},), max_tokens=12, temperature=0.0)
    template = "<|im_start|>user\nwhat<|im_end|>\n<|im_start|>assistant\n"
    whole, *_ = found = answers(models, chat, dataclasses.replace(chat, begun="two plus"))
    assert whole.text == generated(models["base"], template)
    assert found[1].text == generated(models["base"], template + "two plus")


def test_all_that_is_told_of_a_token(models):
    """Catches log-probabilities of another place, and an end that is not scored."""
    ask = dataclasses.replace(GREEDY, model="detached", top=3)
    answer = answers(models, ask)[0]
    local = models["detached"]
    ids = [*local.tokenizer(ask.prompt).input_ids, *(token.id for token in answer.tokens)]
    with torch.no_grad():
        log_p = (
            local.model(torch.tensor([ids])).logits[0].log_softmax(-1)[len(ids) - len(answer.tokens) - 1 :]
        )
    for token, row in zip(answer.tokens, log_p, strict=False):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        assert [value for _, value in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert token.entropy == pytest.approx(torch.special.entr(row.exp()).sum().item(), abs=1e-4)
    assert answer.usage.completion == len(answer.tokens)


@pytest.mark.parametrize("name", ["attached", "drafting"])
def test_pieces_come_one_by_one_where_they_are_wanted(name, models):
    """Catches a stream that comes as one piece, and an answer as one that is not the whole."""

    async def pieces_of(ask: Ask) -> list[Piece]:
        backend = LocalBackend({name: models[name]}, 2, max_tokens=90)
        await backend.start()
        async with aclosing(backend.answer(ask)) as pieces:
            found = [piece async for piece in pieces]
        await backend.close()
        return found

    streamed = asyncio.run(pieces_of(dataclasses.replace(GREEDY, prompt="hello", stream=True, top=0)))
    whole = asyncio.run(pieces_of(dataclasses.replace(GREEDY, prompt="hello", top=0)))
    assert len(streamed) > 4
    assert len(whole) == 1
    assert joined(streamed) == whole[0]


def test_a_seed_gives_one_text_wherever_it_is_written(models):
    """Catches chance that is shared: with others beside it, alone, and with drafts, the text is the same."""
    ask = dataclasses.replace(GREEDY, model="attached", temperature=1.5, top_p=0.9, seed=4)
    (alone,) = answers(models, ask)
    others = [dataclasses.replace(ask, seed=seed) for seed in (5, None)]
    together = answers(models, *others, ask, dataclasses.replace(ask, model="drafting"))
    assert alone.text == together[2].text == together[3].text
    assert len({each.text for each in together}) > 1


@pytest.mark.parametrize("name", ["attached", "drafting"])
def test_a_caller_that_leaves_stops_the_work(name, models, monkeypatch):
    """Catches a text that is written to its end for nobody, before one that somebody waits for."""
    written, add = [], Writing.add
    monkeypatch.setattr(Writing, "add", lambda self, chosen: written.append(self) or add(self, chosen))
    long = dataclasses.replace(GREEDY, prompt="hello", max_tokens=80, stream=True)
    assert answers({name: models[name]}, long)[0].usage.completion == len(written) == 80
    written.clear()

    async def run() -> str:
        backend = LocalBackend({name: models[name]}, 1, max_tokens=90)
        await backend.start()
        async with aclosing(backend.answer(long)) as pieces:
            await anext(pieces)
            waiting = asyncio.create_task(_whole(backend, GREEDY))
            await asyncio.sleep(0)
        text = await waiting
        await backend.close()
        return text

    assert asyncio.run(run()) == generated(models[name], "what is")
    assert len(written) < 60


async def _whole(backend: LocalBackend, ask: Ask) -> str:
    async with aclosing(backend.answer(ask)) as pieces:
        return joined([piece async for piece in pieces]).text


@pytest.mark.parametrize("name", ["attached", "drafting"])
def test_a_model_that_fails_answers_the_next_request(name, models, monkeypatch, caplog):
    """Catches a thread that dies with an error, and an error that tells the log a word of the prompt."""
    broken, add = [True], Writing.add

    def fails(self, chosen):
        if broken:
            raise RuntimeError("a secret text")
        return add(self, chosen)

    monkeypatch.setattr(Writing, "add", fails)

    async def run() -> str:
        backend = LocalBackend({name: models[name]}, 2, max_tokens=90)
        await backend.start()
        with pytest.raises(RequestError) as caught:
            await _whole(backend, GREEDY)
        assert caught.value.status == 500
        broken.clear()
        text = await _whole(backend, GREEDY)
        await backend.close()
        return text

    assert asyncio.run(run()) == generated(models[name], "what is")
    assert "secret" not in caplog.text
    assert "RuntimeError in" in caplog.text


def test_an_answer_is_sent_once_its_text_has_left_the_batch(models, monkeypatch):
    """Catches an answer that is lost where that fails, and one that goes out before."""
    drop, left = Batch.drop_finished, []

    def fails(self):
        if any(row.finished for row in self.rows):
            drop(self)
            left.append(True)
            raise RuntimeError
        drop(self)

    async def run() -> str:
        backend = LocalBackend({"attached": models["attached"]}, 2, max_tokens=90)
        await backend.start()
        text = await _whole(backend, GREEDY)
        await backend.close()
        return text

    def deliver(items, deliver=worker._deliver):
        assert left or not any(job.finished for job, _ in items)
        deliver(items)

    monkeypatch.setattr(Batch, "drop_finished", fails)
    monkeypatch.setattr(worker, "_deliver", deliver)
    assert asyncio.run(asyncio.wait_for(run(), 10)) == generated(models["attached"], "what is")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ""}, "nothing to start from"),
        ({"prompt": "what " * 200}, "does not fit"),
        ({"max_tokens": 91}, "may be 90"),
        ({"max_tokens": 89, "prompt": "what is two plus two " * 3}, "does not fit"),
        ({"prompt": (5, 9999)}, "token id 9999"),
    ],
)
def test_what_cannot_be_answered_is_refused(changes, said, models):
    with pytest.raises(RequestError, match=said) as caught:
        answers(models, dataclasses.replace(GREEDY, model="base", **changes))
    assert caught.value.status == 400


def test_without_a_number_an_answer_may_fill_the_room(models):
    ask = dataclasses.replace(GREEDY, model="attached", max_tokens=None, temperature=0.0)
    answer = answers(models, ask)[0]
    assert answer.finish == "stop" or answer.usage.completion == 90


def test_token_ids_are_read_as_they_are(models):
    ids = tuple(models["base"].tokenizer("what is").input_ids)
    first, second = answers(
        models,
        dataclasses.replace(GREEDY, model="base"),
        dataclasses.replace(GREEDY, model="base", prompt=ids),
    )
    assert first.text == second.text


@pytest.mark.parametrize(("family", "together"), [("qwen3", True), ("phi3", False), ("qwen3_next", False)])
def test_which_models_write_several_texts_at_once(family, together):
    """Catches a batch of recurrent states, and one whose rotary factors depend on its longest row."""
    assert batches(LocalModel(tiny_model(family), build_tokenizer(), 64)) == together
