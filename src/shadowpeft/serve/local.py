"""The backend whose models run in this process."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.arch import versions
from shadowpeft.data.encode import Opening, encode_opening, encode_prompt
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id, stop_ids
from shadowpeft.decoder.joining import can_join
from shadowpeft.errors import DataError, UnsupportedModelError
from shadowpeft.generate.choose import Choice
from shadowpeft.model import ShadowedModel
from shadowpeft.serve.backend import Piece
from shadowpeft.serve.errors import RequestError
from shadowpeft.serve.protocol import Ask
from shadowpeft.serve.worker import Alone, Engine, Job, Together, Worker
from shadowpeft.serve.writing import Decoder, Ends, Vocabulary, Writing

# Characters of a prompt from which on it is encoded beside the event loop.
_LONG = 20_000


@dataclass(frozen=True)
class LocalModel:
    """A model that answers by a name.

    Attributes:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        limit: tokens that a prompt and its answer may have together; `None` for no limit.
        adapter: the adapter that it runs under; `None` for a stock model.
        drafts: arguments of `generate` that make the shadow draft, or none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    limit: int | None
    adapter: str | None = None
    drafts: Mapping[str, Any] | None = None


class LocalBackend:
    """Answers with models of this process, each in a thread of its own.

    Args:
        models: by their names, the default first.
        rows: texts that a model writes at once.
        max_tokens: the most tokens of an answer.
    """

    def __init__(self, models: Mapping[str, LocalModel], rows: int, max_tokens: int) -> None:
        self._lanes = {name: _Lane(name, model, rows, max_tokens) for name, model in models.items()}

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models."""
        return tuple(self._lanes)

    async def start(self) -> None:
        """Start the threads."""
        for lane in self._lanes.values():
            lane.worker.start()

    async def close(self) -> None:
        """Stop at the next token."""
        for lane in self._lanes.values():
            await lane.worker.close()

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Answer a request, as `Backend.answer`."""
        lane = self._lanes[ask.model or self.models[0]]
        if _length(ask) < _LONG:
            job = lane.job(ask)
        else:
            job = await asyncio.to_thread(lane.job, ask)
        lane.worker.submit(job)
        notes = lane.notes
        try:
            while True:
                item = await job.items.get()
                if isinstance(item, RequestError):
                    raise item
                yield replace(item, notes=notes)
                notes = {}
                if item.finish is not None:
                    return
        finally:
            lane.worker.cancel(job)


def batches(local: LocalModel) -> bool:
    """Return whether a model writes many texts at once.

    Not with drafts, of which rows would take different numbers; nor where the cache is more than a key and a
    value for each token, where the rotary factors depend on the longest row (Phi-3), and where the family is
    not known.
    """
    if local.drafts:
        return False
    try:
        arch.family_of(local.model if local.adapter is None else _base_of(local.model))
    except UnsupportedModelError:
        return False
    return arch.rope_switch_of(local.model.config) is None and can_join(_Model(local).new_cache())


