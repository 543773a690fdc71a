"""The steps of drafting over a static cache: each has one shape, so that it can be compiled once."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, CompileConfig, PreTrainedModel

from shadowpeft import arch, generate
from shadowpeft.decoder.cache import ShadowCache, StaticShadowCache
from shadowpeft.model.draft_rows import DraftRows, draft_logits
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.shadow.network import Shadow


class Runs(Protocol):
    """What is asked of a shadowed model."""

    def _base(self) -> PreTrainedModel: ...
    def _adapter(self, name: str | None) -> Adapter: ...
    def _run_base(
        self,
        adapter: Adapter,
        inputs: dict[str, Tensor | None],
        state_BTD: Tensor,
        cache: ShadowCache | None,
        kwargs: dict[str, Any],
    ) -> Any: ...


class StaticSteps:
    """One adapter's steps of shadow and base over a static cache, for `generate.decode`.

    One by one, the shadow reads one token and the base K; where there are fewer, the last of them is
    repeated. At once, a round is one step, in which both read K. What either leaves in the cache beyond what
    is taken is cropped with the drafts that are rejected. No step waits for the device.

    Args:
        model: the model; nothing is kept on it.
        name: the name of the adapter.
        cache: has room for K - 1 tokens behind the last one of the text.
        mask_1T: 1 for tokens and 0 for padding, of the prompt; `None` without padding.
        tokens: K.
        at_once: drafting and reading are one step, which takes the likeliest drafts.
        compile_config: how to compile the steps; `None` to run them as they are.
    """

    def __init__(
        self,
        model: Runs,
        name: str,
        cache: StaticShadowCache,
        mask_1T: Tensor | None,
        tokens: int,
        at_once: bool,
        compile_config: CompileConfig | None,
    ) -> None:
        self._model, self._adapter, self._tokens = model, model._adapter(name), tokens
        self._at_once = at_once
        self._rows: DraftRows | None = cache.draft_rows
        device = arch.token_embedding_of(model._base()).weight.device
        if mask_1T is None:
            mask_1T = torch.ones(1, 0, dtype=torch.long, device=device)
        # Of all the room there is, so that it never changes: causality hides what lies behind the last token.
        self._mask_1R = F.pad(mask_1T, (0, cache.max_length - mask_1T.shape[1]), value=1)
        self._shadow_step = _compiled(_shadow_step, compile_config)
        self._head_step = _compiled(_head_step, compile_config)
        self._base_step = _compiled(_base_step, compile_config)
        self._round_step = _compiled(_round_step, compile_config)

    def shadow(self, token_11: Tensor, past: generate.Past, ahead: int) -> Tensor:
        """Let the shadow read a token that is `ahead` behind the next one; return its s^(0), (1, 1, D)."""
        # The same strides, wherever it was cut out: others would be compiled anew.
        token_11 = token_11.flatten()[None]
        s_11D = self._shadow_step(
            self._adapter.shadow, token_11, past.positions(ahead, 1), self._mask_1R, past.cache.shadow
        )
        # The next replay of the graph writes over it.
        return s_11D.clone()

    def head(self, s_11D: Tensor) -> Tensor:
        """Return the shadow's logits, (1, V); the next call writes over them."""
        return self._head_step(self._model._base(), self._adapter, self._rows, s_11D)

    def base(self, ids_1T: Tensor, s_1TD: Tensor, past: generate.Past) -> Tensor:
        """Let the base read tokens whose s^(0) are known.

        Returns:
            Its logits, (1, T, V); the next call writes over them.
        """
        tokens = ids_1T.shape[1]
        positions_1T = past.positions(0, tokens)
        inputs = (_repeat_last(part, self._tokens) for part in (ids_1T, s_1TD, positions_1T))
        logits_1KV = self._base_step(self._model, self._adapter, *inputs, self._mask_1R, past.cache)
        return logits_1KV[:, :tokens]

    def round(self, token_11: Tensor, past: generate.Past, tokens: int) -> tuple[Tensor, Tensor] | None:
        """Draft greedily, and let the base read the drafts, in one step of K tokens.

        Returns:
            The ids, (1, K), and the base's logits of the first T, (1, T, V), all of which the next call
            writes over; `None` if the steps are taken one by one.
        """
        if not self._at_once:
            return None
        # Where fewer are wanted, the positions of those behind them may not exist.
        positions_1K = past.positions(0, self._tokens).clamp(max=past.position + tokens - 1)
        ids_1K, logits_1KV = self._round_step(
            self._model, self._adapter, self._rows, token_11.flatten()[None], positions_1K, self._mask_1R,
            past.cache,
        )  # fmt: skip
        return ids_1K, logits_1KV[:, :tokens]

    def room(self, past: generate.Past) -> int | None:
        """Return how many tokens one pass may read."""
        return self._tokens

    def renew(self, text: generate.Text, past: generate.Past) -> generate.Past:
        """Return `past`: models whose rotary factors change within the text are refused."""
        return past


