"""How a shadowed model drafts for itself: `generate(draft="shadow")` in the place of transformers' loop."""

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PretrainedConfig,
    StoppingCriteriaList,
)

from shadowpeft import arch, generate
from shadowpeft.arch import versions
from shadowpeft.decoder.cache import ShadowCache, StaticShadowCache, forget_past, keep_past, static_cache
from shadowpeft.errors import UserError
from shadowpeft.generate.pace import MOST, Auto, Fixed, Pace
from shadowpeft.generate.rules import Greedy, Rule, Sampled
from shadowpeft.model.draft_rows import DraftRows, draft_logits
from shadowpeft.model.static_steps import Runs, StaticSteps
from shadowpeft.shadow.adapter import Adapter

# How many tokens the base reads in a pass over a static cache, if draft_tokens is "auto".
MOST_STATIC = 8
# A round is one step if it has at most so many of the shadow's blocks, all of which are compiled.
MOST_UNROLLED = 32
# Arguments of `_sample` that no model takes.
_FOR_THE_LOOP = ("synced_gpus", "tokenizer", "assistant_tokenizer")


class _Shadowed(Runs, Protocol):
    """What is asked of a shadowed model."""

    config: PretrainedConfig

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def new_cache(self, adapter: str | None = None, max_length: int | None = None) -> ShadowCache: ...


class DraftingMixin:
    """The decoding method of drafts. Listed before `GenerationMixin`, which prepares all that it is given.

    transformers gives `_sample` the arguments that `_extract_generation_mode_kwargs` finds, and nothing to
    the model of them.
    """

    config: PretrainedConfig

    def _base(self) -> Any:
        raise NotImplementedError

    def _adapter(self, name: str | None) -> Adapter:
        raise NotImplementedError

    def cache_is_for(self, adapter: str | None) -> tuple[PretrainedConfig, PretrainedConfig, str] | None:
        """Return what a cache is for (`HFGenerationMixin`)."""
        raise NotImplementedError

    def _extract_generation_mode_kwargs(
        self, custom_generate: Any, kwargs: dict[str, Any], *args: Any
    ) -> Any:
        drafting = kwargs.pop("drafting", None)
        stock: Any = super()
        given = stock._extract_generation_mode_kwargs(custom_generate, kwargs, *args)
        if drafting is None:
            return given
        if custom_generate is not None:
            raise UserError('custom_generate is a loop of its own; leave it out, or draft="shadow"')
        return {**given, "drafting": drafting}

    def _validate_generation_mode(self, mode: Any, config: GenerationConfig, given: dict[str, Any]) -> None:
        if "drafting" in given:
            generate.refuse_mode(mode, config, given)
        stock: Any = super()
        stock._validate_generation_mode(mode, config, given)

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        drafting: generate.Drafting | None = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Any:
        if drafting is None:
            stock: Any = super()
            return stock._sample(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                streamer=streamer,
                **kwargs,
            )
        text = generate.Text(input_ids, logits_processor, stopping_criteria, streamer, generation_config)
        model_kwargs = {name: value for name, value in kwargs.items() if name not in _FOR_THE_LOOP}
        return self._draft(text, generation_config, drafting, model_kwargs)

    def _draft(
        self,
        text: generate.Text,
        config: GenerationConfig,
        drafting: generate.Drafting,
        model_kwargs: dict[str, Any],
    ) -> Any:
        """Decode as `generate.decode` does, from what transformers prepared for its own loop."""
        stock: Any = self
        name = model_kwargs["adapter"]
        tokens = drafting.tokens or MOST_STATIC
        model_kwargs[versions.CACHE] = self._roomy_cache(model_kwargs, tokens)
        configs = (self._base().config, self._adapter(name).shadow.backbone.config)
        generate.refuse_input(text, config.max_length, tokens, configs, model_kwargs)
        self._choose_rows(name, drafting, model_kwargs[versions.CACHE])
        rule: Rule = Sampled() if config.do_sample else Greedy()
        pace: Pace = Auto() if drafting.tokens is None else Fixed(drafting.tokens)

        outputs = stock._prefill(text.sequences, config, model_kwargs)
        logits_1V = outputs.logits[:, -1]
        model_kwargs = stock._update_model_kwargs_for_generation(outputs, model_kwargs)
        del outputs
        at_once = isinstance(rule, Greedy) and isinstance(pace, Fixed) and not text.has_processors
        steps, past = self._start(name, tokens, at_once, config, model_kwargs)
        # Not before the prompt was read, all of whose keys it would keep.
        changed = keep_past(past.cache)
        try:
            generate.first(text, logits_1V, rule)
            past, report = generate.decode(steps, text, past, rule=rule, pace=pace)
        finally:
            forget_past(changed)
        text.end()
        if not config.return_dict_in_generate:
            return text.sequences
        kept: dict[str, Any] = {"sequences": text.sequences, "scores": text.scores, "logits": text.logits}
        kept[versions.CACHE] = past.cache
        return generate.DraftedOutput(**kept, draft_report=report)

    def _roomy_cache(self, model_kwargs: dict[str, Any], tokens: int) -> ShadowCache:
        """Return the cache, or one with room for passes over so many tokens in the place of a static one.

        A cache that the caller made stays.
        """
        cache: ShadowCache = model_kwargs[versions.CACHE]
        if cache._is_user_defined or not isinstance(cache, StaticShadowCache):
            return cache
        made_for = self.cache_is_for(model_kwargs["adapter"])
        assert made_for is not None
        # As much for every usual number, so that the shadow's step is compiled once for all.
        return static_cache(*made_for, cache.max_length + max(tokens, MOST), slides=False)

    def _choose_rows(self, name: str, drafting: generate.Drafting, cache: ShadowCache) -> None:
        """Give the cache the rows that the drafts over it are read from.

        Raises:
            UserError: a draft vocabulary is asked for, and the adapter has none.
        """
        ids_N = self._adapter(name).draft_vocabulary
        if drafting.vocabulary and ids_N is None:
            raise UserError(
                f"adapter {name!r} has no draft vocabulary; give it one (model.set_draft_vocabulary, or "
                "train with draft_vocabulary), or leave draft_vocabulary out"
            )
        if ids_N is None or drafting.vocabulary is False:
            cache.draft_rows = None
        elif cache.draft_rows is None or not torch.equal(cache.draft_rows.ids_N.cpu(), ids_N):
            cache.draft_rows = DraftRows(self._base(), ids_N)

    def _start(
        self, name: str, tokens: int, at_once: bool, config: GenerationConfig, model_kwargs: dict[str, Any]
    ) -> tuple[generate.Steps, generate.Past]:
        """Return the steps, and what lies behind the first of them, after the prompt was read.

        Args:
            name: of the adapter.
            tokens: how many tokens the base reads in a pass.
            at_once: nothing decides on a draft but its logits, so that a round can be one step.
            config: of the generation.
            model_kwargs: what transformers prepared for the model.
        """
        stock: Any = self
        positions_1T, mask_1T = model_kwargs["position_ids"], model_kwargs["attention_mask"]
        if mask_1T is not None:
            mask_1T = mask_1T.to(stock.device)
        cache, position = model_kwargs[versions.CACHE], int(positions_1T[0, -1])
        past = generate.Past(cache, int(cache.get_seq_length()), position, mask_1T, stock.device)
        if not isinstance(cache, StaticShadowCache):
            return _Steps(stock, name, positions_1T.to(stock.device), cache.draft_rows), past
        compile_config = None
        if stock._valid_auto_compile_criteria(model_kwargs, config):
            compile_config = config.compile_config or stock._default_compile_config()
        # What is not compiled gains nothing by it.
        at_once = at_once and compile_config is not None and tokens * cache.shadow_blocks <= MOST_UNROLLED
        steps = StaticSteps(
            stock, name, cache, mask_1T, tokens=tokens, at_once=at_once, compile_config=compile_config
        )
        # Its steps have a mask of their own.
        return steps, past._replace(mask_1T=None)


