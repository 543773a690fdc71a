"""One token's step with a static cache in a CUDA graph: what a model takes without the host.

B rows, T tokens of the prompt, N new tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from shadowpeft.arch import versions
from shadowpeft.bench.decode.methods import Writer
from shadowpeft.bench.decode.prompts import Prompt
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
        prompts: the prompts.
    """

    def __init__(self, writer: Writer, prompts: Sequence[Prompt]) -> None:
        self.writer, self.prompts = writer, prompts

    def first(self) -> list[Tensor]:
        """Write the first tokens of each text, some of them by the graph."""
        return [self._text(prompt)[0] for prompt in self.prompts]

    def turn(self, repeats: int) -> Turn:
        """Time each text so many times."""
        turn = Turn()
        for prompt in [*self.prompts] * repeats:
            _, first_ms, token_ms = self._text(prompt)
            turn.first_ms.append(first_ms)
            turn.token_ms.append(token_ms)
        return turn

    def _text(self, prompt: Prompt) -> tuple[Tensor, float, float]:
        """Write a text; return its first tokens, (B, CHECKED), and the times of the prompt and of a step."""
        device = prompt.ids_BT.device
        first_ms, step = timed(lambda: Step(self.writer, prompt.ids_BT, prompt.room), device)
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
        steps = prompt.new_tokens - len(written)
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
