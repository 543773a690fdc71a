"""The policy: which answers of the edge are kept, as `routing.json` holds it."""

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import shadowpeft
from shadowpeft import checked_fields
from shadowpeft.checked_fields import within
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.route.scores import TokenScores, is_deferral, kind_of, score
from shadowpeft.storage import atomic

NAME = "routing.json"
FORMAT = 1


@dataclass(frozen=True)
class Decision:
    """Where a request is answered, and why.

    Attributes:
        route: `edge` if the answer is kept, `cloud` if the request goes there.
        score: of the answer; greater is surer. It is -inf for an answer without a token.
        error_probability: that the answer is wrong; 1 for what is no answer: the deferral answer, or
            one without a token.
        threshold: the least score that is kept.
    """

    route: Literal["edge", "cloud"]
    score: float
    error_probability: float
    threshold: float


@dataclass(frozen=True)
class Counts:
    """How many rows a policy was calibrated on.

    Attributes:
        rows: of the data.
        fitted: to which score -> P(error) was fitted.
        held: with which the threshold was chosen or checked; the other half.
        kept: those of `held` whose answer is kept.
        errors: those of `kept` whose answer is wrong.
        sent: those of `rows` that go to the cloud.
    """

    rows: int = within(least=0)
    fitted: int = within(least=0)
    held: int = within(least=0)
    kept: int = within(least=0)
    errors: int = within(least=0)
    sent: int = within(least=0)


@dataclass(frozen=True)
class RiskPromise:
    """At most the share `risk` of the kept answers is wrong, with `confidence` over calibration sets.

    Attributes:
        risk: the largest share allowed.
        confidence: of the bound.
        bound: upper Clopper-Pearson bound of the share of wrong answers among those kept.
    """

    risk: float = within(above=0, below=1)
    confidence: float = within(above=0, below=1)
    bound: float = within(least=0, most=1)


@dataclass(frozen=True)
class DeferPromise:
    """The share `share` of requests goes to the cloud.

    Attributes:
        share: of the requests.
        confidence: of the interval.
        low: end of the interval of the share of future requests that is sent.
        high: its other end.
    """

    share: float = within(least=0, most=1)
    confidence: float = within(above=0, below=1)
    low: float = within(least=0, most=1)
    high: float = within(least=0, most=1)


@dataclass(frozen=True)
class CostPromise:
    """No other threshold costs less on the rows.

    Attributes:
        edge: price of an answer of the edge.
        cloud: price of one of the cloud, beside the edge's.
        error: price of a wrong answer that is kept.
        expected: mean price of a request on the held-out half.
    """

    edge: float = within(least=0, below=math.inf)
    cloud: float = within(least=0, below=math.inf)
    error: float = within(least=0, below=math.inf)
    expected: float = within(least=0, below=math.inf)


Promise = RiskPromise | DeferPromise | CostPromise
_PROMISES: dict[str, type] = {"risk": RiskPromise, "defer": DeferPromise, "cost": CostPromise}


