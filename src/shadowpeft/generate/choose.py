"""The next token of each row of a batch, every row by settings and chance of its own.

Shapes in names: B rows, V tokens of the vocabulary, K of the likeliest.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# A uniform number has so many bits: each is exact in float32.
_BITS = 24


@dataclass
class Choice:
    """How the tokens of one row are chosen, and what is told of them.

    Attributes:
        temperature: what the logits are divided by; 0 for the likeliest token at every step.
        top_p: draw from the likeliest tokens that together have this probability.
        top: how many of the likeliest tokens are told with each token; `None` for no log-probabilities.
        seed: decides what is drawn, whatever the other rows are; `None` for chance.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top: int | None = None
    seed: int | None = None
    _chance: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def uniform(self) -> float:
        """Return the next number of the row's chance, from 0 to below 1."""
        return self._chance.getrandbits(_BITS) / 2**_BITS


@dataclass(frozen=True)
class Chosen:
    """One token, and what the model said of it before temperature and top_p.

    Attributes:
        token: its id.
        logprob: its log-probability; `None` where the row asked for none.
        top: the likeliest tokens with theirs, the first one first.
        entropy: of the distribution, in nats.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    entropy: float | None = None


@torch.inference_mode()
def choose(logits_BV: Tensor, choices: Sequence[Choice]) -> list[Chosen]:
    """Choose a token for each row.

    Args:
        logits_BV: the logits behind each row's last token.
        choices: how each row chooses.
    """
    logits_BV = logits_BV.float()
    tokens_B = logits_BV.argmax(-1)
    drawing = [index for index, choice in enumerate(choices) if choice.temperature > 0]
    if drawing:
        drawn = _draw(logits_BV[drawing], [choices[index] for index in drawing])
        tokens_B = tokens_B.index_copy(0, torch.tensor(drawing, device=tokens_B.device), drawn)
    if all(choice.top is None for choice in choices):
        return [Chosen(token) for token in tokens_B.tolist()]
    return _told(logits_BV, tokens_B, choices)


def _draw(logits_BV: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Draw a token of each row by the inverse of its cumulated probabilities, (B,)."""

    def column(values: Iterable[float]) -> Tensor:
        return torch.tensor([[value] for value in values], dtype=torch.float32, device=logits_BV.device)

    # Below this a distribution is the likeliest token, and the division could overflow.
    temperature_B1 = column(max(choice.temperature, 1e-4) for choice in choices)
    p_BV = (logits_BV / temperature_B1).softmax(-1)
    cut = [index for index, choice in enumerate(choices) if choice.top_p < 1]
    if cut:
        p_BV[cut] = _likeliest(p_BV[cut], column(choices[index].top_p for index in cut))
    below_BV = p_BV.cumsum(-1)
    uniform_B1 = column(choice.uniform() for choice in choices)
    # The first token whose sum exceeds the number: one of probability 0 never does so first.
    drawn_B1 = torch.searchsorted(below_BV, uniform_B1 * below_BV[:, -1:], right=True)
    return drawn_B1.clamp(max=p_BV.shape[1] - 1)[:, 0]


def _likeliest(p_BV: Tensor, top_p_B1: Tensor) -> Tensor:
    """Set the probabilities to 0 behind the likeliest tokens that together have `top_p`."""
    sorted_BV, order_BV = p_BV.sort(-1, descending=True)
    dropped_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p_B1
    # The likeliest token stays, however small top_p is.
    dropped_BV[:, 0] = False
    sorted_BV[dropped_BV] = 0
    return torch.zeros_like(p_BV).scatter(-1, order_BV, sorted_BV)


def _told(logits_BV: Tensor, tokens_B: Tensor, choices: Sequence[Choice]) -> list[Chosen]:
    """Return the tokens with their log-probabilities, for the rows that asked."""
    log_p_BV = logits_BV.log_softmax(-1)
    most = min(max(choice.top or 0 for choice in choices), log_p_BV.shape[1])
    top_BK, ids_BK = log_p_BV.topk(most, -1)
    own_B = log_p_BV.gather(1, tokens_B[:, None])[:, 0]
    # p log p is 0 where p is, also where its logarithm is -inf.
    entropy_B = torch.special.entr(log_p_BV.exp()).sum(-1)
    told = zip(
        choices,
        tokens_B.tolist(),
        own_B.tolist(),
        ids_BK.tolist(),
        top_BK.tolist(),
        entropy_B.tolist(),
        strict=True,
    )
    return [
        Chosen(token)
        if choice.top is None
        else Chosen(token, own, tuple(zip(ids[: choice.top], top[: choice.top], strict=True)), entropy)
        for choice, token, own, ids, top, entropy in told
    ]
