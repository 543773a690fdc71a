"""Examples to batches: several examples packed into one row, and rows padded to one length.

Shapes in names: B is the batch, T the tokens of its longest row.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shadowpeft.data.encode import NO_LOSS, Example


def pack(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Pack examples into few examples of at most `max_length` tokens, by best fit, the longest first.

    The first token of each has no loss, as it would be predicted from the example before it.

    Args:
        examples: None longer than `max_length`.
        max_length: The most tokens of a packed example.
    """
    packs: list[list[Example]] = []
    rooms: list[tuple[int, int]] = []  # tokens left and index of each pack, the fullest first
    for example in sorted(examples, key=lambda example: len(example["input_ids"]), reverse=True):
        length = len(example["input_ids"])
        fitting = bisect_left(rooms, (length, 0))
        if fitting == len(rooms):
            rooms.append((max_length, len(packs)))
            packs.append([])
        room, index = rooms.pop(fitting)
        packs[index].append(example)
        insort(rooms, (room - length, index))
    return [_join(together) for together in packs]


def _join(examples: Sequence[Example]) -> Example:
    return Example(
        input_ids=[token for example in examples for token in example["input_ids"]],
        labels=[label for example in examples for label in (NO_LOSS, *example["labels"][1:])],
        position_ids=[position for example in examples for position in range(len(example["input_ids"]))],
    )


@dataclass(frozen=True)
class Collator:
    """Collator of examples into a batch, padded on the right to the longest.

    transformers' `DataCollatorForSeq2Seq` pads on the side that the tokenizer uses for generation, and needs
    a padding token.

    Attributes:
        pad_token_id: Any id of the vocabulary, as padding is neither attended to nor learned.
        pad_to_multiple_of: Round the padded length up to a multiple of this many tokens.
        mask: Include an attention mask. Training a causal model needs none, since no token attends to the
            padding behind it; without one, attention can run as flash attention.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1
    mask: bool = True

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Map B examples to int64 tensors of the shape [B, T].

        These are `input_ids`, `labels`, and `position_ids` for packed examples or else, if wanted,
        `attention_mask`, which is 1 for the tokens of an example.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        width = -(-max(lengths) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padding = [width - length for length in lengths]
        rows: dict[str, list[list[int]]] = {
            "input_ids": [
                example["input_ids"] + [self.pad_token_id] * pad
                for example, pad in zip(examples, padding, strict=True)
            ],
            "labels": [
                example["labels"] + [NO_LOSS] * pad for example, pad in zip(examples, padding, strict=True)
            ],
        }
        # Packed examples have no mask: transformers separates documents by their positions only without one.
        # The padding counts as one more document.
        if "position_ids" in examples[0]:
            rows["position_ids"] = [
                [*example["position_ids"], *range(pad)]
                for example, pad in zip(examples, padding, strict=True)
            ]
        elif self.mask:
            rows["attention_mask"] = [
                [1] * length + [0] * pad for length, pad in zip(lengths, padding, strict=True)
            ]
        return {name: torch.tensor(values) for name, values in rows.items()}
