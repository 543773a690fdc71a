"""How sure a model is of an answer: scores of its tokens, greater for surer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shadowpeft.checked_fields import nearest
from shadowpeft.errors import ConfigError, DataError

# In nats. Where a grammar leaves one token alone, the margin to the next is infinite.
_LARGEST = 1000.0


@dataclass(frozen=True)
class TokenScores:
    """What a model says of one answer, token by token.

    Our own models give the token that ends an answer, too; other servers may not. So a policy holds for the
    server that it was calibrated on. The answer of a classifier, or one chosen among labels, is a single
    entry: its class's.

    Attributes:
        logprobs: log-probability of each token chosen.
        margins: log p(likeliest) - log p(second) at each token; `None` if unknown.
        entropies: -sum_v p_v log p_v over the whole vocabulary at each token, in nats; `None` if unknown.
    """

    logprobs: Sequence[float]
    margins: Sequence[float] | None = None
    entropies: Sequence[float] | None = None

    def values(self, needs: str) -> Sequence[float] | None:
        """Return the field of a name, or `None`."""
        fields = {"logprobs": self.logprobs, "margins": self.margins, "entropies": self.entropies}
        return fields.get(needs)


@dataclass(frozen=True)
class Score:
    """A score of answers.

    Attributes:
        needs: the field of `TokenScores` that it reads, or `deferral`, the trained deferral answer.
        doc: what it is.
        of: the score from the values of that field.
        falls: the score of a beginning is never below that of the whole, so that an answer may be deferred
            before its end.
        one_entry: it is for answers chosen among classes, which are one entry.
    """

    needs: str
    doc: str
    of: Callable[[list[float]], float]
    falls: bool = False
    one_entry: bool = False


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _quantile(share: float) -> Callable[[list[float]], float]:
    """Return the quantile between the two nearest ranks, as `numpy.quantile` has it."""

    def of(values: list[float]) -> float:
        ordered, rank = sorted(values), share * (len(values) - 1)
        low = math.floor(rank)
        high = min(low + 1, len(values) - 1)
        return ordered[low] + (rank - low) * (ordered[high] - ordered[low])

    return of


NAMES = {
    "mean_logprob": Score(
        "logprobs", "mean log-probability of the tokens; one unsure token is lost in a long answer", _mean
    ),
    "sum_logprob": Score(
        "logprobs", "log-probability of the whole answer; long answers look unsure", math.fsum, falls=True
    ),
    "min_logprob": Score("logprobs", "log-probability of the least sure token", min, falls=True),
    "q10_logprob": Score("logprobs", "10 % quantile of the tokens' log-probabilities", _quantile(0.1)),
    "q25_logprob": Score("logprobs", "25 % quantile of the tokens' log-probabilities", _quantile(0.25)),
    "median_logprob": Score("logprobs", "median of the tokens' log-probabilities", _quantile(0.5)),
    "mean_margin": Score("margins", "mean of log p(likeliest) - log p(second) over the tokens", _mean),
    "min_margin": Score(
        "margins", "log p(likeliest) - log p(second) at the token where it is least", min, falls=True
    ),
    "mean_entropy": Score("entropies", "mean entropy of the tokens, negated", lambda values: -_mean(values)),
    "max_entropy": Score(
        "entropies", "entropy of the least sure token, negated", lambda values: -max(values), falls=True
    ),
    "class_probability": Score(
        "logprobs", "probability of the class chosen", lambda values: math.exp(values[0]), one_entry=True
    ),
    "class_margin": Score(
        "margins",
        "log p(class chosen) - log p(second class)",
        lambda values: values[0],
        one_entry=True,
    ),
    "deferral": Score(
        "deferral",
        "0 if the answer is the trained deferral answer, such as [REMOTE], else 1",
        min,
        falls=True,
    ),
}


def score(name: str, tokens: TokenScores, text: str, deferral: str | None = None) -> float:
    """Return how sure a model is of an answer; greater is surer. It is -inf for an answer without a token.

    Args:
        name: one of `NAMES`.
        tokens: what the model says of the answer's tokens.
        text: the answer.
        deferral: the answer that the model was trained to defer by; only the score `deferral` reads it.

    Raises:
        ConfigError: there is no such score, or it needs a deferral answer and there is none.
        DataError: the score needs values that are missing, or one of them is NaN.
    """
    kind = kind_of(name)
    if kind.needs == "deferral":
        if deferral is None:
            raise ConfigError(
                f"the score {name!r} needs the deferral answer, such as [REMOTE]; give --deferral"
            )
        return float(not is_deferral(text, deferral))
    values = tokens.values(kind.needs)
    if values is None:
        raise DataError(f"the score {name!r} needs {kind.needs} of the answer's tokens, and there are none")
    if len(values) == 0:
        return -math.inf
    if kind.one_entry and len(values) > 1:
        raise DataError(
            f"the score {name!r} is for an answer chosen among classes, got one of {len(values)} tokens; "
            "choose a score of tokens, such as min_logprob"
        )
    if any(value != value for value in values):
        raise DataError(f"the score {name!r} needs {kind.needs} that are numbers, got NaN among them")
    return float(kind.of([min(max(float(value), -_LARGEST), _LARGEST) for value in values]))


def kind_of(name: str) -> Score:
    """Return the score of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no score {name!r}{nearest(name, NAMES)}; there are: {', '.join(NAMES)}")
    return NAMES[name]


def is_deferral(text: str, deferral: str | None) -> bool:
    """Return whether an answer is the deferral answer, but for white space at both ends."""
    return deferral is not None and text.strip() == deferral.strip()
