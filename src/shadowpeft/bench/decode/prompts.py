"""What is continued: random tokens, or the texts of a file up to where the attached model ends them.

B rows, T tokens of the prompt, N new tokens.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shadowpeft.bench.decode.settings import LEAST_NEW
from shadowpeft.data.rows import read_rows
from shadowpeft.errors import DataError
from shadowpeft.evaluation.answers import encode_prompts


@dataclass(frozen=True)
class Prompt:
    """A prompt, and how many tokens every method writes behind it.

    Attributes:
        ids_BT: its token ids.
        new_tokens: N.
    """

    ids_BT: Tensor
    new_tokens: int

    @property
    def room(self) -> int:
        """The tokens of the whole text."""
        return self.ids_BT.shape[1] + self.new_tokens


def random_prompt(
    vocabulary: int, batch: int, context: int, new_tokens: int, seed: int, device: torch.device
) -> Prompt:
    """Draw a prompt."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(3, vocabulary, (batch, context), generator=generator)
    return Prompt(ids_BT.to(device), new_tokens)


def read_prompts(
    data: str, split: str, count: int, tokenizer: PreTrainedTokenizerBase, limit: int | None, new_tokens: int
) -> list[Tensor]:
    """Return the ids of the first prompts of a file, (1, T) each.

    Raises:
        DataError: the file cannot be read, or a prompt is too long.
    """
    rows = read_rows(data, split)[:count]
    return [torch.tensor([ids]) for ids in encode_prompts(rows, tokenizer, limit, new_tokens)]


def up_to_their_ends(model: Any, texts_1T: Sequence[Tensor], new_tokens: int) -> list[Prompt]:
    """Let a model end each text, so that no method has to write on behind an end.

    The longest comes first: a static cache that is made for it does for all.

    Args:
        model: the attached model.
        texts_1T: the prompts.
        new_tokens: the most tokens of a text.

    Raises:
        DataError: every text is too short to be timed.
    """
    found = []
    for ids_1T in texts_1T:
        ids_1T = ids_1T.to(model.device)
        out_1T = model.generate(
            input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), do_sample=False,
            max_new_tokens=new_tokens,
        )  # fmt: skip
        written = out_1T.shape[1] - ids_1T.shape[1]
        # Without the end itself, which `min_new_tokens` would not let anyone write.
        found.append(Prompt(ids_1T, written if written == new_tokens else written - 1))
    kept = [prompt for prompt in found if prompt.new_tokens >= LEAST_NEW]
    if not kept:
        raise DataError(
            f"the attached model ends each of the {len(found)} texts before {LEAST_NEW} tokens, which is too "
            "short to be timed; give data with longer answers"
        )
    return sorted(kept, key=lambda prompt: prompt.room, reverse=True)


def facts_of(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return what rows say of the prompts: rows, and tokens on average."""
    return {
        "batch": prompts[0].ids_BT.shape[0],
        "context": round(statistics.mean(prompt.ids_BT.shape[1] for prompt in prompts)),
        "new_tokens": round(statistics.mean(prompt.new_tokens for prompt in prompts)),
        "texts": len(prompts),
    }
