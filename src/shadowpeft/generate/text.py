"""The text that grows, with what transformers asks of each token: processors, criteria, a streamer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    StoppingCriteriaList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation import EosTokenCriteria, SynthIDTextWatermarkLogitsProcessor

# They remember the tokens that they have seen, or ask the caller's function, which may.
_REMEMBER = (
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)


class Text:
    """One row of ids, and what is done with each id that is added.

    The processors see what they would see in plain decoding: every token once, in order. So those that keep a
    state of their own, such as the caller's, need not know of drafts.

    Args:
        ids_1T: the ids so far.
        processors: of the logits, as transformers prepared them.
        criteria: when to stop.
        streamer: is given each token.
        config: says which outputs are kept.

    Attributes:
        ids_1T: the ids so far; on the CPU, if only code that reads them anywhere is to see them.
        finished: whether a criterion is met.
        has_processors: whether scores are anything else than logits.
    """

    def __init__(
        self,
        ids_1T: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        streamer: Any,
        config: GenerationConfig,
    ) -> None:
        self.has_processors, self.finished = bool(processors), False
        # A criterion of the caller may compare them with tensors of its own.
        is_stock = not processors and all(_is_stock(part) for part in criteria)
        self.ids_1T, self._device = ids_1T.cpu() if is_stock else ids_1T, ids_1T.device
        self._criteria, self._streamer = criteria, streamer
        # Typed by transformers for a kind of tensor that torch does not have.
        self._processors: Any = processors
        self._for_drafts: Any = LogitsProcessorList(part for part in processors if _is_of_ids_alone(part))
        self._ends = [part.eos_token_id for part in criteria if isinstance(part, EosTokenCriteria)]
        self._max_length = config.max_length
        wants = config.return_dict_in_generate
        self.scores: tuple[Tensor, ...] | None = () if wants and config.output_scores else None
        self.logits: tuple[Tensor, ...] | None = () if wants and config.output_logits else None

    @property
    def room(self) -> int:
        """How many tokens may be added."""
        return int(self._max_length - self.ids_1T.shape[1])

    @property
    def sequences(self) -> Tensor:
        """The ids, where the caller had them."""
        return self.ids_1T.to(self._device)

    def is_end(self, token_11: Tensor) -> bool:
        """Return whether a token is known to end the text.

        One on a GPU is not looked at, because the host would have to wait for it.
        """
        if token_11.device.type != "cpu":
            return False
        return any(bool(torch.isin(token_11, ends.to(token_11.device)).any()) for ends in self._ends)

    def processed(self, logits_1V: Tensor) -> Tensor:
        """Return the scores of the next token, (1, V), in float32."""
        if not self.has_processors:
            return logits_1V.float()
        scores_1V: Tensor = self._processors(self.ids_1T, self._own(logits_1V))
        return scores_1V

    def processed_draft(self, drafts: Sequence[Tensor], logits_1V: Tensor) -> Tensor:
        """Return the shadow's scores of the token behind some drafts, each (1, 1).

        Any scores would do: what is drafted changes how many drafts are taken, not what is generated.
        """
        if not self._for_drafts:
            return logits_1V.float()
        ids_1T = torch.cat([self.ids_1T, *(draft.to(self.ids_1T.device) for draft in drafts)], dim=1)
        scores_1V: Tensor = self._for_drafts(ids_1T, self._own(logits_1V))
        return scores_1V

    def add(self, token_11: Tensor, scores_1V: Tensor, logits_1V: Tensor) -> None:
        """Add a token, and ask the criteria.

        Args:
            token_11: the token.
            scores_1V: the scores that it was taken from.
            logits_1V: the logits before they were processed.
        """
        if self.scores is not None:
            self.scores = (*self.scores, self._own(scores_1V))
        if self.logits is not None:
            self.logits = (*self.logits, self._own(logits_1V))
        self.ids_1T = torch.cat([self.ids_1T, token_11.to(self.ids_1T.device)], dim=1)
        self.finished = bool(self._criteria(self.ids_1T, self.scores).all())
        if self._streamer is not None:
            self._streamer.put(token_11[0].cpu())

    def end(self) -> None:
        """Tell the streamer that nothing follows."""
        if self._streamer is not None:
            self._streamer.end()

    def _own(self, logits_1V: Tensor) -> Tensor:
        # A copy: processors may write into it, it must not keep the logits of a whole prompt alive, and the
        # next replay of a CUDA graph writes over its outputs.
        return logits_1V.to(self._device, torch.float32, copy=True)


def _is_of_ids_alone(processor: LogitsProcessor) -> bool:
    """Return whether a processor's answer follows from ids and logits, so that drafts can be put to it."""
    return _is_stock(processor) and not isinstance(processor, _REMEMBER)


def _is_stock(part: object) -> bool:
    """Return whether a processor or a criterion is of transformers' own."""
    return type(part).__module__.startswith("transformers.")
