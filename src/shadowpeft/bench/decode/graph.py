"""One token's step with a static cache in a CUDA graph: what a model takes without the host.

B rows, T tokens of the prompt, N new tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from shadowpeft.arch import versions
from shadowpeft.bench.decode.methods import Writer
from shadowpeft.bench.decode.settings import CHECKED
from shadowpeft.bench.decode.ways import Turn, timed

# Steps that run before the graph is captured, on a stream of their own, as CUDA wants it.
WARM = 3


class Step:
    """The step that reads the last token and writes the next one in its place.

    Args:
        writer: the method.
        ids_BT: the prompt, which is read here.
        room: tokens that the cache has room for.
    """

    @torch.no_grad()
    def __init__(self, writer: Writer, ids_BT: Tensor, room: int) -> None:
        rows, tokens = ids_BT.shape
        self._model, self._cache = writer.model, writer.static_cache(room)
        self._position_B1 = torch.full((rows, 1), tokens, device=ids_BT.device)
        positions_BT = torch.arange(tokens, device=ids_BT.device).expand(rows, tokens)
        self.token_B1 = self._next(ids_BT, positions_BT)

    @torch.no_grad()
    def __call__(self) -> None:
        """Write one token."""
        self.token_B1.copy_(self._next(self.token_B1, self._position_B1))
        self._position_B1.add_(1)

    def _next(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        out = self._model(
            input_ids=ids_BT,
            position_ids=positions_BT,
            use_cache=True,
            logits_to_keep=1,
            **{versions.CACHE: self._cache},
        )
        return out.logits[:, -1:].argmax(-1)


class Graph:
    """A step captured in a CUDA graph and replayed.

    The first tokens are written before anything is timed. Each text has a cache and a graph of its own.

    Args:
        writer: the method.
        ids_BT: the prompt.
        new_tokens: N.
    """

    def __init__(self, writer: Writer, ids_BT: Tensor, new_tokens: int) -> None:
        self.writer, self.ids_BT, self.new_tokens = writer, ids_BT, new_tokens

    def first(self) -> Tensor:
        """Write the first tokens, some of them by the graph."""
        return self._text()[0]

    def turn(self, repeats: int) -> Turn:
        """Time so many texts."""
        turn = Turn()
        for _ in range(repeats):
            _, first_ms, token_ms = self._text()
            turn.first_ms.append(first_ms)
            turn.token_ms.append(token_ms)
        return turn

    def _text(self) -> tuple[Tensor, float, float]:
        """Write a text; return its first tokens, (B, CHECKED), and the times of the prompt and of a step."""
        room, device = self.ids_BT.shape[1] + self.new_tokens, self.ids_BT.device
        first_ms, step = timed(lambda: Step(self.writer, self.ids_BT, room), device)
        written = [step.token_B1.clone()]

        def write(call: Callable[[], None]) -> None:
            call()
            written.append(step.token_B1.clone())

        with on_side_stream(device):
            for _ in range(WARM):
                write(step)
        replay = captured(step)
        while len(written) < CHECKED:
            write(replay)
        steps = self.new_tokens - len(written)
        spent_ms, _ = timed(lambda: [replay() for _ in range(steps)], device)
        return torch.cat(written, 1), first_ms, spent_ms / steps


@contextmanager
def on_side_stream(device: torch.device) -> Iterator[None]:
    """Run what is in the context on a stream of its own, between what comes before and after it."""
    side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield
    main.wait_stream(side)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step in a CUDA graph, without running it; return what runs it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
