"""The rounds: the shadow drafts, and one pass of the base alone verifies.

s^(0) depends on tokens alone. So drafting a token leaves behind its keys and values in the shadow's half of
the cache and its s^(0), and the base needs no more to read it. What is rejected is cropped from both halves.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shadowpeft.decoder.cache import ShadowCache
from shadowpeft.generate.pace import Pace
from shadowpeft.generate.report import DraftReport
from shadowpeft.generate.rules import Draft, Rule
from shadowpeft.generate.text import Text


class Past(NamedTuple):
    """What lies behind the token that is read next.

    Attributes:
        cache: the keys and values of all tokens before it, in both halves.
        length: how many tokens those are, with padding. The host knows, and need not ask the cache.
        position: its position.
        mask_1T: 1 for tokens and 0 for padding, up to and with it; `None` without padding.
        device: where the model reads ids.
    """

    cache: ShadowCache
    length: int
    position: int
    mask_1T: Tensor | None
    device: torch.device

    def mask(self, tokens: int) -> Tensor | None:
        """Return the mask with `tokens` tokens from this one on."""
        return None if self.mask_1T is None else F.pad(self.mask_1T, (0, tokens - 1), value=1)

    def positions(self, first: int, tokens: int) -> Tensor:
        """Return the positions of `tokens` tokens, (1, tokens), the first of which is `first` behind this."""
        first += self.position
        return torch.arange(first, first + tokens, device=self.device)[None]

    def moved(self, tokens: int) -> "Past":
        """Return what lies behind the token `tokens` further on."""
        return self._replace(
            length=self.length + tokens, position=self.position + tokens, mask_1T=self.mask(tokens + 1)
        )


class Steps(Protocol):
    """What is asked of a model."""

    def shadow(self, token_11: Tensor, past: Past, ahead: int) -> Tensor:
        """Let the shadow read a token that is `ahead` behind the next one; return its s^(0), (1, 1, D)."""
        ...

    def head(self, s_11D: Tensor) -> Tensor:
        """Return the shadow's logits, (1, V)."""
        ...

    def base(self, ids_1T: Tensor, s_1TD: Tensor, past: Past) -> Tensor:
        """Let the base read tokens whose s^(0) are known; return its logits, (1, T, V)."""
        ...

    def round(self, token_11: Tensor, past: Past, tokens: int) -> tuple[Tensor, Tensor] | None:
        """Draft greedily behind a token, and let the base read the drafts, all in one step.

        Args:
            token_11: the token that is read next.
            past: what lies behind it.
            tokens: how many of the tokens that the base reads count, T.

        Returns:
            The ids that the shadow read, at least T, and the base's logits, (1, T, V); `None` if the steps
            are taken one by one.
        """
        ...

    def room(self, past: Past) -> int | None:
        """Return how many tokens one pass may read, `None` for no limit."""
        ...

    def renew(self, text: Text, past: Past) -> Past:
        """Return `past`, or where its cache has become void one that was computed anew."""
        ...


def first(text: Text, logits_1V: Tensor, rule: Rule) -> None:
    """Add the token that the prompt's pass gives.

    Args:
        text: the prompt.
        logits_1V: the logits behind it.
        rule: how a token is chosen.
    """
    scores_1V = text.processed(logits_1V)
    text.add(rule.answer(scores_1V, None)[0], scores_1V, logits_1V)


def decode(steps: Steps, text: Text, past: Past, rule: Rule, pace: Pace) -> tuple[Past, DraftReport]:
    """Add tokens until a criterion is met.

    Args:
        steps: the model.
        text: its last token is not in the cache yet.
        past: what lies behind that token.
        rule: how a token is chosen.
        pace: how long a draft is.

    Returns:
        What lies behind the last token, and how well drafting went.
    """
    report = DraftReport()
    while not text.finished:
        past = steps.renew(text, past)
        before = text.ids_1T.shape[1]
        with _only_what_stays(past, text):
            started = time.perf_counter()
            logits_1TV, drafts, read, drafting = _draft_and_read(steps, text, past, rule=rule, pace=pace)
            accepted, tested = _verify(logits_1TV, text, drafts, rule)
            verifying = time.perf_counter() - started - drafting
        tokens = text.ids_1T.shape[1] - before
        past = past.moved(tokens)
        report.add(tested, accepted, tokens, shadow_steps=read)
        pace.note(read, tested, accepted, tokens, seconds=(drafting, verifying))
    return past, report