@dataclass(frozen=True)
class Policy:
    """Which answers of one model are kept.

    Attributes:
        model: name of the edge model: the base's, or what an endpoint calls it.
        adapter: name of the adapter; `None` if there is none or an endpoint does not tell.
        adapter_hash: SHA-256 of its weights and settings; `None` likewise.
        data: name of the file of the rows.
        data_hash: SHA-256 of their content.
        score: the name of the score, of `scores.NAMES`.
        deferral: answer by which the model itself defers; never kept. `None` if it has none.
        threshold: the least score that is kept.
        knots: pairs of a score and the probability that an answer of that score is wrong, by rising score;
            between them it is interpolated, beyond them constant.
        promise: what the threshold promises.
        counts: the rows that it rests on.
        endpoint: address of the server whose answers it was calibrated on; `None` if the model was run here.
            Servers differ in the tokens that they tell of, so that a policy holds for the same kind alone.
    """

    model: str
    adapter: str | None
    adapter_hash: str | None
    data: str
    data_hash: str
    score: str
    deferral: str | None
    threshold: float
    knots: tuple[tuple[float, float], ...]
    promise: Promise
    counts: Counts
    endpoint: str | None = None

    def __post_init__(self) -> None:
        checked_fields.check(self)
        checked_fields.check(self.promise)
        checked_fields.check(self.counts)
        kind_of(self.score)
        _check_threshold(self.threshold)
        _check_knots(self.knots)

    def decide(self, tokens: TokenScores, text: str) -> Decision:
        """Say whether an answer is kept.

        Args:
            tokens: what the model says of the answer's tokens.
            text: the answer.

        Raises:
            DataError: the policy's score needs values that are missing.
        """
        found = score(self.score, tokens, text, self.deferral)
        if is_deferral(text, self.deferral) or len(tokens.logprobs) == 0:
            return Decision("cloud", found, 1.0, self.threshold)
        route: Literal["edge", "cloud"] = "edge" if found >= self.threshold else "cloud"
        return Decision(route, found, self.error_probability(found), self.threshold)

    def error_probability(self, found: float) -> float:
        """Return the probability that an answer of this score is wrong."""
        scores, errors = zip(*self.knots, strict=True)
        return float(np.interp(found, scores, errors))

    def refuse_other(self, adapter_hash: str | None) -> None:
        """Refuse an adapter that the policy was not made for. Nothing is checked if one hash is unknown.

        Raises:
            ConfigError: the hashes differ.
        """
        if self.adapter_hash is None or adapter_hash is None or self.adapter_hash == adapter_hash:
            return
        raise ConfigError(
            f"the policy was calibrated for the adapter {self.adapter} ({self.adapter_hash[:12]}), got one "
            f"of other weights ({adapter_hash[:12]}); calibrate this one: shadowpeft calibrate"
        )

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON; the file is whole or as it was.

        Raises:
            CheckpointError: it cannot be written.
        """
        path, values = Path(path), dataclasses.asdict(self)
        kind = next(name for name, promise in _PROMISES.items() if isinstance(self.promise, promise))
        values["promise"] = {"kind": kind, **values["promise"]}
        about = {"format": FORMAT, "shadowpeft_version": shadowpeft.__version__}
        content = json.dumps(about | values, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        atomic.write_together(path.parent, {path.name: atomic.text(content)})

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Read a policy.

        Raises:
            CheckpointError: the file is missing, damaged, of another format or no policy.
        """
        path = Path(path)
        if path.is_dir():
            path = path / NAME
        try:
            return _read(path)
        except FileNotFoundError:
            raise CheckpointError(f"no policy at {path}; shadowpeft calibrate writes one") from None
        # A RecursionError comes from brackets nested too deep.
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is not a policy that can be read ({error}); write it again: shadowpeft calibrate"
            ) from error


def _read(path: Path) -> Policy:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or "format" not in values:
        raise ConfigError("it is no JSON object with a 'format'")
    if values.pop("format") != FORMAT:
        raise ConfigError(f"its format is not {FORMAT}, the one that this version reads")
    values.pop("shadowpeft_version", None)
    fields = _fields_of(Policy, values, "it")
    fields["promise"] = _read_promise(fields["promise"])
    fields["counts"] = Counts(**_fields_of(Counts, fields["counts"], "counts"))
    fields["knots"] = _read_knots(fields["knots"])
    return Policy(**fields)


def _fields_of(kind: type, values: Any, name: str) -> dict[str, Any]:
    """Return the fields of a class from a JSON object that must hold exactly these."""
    wanted = {entry.name for entry in dataclasses.fields(kind)}
    got = values.keys() if isinstance(values, dict) else set()
    if got != wanted:
        raise ConfigError(
            f"{name} must hold {', '.join(sorted(wanted))}, got {', '.join(sorted(got)) or 'none'}"
        )
    return dict(values)


def _read_promise(values: Any) -> Promise:
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in _PROMISES:
        raise ConfigError(f"promise must be of the kind {' or '.join(_PROMISES)}, got {kind!r}")
    return _PROMISES[kind](**_fields_of(_PROMISES[kind], values, "promise"))


def _read_knots(values: Any) -> tuple[tuple[float, float], ...]:
    try:
        return tuple((float(found), float(error)) for found, error in values)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError("knots must hold pairs of numbers") from None


def _check_threshold(threshold: float) -> None:
    if not math.isfinite(threshold):
        raise ConfigError(f"threshold must be a finite number, got {threshold}")


def _check_knots(knots: tuple[tuple[float, float], ...]) -> None:
    """Refuse knots that are no falling function from scores to probabilities."""
    if not knots:
        raise ConfigError("knots must hold a pair or more, got none")
    scores, errors = zip(*knots, strict=True)
    rising = all(first < second for first, second in itertools.pairwise(scores))
    falling = all(first >= second for first, second in itertools.pairwise(errors))
    if not (rising and falling and all(map(math.isfinite, scores)) and 0 <= errors[-1] <= errors[0] <= 1):
        raise ConfigError("knots must have rising scores, and probabilities that do not rise with them")
