"""What is taken from a distribution, and which drafts are: greedily, or by sampling."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Draft(NamedTuple):
    """A token that the shadow proposes.

    Attributes:
        token_11: the token.
        probabilities_1V: what it was drawn from; `None` where it is the likeliest.
    """

    token_11: Tensor
    probabilities_1V: Tensor | None


class Rule(Protocol):
    """How a token is chosen."""

    def draft(self, scores_1V: Tensor) -> Draft:
        """Choose a draft from the shadow's scores."""
        ...

    def answer(self, scores_1V: Tensor, draft: Draft | None) -> tuple[Tensor, bool]:
        """Return the token that follows, (1, 1), and whether it is the draft."""
        ...

    def answers(self, scores_1TV: Tensor, drafts: Sequence[Draft]) -> Iterator[tuple[Tensor, bool]]:
        """Return the answer to each draft, and to none behind the last."""
        ...


class Greedy:
    """The likeliest token: a draft is taken if it is that."""

    def draft(self, scores_1V: Tensor) -> Draft:
        """Choose the likeliest."""
        return Draft(scores_1V.argmax(-1, keepdim=True), None)

    def answer(self, scores_1V: Tensor, draft: Draft | None) -> tuple[Tensor, bool]:
        """Return the likeliest token, and whether it is the draft."""
        token_11 = scores_1V.argmax(-1, keepdim=True)
        return token_11, draft is not None and bool(token_11 == draft.token_11.to(token_11.device))

    def answers(self, scores_1TV: Tensor, drafts: Sequence[Draft]) -> Iterator[tuple[Tensor, bool]]:
        """Return the answers, which are read from the device together."""
        tokens_1T = scores_1TV.argmax(-1)
        drafted = [draft.token_11.to(tokens_1T.device) for draft in drafts]
        read_1T = torch.cat([tokens_1T, *drafted], dim=1).cpu()
        tokens_1T, drafts_1T = read_1T.split([len(drafts) + 1, len(drafts)], dim=1)
        is_draft = (tokens_1T[:, :-1] == drafts_1T).tolist()[0]
        yield from zip(tokens_1T.split(1, dim=1), [*is_draft, False], strict=True)


class Sampled:
    """A token drawn from the base's distribution p, by way of a draft from the shadow's q.

    The draft x is taken with probability min(1, p(x) / q(x)). Otherwise the token is drawn from the residual
    max(0, p - q), normalised. Both ways together give p (arXiv 2211.17192, algorithm 1).
    """

    def draft(self, scores_1V: Tensor) -> Draft:
        """Draw from q."""
        q_1V = scores_1V.softmax(-1)
        return Draft(torch.multinomial(q_1V, 1), q_1V)

    def answer(self, scores_1V: Tensor, draft: Draft | None) -> tuple[Tensor, bool]:
        """Return a token that is distributed as p, and whether it is the draft."""
        p_1V = scores_1V.softmax(-1)
        if draft is None:
            return torch.multinomial(p_1V, 1), False
        assert draft.probabilities_1V is not None
        q_1V, token_11 = (part.to(p_1V.device) for part in (draft.probabilities_1V, draft.token_11))
        p, q = p_1V.gather(1, token_11), q_1V.gather(1, token_11)
        if bool(torch.rand_like(p) * q < p):
            return token_11, True
        residual_1V = (p_1V - q_1V).clamp(min=0)
        # Nothing is left where p and q differ by rounding alone, and then either will do.
        if not bool(residual_1V.any()):
            residual_1V = p_1V
        return torch.multinomial(residual_1V, 1), False

    def answers(self, scores_1TV: Tensor, drafts: Sequence[Draft]) -> Iterator[tuple[Tensor, bool]]:
        """Return the answers one by one: a draft is not judged before those in front of it are taken."""
        for scores_1V, draft in zip(scores_1TV.unbind(1), [*drafts, None], strict=True):
            yield self.answer(scores_1V, draft)