class _Steps:
    """One adapter's steps of shadow and base, for `generate.decode`.

    Args:
        model: the model; nothing is kept on it.
        name: the name of the adapter.
        prompt_positions_1T: positions of the prompt and of the token behind it.
        rows: of the draft vocabulary, if there is one.
    """

    def __init__(
        self, model: _Shadowed, name: str, prompt_positions_1T: Tensor, rows: DraftRows | None
    ) -> None:
        self._model, self._name, self._rows = model, name, rows
        self._adapter = model._adapter(name)
        self._switch = arch.rope_switch_of(model.config)
        self._positions_1T = prompt_positions_1T

    def shadow(self, token_11: Tensor, past: generate.Past, ahead: int) -> Tensor:
        """Let the shadow read a token that is `ahead` behind the next one; return its s^(0), (1, 1, D)."""
        return self._adapter.shadow(
            token_11,
            None,
            past.mask(ahead + 1),
            position_ids=past.positions(ahead, 1),
            shadow_cache=past.cache.shadow,
        )

    def head(self, s_11D: Tensor) -> Tensor:
        """Return the shadow's logits, (1, V)."""
        return draft_logits(self._model._base(), self._rows, self._adapter.for_drafts(s_11D))

    def base(self, ids_1T: Tensor, s_1TD: Tensor, past: generate.Past) -> Tensor:
        """Let the base read tokens whose s^(0) are known; return its logits, (1, T, V)."""
        tokens = ids_1T.shape[1]
        inputs = {
            "input_ids": ids_1T,
            "attention_mask": past.mask(tokens),
            "position_ids": past.positions(0, tokens),
        }
        out = self._model._run_base(self._adapter, inputs, s_1TD, past.cache, {})
        return arch.logits(self._model._base(), out.last_hidden_state)

    def round(self, token_11: Tensor, past: generate.Past, tokens: int) -> None:
        """Return `None`: the steps are taken one by one."""

    def room(self, past: generate.Past) -> int | None:
        """Return how many tokens one pass may read: those that the rotary factors of the next one serve."""
        if self._switch is None or past.position >= self._switch:
            return None
        return self._switch - past.position

    def renew(self, text: generate.Text, past: generate.Past) -> generate.Past:
        """Return `past`, or one whose keys are computed anew where the rotary factors change (Phi-3)."""
        length = text.ids_1T.shape[1]
        if self._switch is None or not past.cache.get_seq_length() <= self._switch < length:
            return past
        cache = self._model.new_cache(self._name)
        keep_past(cache)
        behind = past.position - int(self._positions_1T[0, -1])
        last = self._positions_1T[:, -1:] + torch.arange(1, behind + 1, device=self._positions_1T.device)
        positions_1T = torch.cat([self._positions_1T, last], dim=1)[:, -length:]
        # With the token that is read next, whose position decides on the factors.
        self._model(
            text.ids_1T.to(positions_1T.device),
            attention_mask=past.mask_1T,
            position_ids=positions_1T,
            use_cache=True,
            logits_to_keep=1,
            adapter=self._name,
            **{versions.CACHE: cache},
        )
        cache.crop_to(length - 1)
        return past._replace(cache=cache)