def _draft_and_read(
    steps: Steps, text: Text, past: Past, rule: Rule, pace: Pace
) -> tuple[Tensor, list[Draft], int, float]:
    """Draft behind the last token, and let the base read it with the drafts.

    Returns:
        The base's logits, (1, T, V), the drafts, the number of tokens that the shadow read, and the seconds
        of drafting.
    """
    started = time.perf_counter()
    most, room = min(text.room, pace.start()), steps.room(past)
    if room is not None:
        most = min(most, room)
    token_11 = text.ids_1T[:, -1:].to(past.device)
    at_once = steps.round(token_11, past, most)
    if at_once is not None:
        ids_1K, logits_1TV = at_once
        drafts = [Draft(id_1[:, None], None) for id_1 in ids_1K[:, 1:most].unbind(1)]
        return logits_1TV, drafts, ids_1K.shape[1], 0.0
    ids, states, drafts = _draft(steps, token_11, text, past, most=most, rule=rule, pace=pace)
    drafting = time.perf_counter() - started
    return steps.base(torch.cat(ids, 1), torch.cat(states, 1), past), drafts, len(ids), drafting


def _draft(
    steps: Steps, token_11: Tensor, text: Text, past: Past, most: int, rule: Rule, pace: Pace
) -> tuple[list[Tensor], list[Tensor], list[Draft]]:
    """Let the shadow read the last token and its own drafts behind it, up to `most` in all.

    Returns:
        The ids that were read, (1, 1) each, the s^(0) of each, and the drafts among the ids.
    """
    ids = [token_11]
    states: list[Tensor] = []
    drafts: list[Draft] = []
    while True:
        states.append(steps.shadow(ids[-1], past, ahead=len(states)))
        # An end that was drafted is put to the base like any other draft, and nothing behind it.
        if len(ids) >= most or (drafts and text.is_end(ids[-1])):
            return ids, states, drafts
        scores_1V = text.processed_draft(ids[1:], steps.head(states[-1]))
        # Asked before a draft is drawn: one that is dropped for what it is would change what is sampled.
        if not pace.goes_on(scores_1V):
            return ids, states, drafts
        drafts.append(rule.draft(scores_1V))
        ids.append(drafts[-1].token_11.to(past.device))


def _verify(logits_1TV: Tensor, text: Text, drafts: list[Draft], rule: Rule) -> tuple[int, int]:
    """Add the tokens that the base gives, up to the first that is not the draft.

    Returns:
        How many drafts were taken, and how many were looked at.
    """
    accepted = 0
    answers = _answers(logits_1TV, text, drafts, rule)
    for logits_1V, draft, (scores_1V, token_11, is_draft) in zip(
        logits_1TV.unbind(1), [*drafts, None], answers, strict=False
    ):
        text.add(token_11, scores_1V, logits_1V)
        if not is_draft:
            return accepted, accepted + (draft is not None)
        accepted += 1
        if text.finished:
            break
    return accepted, accepted


def _answers(
    logits_1TV: Tensor, text: Text, drafts: list[Draft], rule: Rule
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Return the scores of each place, the token that is taken there, and whether it is the draft.

    Each is asked for when the tokens before it are in the text, as the processors need it. Without them all
    are known at once, and the host waits for the device once.
    """
    if not text.has_processors:
        for scores_1V, answer in zip(
            logits_1TV.unbind(1), rule.answers(logits_1TV.float(), drafts), strict=True
        ):
            yield scores_1V, *answer
        return
    for logits_1V, draft in zip(logits_1TV.unbind(1), [*drafts, None], strict=True):
        scores_1V = text.processed(logits_1V)
        yield scores_1V, *rule.answer(scores_1V, draft)


@contextmanager
def _only_what_stays(past: Past, text: Text) -> Iterator[None]:
    """Leave in the cache the tokens that the text has, but the last; also if the caller's streamer raises."""
    before = text.ids_1T.shape[1]
    try:
        yield
    finally:
        past.cache.crop_to(past.length + text.ids_1T.shape[1] - before)
