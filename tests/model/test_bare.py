"""Which calls run the bare base, in threads and in asyncio tasks."""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers.families import attached, perturb, tiny_model, token_ids
from transformers import TextIteratorStreamer

from shadowpeft import ShadowedModel, UserError

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def lent() -> ShadowedModel:
    return perturb(attached(tiny_model("llama")))


@pytest.fixture
def ids() -> torch.Tensor:
    return token_ids(1, 9)


def in_a_thread(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a call in a thread that is started now; return its result or raise its error."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *args, **kwargs).result()


class Words:
    """A tokenizer that writes numbers."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(f"{token} " for token in tokens)


def test_a_streamers_thread_is_bare_where_it_was_made(lent, ids):
    """Catches attached answers of a thread that was started inside `disabled()`."""
    want = tiny_model("llama").generate(ids, **GREEDY)
    assert not torch.equal(lent.generate(ids, **GREEDY), want)
    streamer = TextIteratorStreamer(Words(), timeout=60)
    with lent.disabled():
        call = {"inputs": ids, "streamer": streamer, **GREEDY}
        thread = threading.Thread(target=lent.generate, kwargs=call)
        thread.start()
    text = "".join(streamer)
    thread.join()
    assert [int(word) for word in text.split()] == want[0].tolist()


@torch.no_grad()
def test_a_thread_that_was_started_inside_must_say_what_it_wants(lent, ids):
    """Catches a call that gets an attached answer because a thread does not inherit the switch."""
    attached_logits, base_logits = lent(ids).logits, lent.base(ids).logits

    def bare() -> torch.Tensor:
        with lent.disabled():
            return lent(ids).logits

    with lent.disabled():
        for call in (lent, lent.forward, lambda ids: lent.generate(ids, **GREEDY)):
            with pytest.raises(UserError, match="enter disabled"):
                in_a_thread(call, ids)
        assert torch.equal(in_a_thread(lent, ids, adapter="default").logits, attached_logits)
        assert torch.equal(in_a_thread(bare), base_logits)
    assert torch.equal(in_a_thread(lent, ids).logits, attached_logits)


@torch.no_grad()
def test_a_thread_that_ran_before_keeps_its_adapter(lent, ids):
    """Catches a switch of one thread that reaches, or refuses, the requests of another."""
    want = lent(ids).logits
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with lent.disabled():
            assert torch.equal(pool.submit(lent, ids).result().logits, want)


@torch.no_grad()
def test_each_asyncio_task_has_a_switch_of_its_own(lent, ids):
    """Catches a task that runs bare because another one of its thread is inside `disabled()`."""
    want, base_logits = lent(ids).logits, lent.base(ids).logits

    async def bare(entered: asyncio.Event, done: asyncio.Event) -> tuple[torch.Tensor, torch.Tensor]:
        with lent.disabled():
            entered.set()
            elsewhere = await asyncio.to_thread(lambda: lent(ids).logits)
            await done.wait()
            return lent(ids).logits, elsewhere

    async def both() -> None:
        entered, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(bare(entered, done))
        await entered.wait()
        assert torch.equal(lent(ids).logits, want)
        done.set()
        assert all(torch.equal(found, base_logits) for found in await task)

    asyncio.run(both())


def test_contexts_nest_and_a_copy_is_outside(lent, ids):
    """Catches an inner context that ends the outer one, and a copy that stays bare forever."""
    with lent.disabled():
        with lent.disabled():
            pass
        assert lent._bare.is_on(None)
        for other in (copy.deepcopy(lent), pickle.loads(pickle.dumps(lent))):
            assert not other._bare.is_on(None)
    assert not lent._bare.is_on(None)
