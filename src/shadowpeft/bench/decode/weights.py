"""One base for many methods: each gets modules of its own, and all share one set of weights.

PEFT changes modules in place, and merging changes weights. With modules of their own nothing has to be taken
off again, and eight billion weights are on the device once. Only what merges gets a copy of the weights.
"""

import copy

from transformers import PreTrainedModel


class SharedWeights:
    """A frozen base, of which there may be several.

    Args:
        base: the base; nothing of it is changed.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base.requires_grad_(False).eval()

    def lend(self) -> PreTrainedModel:
        """Return the base with modules of its own and these weights, which must not be written to."""
        held = (*self._base.parameters(), *self._base.buffers())
        return copy.deepcopy(self._base, {id(tensor): tensor for tensor in held})

    def copied(self) -> PreTrainedModel:
        """Return the base with weights of its own."""
        return copy.deepcopy(self._base)
