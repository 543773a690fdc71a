"""What tests of drafting share: families, drafts that are known beforehand, a test of distributions."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shadowpeft import ShadowedModel
from shadowpeft.generate import Past
from shadowpeft.model import drafting, static_steps

GREEDY: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
PROMPT = 9

# A frame by argument and by context, sliding windows in both halves and in one, learned positions.
FEW = [
    ("llama", "paper"),
    ("bloom", "normed"),
    ("mistral", "normed"),
    ("gemma3_text", "normed"),
    ("gpt2", "peft"),
]


def plain(model: ShadowedModel, ids: Tensor, **settings: Any) -> Any:
    """Decode without drafts."""
    return model.generate(ids, **{**GREEDY, "return_dict_in_generate": True, **settings})


def draft_from(patch: pytest.MonkeyPatch, text: Tensor, wrong: Sequence[int]) -> None:
    """Make every shadow draft what stands in a text, so that it is known what the base takes.

    Shadow and base read the drafts as ever.

    Args:
        patch: undoes it.
        text: the ids of prompt and answer, (1, T), where a token's position is its place.
        wrong: the places that get another token.
    """

    words_T = text[0].clone()
    for place in wrong:
        if place < len(words_T):
            words_T[place] += 1
    next_11 = torch.zeros(1, 1, dtype=torch.long)

    def known(logits_1V: Tensor) -> Tensor:
        word_1 = words_T[next_11.clamp(max=len(words_T) - 1)][0] % logits_1V.shape[1]
        # Behind the end of the text nothing is known.
        return 50.0 * F.one_hot(word_1 * (next_11[0] < len(words_T)), logits_1V.shape[1])

    # Steps one by one.
    class Known(drafting._Steps):
        def shadow(self, token_11: Tensor, past: Past, ahead: int) -> Tensor:
            next_11.fill_(past.position + ahead + 1)
            return super().shadow(token_11, past, ahead)

        def head(self, s_11D: Tensor) -> Tensor:
            return known(super().head(s_11D))

    patch.setattr(drafting, "_Steps", Known)
    # Steps over a static cache, which may be compiled: so the place is a tensor.
    shadow_step, head_step = static_steps._shadow_step, static_steps._head_step

    def shadow(network: Any, token_11: Tensor, position_11: Tensor, *given: Any) -> Tensor:
        next_11.copy_(position_11 + 1)
        return shadow_step(network, token_11, position_11, *given)

    def head(*given: Any) -> Tensor:
        return known(head_step(*given))

    patch.setattr(static_steps, "_shadow_step", shadow)
    patch.setattr(static_steps, "_head_step", head)


def drafted(model: ShadowedModel, ids: Tensor, tokens: int | str = 4, **settings: Any) -> Any:
    """Generate greedily with drafts; return all outputs."""
    # Given, because transformers takes the mask from the ids where one of them is the padding's.
    mask = torch.ones_like(ids)
    settings = {**GREEDY, "attention_mask": mask, "return_dict_in_generate": True, **settings}
    return model.generate(ids, draft="shadow", draft_tokens=tokens, **settings)


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Return how likely counts at least so far from what is expected are (Pearson's chi-square test).

    Cells in which fewer than five are expected are taken together.
    """
    rare = expected < 5
    pairs = torch.stack([counts.double(), expected.double()])
    pooled = torch.cat([pairs[:, ~rare], pairs[:, rare].sum(1, keepdim=True)], dim=1)
    pooled = pooled[:, pooled[1] > 0]
    statistic = ((pooled[0] - pooled[1]) ** 2 / pooled[1]).sum()
    freedom = torch.tensor(pooled.shape[1] - 1.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))
