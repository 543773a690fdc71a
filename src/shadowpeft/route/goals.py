"""What a policy is to promise: a risk, a share of requests, or the least cost."""

from dataclasses import dataclass

from shadowpeft import checked_fields
from shadowpeft.checked_fields import within
from shadowpeft.errors import ConfigError

_PRICES = ("edge", "cloud", "error")


@dataclass(frozen=True)
class Risk:
    """At most the share `risk` of the kept answers is wrong, certified with `confidence`."""

    risk: float = within(above=0, below=1)
    confidence: float = within(above=0, below=1)

    def __post_init__(self) -> None:
        checked_fields.check(self)


@dataclass(frozen=True)
class Share:
    """The share `defer` of all requests goes to the cloud; `confidence` is that of the interval."""

    defer: float = within(above=0, below=1)
    confidence: float = within(above=0, below=1)

    def __post_init__(self) -> None:
        checked_fields.check(self)


@dataclass(frozen=True)
class Prices:
    """The least cost: of an answer of the edge, of one of the cloud besides, and of a wrong answer."""

    edge: float = within(least=0, below=float("inf"))
    cloud: float = within(least=0, below=float("inf"))
    error: float = within(least=0, below=float("inf"))

    def __post_init__(self) -> None:
        checked_fields.check(self)


Goal = Risk | Share | Prices


def parse_prices(text: str) -> Prices:
    """Read prices as `edge=1,cloud=20,error=100`.

    Raises:
        ConfigError: one is missing, unknown, given twice or no number of 0 or more.
    """
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    given = {name.strip(): value for name, value in pairs}
    if sorted(given) != sorted(_PRICES) or len(pairs) != len(_PRICES):
        raise ConfigError(f"cost must be like edge=1,cloud=20,error=100, got {text!r}")
    try:
        numbers = {name: float(value) for name, value in given.items()}
    except ValueError:
        raise ConfigError(f"cost must hold numbers, like edge=1,cloud=20,error=100, got {text!r}") from None
    return Prices(**numbers)
