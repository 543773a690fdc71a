"""The gate: requests at once, and a queue behind them."""

import asyncio

import pytest

from shadowpeft.serve.errors import RequestError
from shadowpeft.serve.limits import Gate


def test_requests_go_in_by_their_order_and_none_is_lost():
    """Catches one that overtakes, more inside than may be, and a place that leaves with a caller."""

    async def run() -> tuple[list[int], int]:
        gate, order, most = Gate(2, 10), [], 0

        async def one(number: int) -> None:
            nonlocal most
            async with gate.enter():
                order.append(number)
                most = max(most, gate.inside)
                await asyncio.sleep(0.01)

        tasks = []
        for number in range(8):
            tasks.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0)
        # One leaves while it waits, one while it is inside, and one in the moment in which it is let in.
        tasks[4].cancel()
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (gate.inside, gate.waiting) == (0, 0)
        return order, most

    order, most = asyncio.run(run())
    assert order == [0, 1, 2, 3, 5, 6, 7]
    assert most == 2


def test_a_caller_that_leaves_as_it_is_let_in_gives_its_place_back():
    async def run() -> None:
        gate = Gate(1, 5)

        async def one() -> None:
            async with gate.enter():
                await asyncio.sleep(0)

        first = gate.enter()
        await first.__aenter__()
        waiting = asyncio.create_task(one())
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)
        # Its place is set, and it has not run yet.
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert gate.inside == 0
        await asyncio.wait_for(one(), 1)

    asyncio.run(run())


def test_a_full_queue_refuses():
    async def run() -> None:
        gate = Gate(1, 0)
        async with gate.enter():
            with pytest.raises(RequestError) as caught:
                await gate.enter().__aenter__()
        assert (caught.value.status, caught.value.headers()) == (429, {"retry-after": "1"})

    asyncio.run(run())
