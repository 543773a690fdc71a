"""How long a draft is: a number of tokens, or as long as one more token is expected to save time."""

from typing import Protocol

from torch import Tensor

MOST = 16
# Rounds between two looks at whether drafting pays.
LOOK = 8
# Rounds of a first pause where it does not, and of the longest.
NAP, LONGEST_NAP = 8, 256
# Times differ by so much without a reason.
NOISE = 1.05
# What a time weighs after another has been measured, and what is known of drafts after another round.
KEEP_TIME, KEEP_DRAFTS = 0.9, 0.99
# How many classes of confidence are told apart, and how many drafts a first guess counts as.
BINS, GUESS = 8, 2.0


class Pace(Protocol):
    """Decides how many tokens a round drafts."""

    def start(self) -> int:
        """Begin a round; return the most tokens that the base is to read in it."""
        ...

    def goes_on(self, scores_1V: Tensor) -> bool:
        """Return whether to draft a token from these scores of the shadow."""
        ...

    def note(self, read: int, tested: int, accepted: int, tokens: int, seconds: tuple[float, float]) -> None:
        """End a round.

        Args:
            read: tokens that shadow and base read.
            tested: drafts that were put to the base.
            accepted: drafts that were taken.
            tokens: tokens that the round gave.
            seconds: the time of drafting and of verifying, with the criteria and the streamer.
        """
        ...


class Fixed:
    """Always the same number of tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def start(self) -> int:
        """Return the number."""
        return self.tokens

    def goes_on(self, scores_1V: Tensor) -> bool:
        """Go on to the number."""
        return True

    def note(self, read: int, tested: int, accepted: int, tokens: int, seconds: tuple[float, float]) -> None:
        """Learn nothing."""


class Mean:
    """A mean in which older values weigh less."""

    def __init__(self) -> None:
        self.weight = self.sum = 0.0

    @property
    def value(self) -> float:
        """The mean; 0 without a value."""
        return self.sum / self.weight if self.weight else 0.0

    def add(self, value: float) -> None:
        """Add a value."""
        self.weight, self.sum = KEEP_TIME * self.weight + 1, KEEP_TIME * self.sum + value

    def add_time(self, seconds: float) -> None:
        """Add a time, of which no more than three times the mean counts: machines pause."""
        self.add(min(seconds, 3 * self.value) if self.weight else seconds)


class Auto:
    """Draft while the next token is expected to save more time than it takes.

    A draft is worth P tokens, P being the chance that it and all before it are taken, and takes d + v: a step
    of the shadow with its head, and what the base takes for one token more. Where a token takes c on average,
    drafting on makes the average better if P > (d + v) / c. c, d and v are measured as the text grows. So is
    how often drafts are taken, by classes of the shadow's confidence in them, its largest probability; P is
    the product over a draft's tokens. The first guess, to which a class returns where nothing is tried, is
    halfway from the confidence to certainty: two models often agree on what neither is sure of. Where tokens
    take longer than without drafts, none are made for a while.
    """

    def __init__(self) -> None:
        # By class of confidence: drafts that were put to the base, and those that it took.
        self._put, self._taken = [0.0] * BINS, [0.0] * BINS
        self._step = Mean()
        # Passes of the base over one token, over more, and over how many.
        self._one, self._many, self._length = Mean(), Mean(), Mean()
        # A round without drafts; rounds with drafts, and the tokens that they gave.
        self._plain, self._round, self._tokens = Mean(), Mean(), Mean()
        # One round without drafts comes first, for the prices.
        self._pause, self._nap, self._awake = 1, NAP, 0
        self._bins: list[int] = []
        self._chance = 1.0

    @property
    def threshold(self) -> float:
        """The chance of being taken above which a draft pays."""
        more = 0.0
        if self._length.value > 1:
            more = max(0.0, (self._many.value - self._one.value) / (self._length.value - 1))
        # Not what tokens take while drafts are wasted, which would make more of them seem to pay.
        return (self._step.value + more) / min(self._per_token(), self._plain.value)

    def start(self) -> int:
        """Begin a round; return 1 in a pause."""
        self._bins, self._chance = [], 1.0
        return 1 if self._pause else MOST

    def goes_on(self, scores_1V: Tensor) -> bool:
        """Return whether the next draft is expected to pay."""
        surety = float(scores_1V.softmax(-1).max())
        place = min(int(BINS * surety), BINS - 1)
        guess = (1 + surety) / 2
        self._chance *= (self._taken[place] + GUESS * guess) / (self._put[place] + GUESS)
        if self._chance <= self.threshold:
            return False
        self._bins.append(place)
        return True

    def note(self, read: int, tested: int, accepted: int, tokens: int, seconds: tuple[float, float]) -> None:
        """Learn from a round what things take, and how often drafts are taken."""
        for counts in (self._put, self._taken):
            counts[:] = [KEEP_DRAFTS * count for count in counts]
        for position, place in enumerate(self._bins[:tested]):
            self._put[place] += 1
            self._taken[place] += position < accepted
        drafting, verifying = seconds
        self._step.add_time(drafting / read)
        if read == 1:
            self._one.add_time(verifying)
        else:
            self._many.add_time(verifying)
            self._length.add(read)
        if self._pause:
            self._plain.add_time(drafting + verifying)
            self._pause -= 1
            if not self._pause:
                self._wake()
        else:
            self._round.add_time(drafting + verifying)
            self._tokens.add(tokens)
            self._awake += 1
            if self._awake % LOOK == 0:
                self._look()

    def _per_token(self) -> float:
        return self._round.value / self._tokens.value

    def _wake(self) -> None:
        """Draft again. Until it is known better, a token takes what it took without drafts."""
        self._round, self._tokens, self._awake = Mean(), Mean(), 0
        self._round.add(self._plain.value)
        self._tokens.add(1)

    def _look(self) -> None:
        """Pause, each time for longer, if drafting does not pay."""
        if self._per_token() > NOISE * self._plain.value:
            self._pause, self._nap = self._nap, min(2 * self._nap, LONGEST_NAP)
        else:
            self._nap = NAP
