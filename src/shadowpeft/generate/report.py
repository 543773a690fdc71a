"""How well drafting went."""

from dataclasses import dataclass, field

from transformers.generation import GenerateDecoderOnlyOutput


@dataclass
class DraftReport:
    """What the rounds of one generation came to.

    Attributes:
        rounds: passes of the base, without the one over the prompt.
        tokens: tokens that these passes gave; the prompt's own pass gave one more.
        shadow_steps: tokens that the shadow read in them.
        drafted: how often a first, second, ... draft of a round was put to the base, while the text went on.
        accepted: how often it was taken, by the same positions.
    """

    rounds: int = 0
    tokens: int = 0
    shadow_steps: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    @property
    def tokens_per_round(self) -> float:
        """Tokens that a pass of the base gave, 1 in plain decoding; 0 if there was none."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def acceptance(self) -> list[float]:
        """The share that was taken of the first drafts of a round, of the second, and so on."""
        return [taken / put for taken, put in zip(self.accepted, self.drafted, strict=True)]

    def add(self, drafted: int, accepted: int, tokens: int, shadow_steps: int) -> None:
        """Count a round.

        Args:
            drafted: drafts that were put to the base.
            accepted: drafts that were taken.
            tokens: tokens that the round gave.
            shadow_steps: tokens that the shadow read.
        """
        self.rounds += 1
        self.tokens += tokens
        self.shadow_steps += shadow_steps
        missing = drafted - len(self.drafted)
        self.drafted += [0] * missing
        self.accepted += [0] * missing
        for position in range(drafted):
            self.drafted[position] += 1
            self.accepted[position] += position < accepted


@dataclass
class DraftedOutput(GenerateDecoderOnlyOutput):
    """What `generate(..., draft="shadow", return_dict_in_generate=True)` returns.

    Attributes:
        draft_report: how well drafting went.
    """

    draft_report: DraftReport | None = None