def _shadow_step(
    shadow: Shadow, token_11: Tensor, position_11: Tensor, mask_1R: Tensor, cache: Cache
) -> Tensor:
    return shadow(token_11, None, mask_1R, position_ids=position_11, shadow_cache=cache)


def _head_step(base: PreTrainedModel, adapter: Adapter, rows: DraftRows | None, s_11D: Tensor) -> Tensor:
    return draft_logits(base, rows, adapter.for_drafts(s_11D))


def _base_step(
    model: Runs,
    adapter: Adapter,
    ids_1K: Tensor,
    s_1KD: Tensor,
    positions_1K: Tensor,
    mask_1R: Tensor,
    cache: StaticShadowCache,
) -> Tensor:
    inputs: dict[str, Tensor | None] = {
        "input_ids": ids_1K, "attention_mask": mask_1R, "position_ids": positions_1K
    }  # fmt: skip
    out = model._run_base(adapter, inputs, s_1KD, cache, {})
    return arch.logits(model._base(), out.last_hidden_state)


def _round_step(
    model: Runs,
    adapter: Adapter,
    rows: DraftRows | None,
    token_11: Tensor,
    positions_1K: Tensor,
    mask_1R: Tensor,
    cache: StaticShadowCache,
) -> tuple[Tensor, Tensor]:
    """Take all steps of a round; nothing but the drafts passes from one to the next."""
    ids: list[Tensor] = [token_11]
    states: list[Tensor] = []
    for position_11 in positions_1K.split(1, dim=1):
        if states:
            logits_1V = _head_step(model._base(), adapter, rows, states[-1])
            ids.append(logits_1V.float().argmax(-1, keepdim=True))
        states.append(_shadow_step(adapter.shadow, ids[-1], position_11, mask_1R, cache.shadow))
    ids_1K, s_1KD = torch.cat(ids, 1), torch.cat(states, 1)
    return ids_1K, _base_step(model, adapter, ids_1K, s_1KD, positions_1K, mask_1R, cache)


def _repeat_last(values_1T: Tensor, tokens: int) -> Tensor:
    """Repeat the last value, up to `tokens` values."""
    missing = tokens - values_1T.shape[1]
    # Not the next positions, which may not exist.
    return torch.cat([values_1T, *[values_1T[:, -1:]] * missing], dim=1) if missing else values_1T


def _compiled(step: Callable[..., Any], config: CompileConfig | None) -> Callable[..., Any]:
    """Return a step as torch compiles it: once for each model, adapter and shape, in a process."""
    if config is None:
        return step
    settings = config.to_dict()
    if settings["dynamic"] is None:
        # Another K, or another cache, is another shape, and none of them is worth a slower step for all.
        settings["dynamic"] = False
    compiled = torch.compile(step, **settings)
    if settings["backend"] != "inductor":
        return compiled

    def run(*args: Any) -> Any:
        # Each step is a CUDA graph of its own, whatever ran before it.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*args)

    return run