class _Lane:
    """One model with its thread."""

    def __init__(self, name: str, local: LocalModel, rows: int, max_tokens: int) -> None:
        self._local, self._max_tokens = local, max_tokens
        self._ends = frozenset(stop_ids(local.model, local.tokenizer) or ())
        self._vocabulary = Vocabulary(local.tokenizer)
        self.notes = {} if local.adapter is None else {"adapter": local.adapter}
        engine: Engine
        if batches(local):
            engine = Together(_Model(local), local.model.device, rows)
        else:
            given: dict[str, Any] = {"pad_token_id": padding_id(local.tokenizer), **(local.drafts or {})}
            if local.adapter is not None:
                given["adapter"] = local.adapter
            engine = Alone(local.model, given)
        self.worker = Worker(name, engine)

    def job(self, ask: Ask) -> Job:
        """Make a job of a request.

        Raises:
            RequestError: the prompt cannot be encoded, or leaves no room for the answer.
        """
        try:
            ids, opening, begun = self._encoded(ask)
        except DataError as error:
            raise RequestError(str(error), param="messages" if ask.is_chat else "prompt") from error
        # Tokens of the answer are counted without what the template opens it with.
        most = self._most(ask, len(ids) + opening.length) + opening.length
        writing = Writing(
            prompt_tokens=len(ids),
            ends=Ends(self._ends, ask.stop, most),
            decoder=Decoder(self._local.tokenizer, begun),
            vocabulary=self._vocabulary,
            opening=opening,
            reads_tokens=ask.top is not None,
        )
        choice = Choice(ask.temperature, ask.top_p, ask.top, ask.seed)
        return Job(ids, choice, writing=writing, streams=ask.stream)

    def _encoded(self, ask: Ask) -> tuple[list[int], Opening, list[int]]:
        """Return the ids to start from, what opens the answer, and the ids of its given beginning."""
        tokenizer, opening = self._local.tokenizer, Opening()
        begun: list[int] = []
        if ask.begun:
            begun = tokenizer(ask.begun, add_special_tokens=False, verbose=False)["input_ids"]
        if isinstance(ask.prompt, tuple):
            return [*self._checked(ask.prompt), *begun], opening, begun
        row = Row({"prompt": ask.prompt}, "prompt")
        if ask.is_chat:
            row = Row({"messages": [dict(message) for message in ask.messages]}, "messages")
            opening = encode_opening(row, tokenizer)
        ids = encode_prompt(row, tokenizer)
        if begun and opening.length:
            ids += tokenizer(opening.text, add_special_tokens=False, verbose=False)["input_ids"]
            opening = Opening()
        return [*ids, *begun], opening, begun

    def _checked(self, ids: Sequence[int]) -> Sequence[int]:
        rows = arch.token_embedding_of(self._local.model).num_embeddings
        if max(ids) >= rows:
            raise RequestError(
                f"prompt has the token id {max(ids)}, and the model has {rows}", param="prompt"
            )
        return ids

    def _most(self, ask: Ask, read: int) -> int:
        """Return the most tokens of the answer."""
        if ask.max_tokens is not None and ask.max_tokens > self._max_tokens:
            raise RequestError(
                f"max_tokens may be {self._max_tokens} here, got {ask.max_tokens}", param="max_tokens"
            )
        room = self._max_tokens
        if self._local.limit is not None:
            room = min(room, self._local.limit - read)
        most = room if ask.max_tokens is None else ask.max_tokens
        if most > room or room < 1:
            wanted = "" if ask.max_tokens is None else f" and max_tokens={ask.max_tokens}"
            raise RequestError(
                f"the prompt has {read} tokens, which{wanted} does not fit into the model's "
                f"{self._local.limit}; shorten the prompt or lower max_tokens",
                param="messages" if ask.is_chat else "prompt",
                code="context_length_exceeded",
            )
        return most


class _Model:
    """A model as a batch reads it."""

    def __init__(self, local: LocalModel) -> None:
        self._model, self._adapter = local.model, local.adapter
        base = local.model if local.adapter is None else _base_of(local.model)
        self._takes_positions = arch.family_of(base).takes_positions

    def new_cache(self) -> Cache:
        """Return an empty cache."""
        if isinstance(self._model, ShadowedModel):
            return self._model.new_cache(self._adapter)
        return DynamicCache(config=self._model.config)

    def read(self, ids_BT: Tensor, mask_BS: Tensor, positions_BT: Tensor, cache: Cache) -> Tensor:
        """Read tokens behind those in the cache; return the logits behind the last ones, (B, V)."""
        given: dict[str, Any] = {versions.CACHE: cache}
        if self._adapter is not None:
            given["adapter"] = self._adapter
        if self._takes_positions or self._adapter is not None:
            given["position_ids"] = positions_BT
        out = self._model(input_ids=ids_BT, attention_mask=mask_BS, use_cache=True, logits_to_keep=1, **given)
        return out.logits[:, -1]


def _base_of(model: PreTrainedModel) -> PreTrainedModel:
    assert isinstance(model, ShadowedModel)
    return model._base()


def _length(ask: Ask) -> int:
    if ask.prompt is not None:
        return len(ask.prompt)
    return sum(len(message["content"]) for message in ask.messages)
