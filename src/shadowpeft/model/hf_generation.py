"""What transformers' `generate` asks of a model, for two decoders: a cache, the inputs of a step, masks."""

from functools import partial
from typing import Any, NoReturn

import torch.nn.functional as F
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from shadowpeft import arch
from shadowpeft.arch import versions
from shadowpeft.decoder.cache import ShadowCache, StaticShadowCache, dynamic_cache, static_cache
from shadowpeft.errors import UserError

_DYNAMIC = (None, "dynamic", "dynamic_full")
_STATIC = ("static", "hybrid", "sliding_window", "hybrid_chunked")


class HFGenerationMixin:
    """transformers' own generation, with one cache for base and shadow. Listed before `GenerationMixin`."""

    config: PretrainedConfig
    # transformers' own name. A later static cache is never shorter, so that a compiled step fits it too.
    _previous_max_cache_length: int = 0

    def _base(self) -> PreTrainedModel:
        raise NotImplementedError

    def cache_is_for(self, adapter: str | None) -> tuple[PretrainedConfig, PretrainedConfig, str] | None:
        """Return the configurations of base and shadow, and the adapter; `None` where the base runs bare."""
        raise NotImplementedError

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        made_for = self.cache_is_for(model_kwargs.get("adapter"))
        given = model_kwargs.get(versions.CACHE)
        if made_for is None or generation_config.use_cache is False:
            super()._prepare_cache_for_generation(  # type: ignore[misc]
                generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
            )
        elif given is not None:
            if generation_config.cache_implementation is not None:
                raise UserError("give either a cache or cache_implementation, not both")
            require_shadow_cache(given, made_for[1].num_hidden_layers, made_for[2])
            # As transformers marks a cache that the caller gave.
            given._is_user_defined = True
        elif generation_config.cache_implementation in _DYNAMIC:
            model_kwargs[versions.CACHE] = dynamic_cache(*made_for)
        elif generation_config.cache_implementation in _STATIC:
            asked = generation_config.to_dict().get("max_cache_len") or 0
            room = max(max_cache_length, asked, self._previous_max_cache_length)
            model_kwargs[versions.CACHE] = static_cache(*made_for, room)
            self._previous_max_cache_length = room
        else:
            raise UserError(
                "cache_implementation must be 'dynamic' or 'static' for a shadowed model, got "
                f"{generation_config.cache_implementation!r}"
            )

        if made_for is not None and generation_config.to_dict().get("is_assistant"):
            model_kwargs[versions.CACHE].activate_past_recording()
            model_kwargs[versions.CACHE].is_of_assistant = True

    def _valid_auto_compile_criteria(self, *args: Any, **kwargs: Any) -> bool:
        # The base knows how it is quantised, and where accelerate keeps it: not all of that can be compiled.
        base: Any = self._base()
        stock: Any = super()
        return all(model._valid_auto_compile_criteria(*args, **kwargs) for model in (base, stock))

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare one step as transformers does, without the cache where it has become void.

        The keys in it are void once the sequence reaches the length at which the rotary factors change
        (Phi-3). `inputs_embeds` is named because transformers looks for it in the signature.
        """
        switch = arch.rope_switch_of(self.config)
        cache = versions.one_cache(cache, past_key_values)
        # transformers hands on what its stop strings need.
        kwargs.pop("tokenizer", None)
        if cache is not None and switch is not None and cache.get_seq_length() <= switch < input_ids.shape[1]:
            cache = None
            # All tokens are computed again, not only the next ones.
            if "next_sequence_length" in kwargs:
                kwargs["next_sequence_length"] = None
        if isinstance(cache, ShadowCache):
            cache.begin_pass()
        stock: Any = super()
        return stock.prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **{versions.CACHE: cache}, **kwargs
        )

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        cache = model_kwargs.get(versions.CACHE)
        if isinstance(cache, ShadowCache):
            cache.end_pass()
        stock: Any = super()
        updated: dict[str, Any] = stock._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        return updated

    def _get_logits_processor(
        self, *args: Any, model_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> LogitsProcessorList:
        stock: Any = super()
        processors: LogitsProcessorList = stock._get_logits_processor(
            *args, model_kwargs=model_kwargs, **kwargs
        )
        adapter = (model_kwargs or {}).get("adapter")
        for processor in processors:
            # It runs the model apart, and by itself under the active adapter.
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                processor.model = partial(processor.model, adapter=adapter)
        return processors

    def _get_candidate_generator(
        self, *, generation_config: GenerationConfig, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        settings = generation_config.to_dict()
        if settings.get("assistant_early_exit") is not None:
            raise UserError(
                "assistant_early_exit stops inside a stock decoder, and a shadowed model is two; use "
                'draft="shadow", or assistant_model=model.detached()'
            )
        # The assistant is another model, which may have no adapters.
        others = {name: value for name, value in model_kwargs.items() if name != "adapter"}
        stock: Any = super()
        return stock._get_candidate_generator(
            generation_config=generation_config, model_kwargs=others, **kwargs
        )

    def generate_batch(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: continuous batching has one cache, for one decoder.

        Raises:
            UserError: always.
        """
        raise UserError(
            "continuous batching (generate_batch, cache_implementation='paged') keeps one paged cache for "
            "one decoder, and a shadowed model is two; use generate() on padded rows"
        )

    init_continuous_batching = continuous_batching_context_manager = generate_batch

    @staticmethod
    def create_masks_for_generate(
        config: PretrainedConfig, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor | None:
        """Return the plain mask, of which each decoder makes its own: their sliding windows may differ.

        Over a static cache it is as long as the cache: a mask that grows would be compiled anew, or be a CUDA
        graph of its own, for every token.
        """
        cache = versions.one_cache(*(kwargs.get(name) for name in versions.CACHE_NAMES))
        if attention_mask is None or not isinstance(cache, StaticShadowCache):
            return attention_mask
        # A recurrent state reads the mask of its inputs, and flash attention the number of keys from it.
        if not cache.keeps_keys_alone() or arch.uses_flash_attention(config):
            return attention_mask
        return F.pad(attention_mask, (0, cache.max_length - attention_mask.shape[1]))


def require_shadow_cache(cache: object, shadow_blocks: int, adapter: str) -> ShadowCache:
    """Return the cache if it is one for this adapter.

    Args:
        cache: what the caller gave.
        shadow_blocks: the number of the shadow's blocks.
        adapter: the name of the adapter.

    Raises:
        UserError: the cache is not one of `model.new_cache()`, or was made for another adapter.
    """
    if not isinstance(cache, ShadowCache):
        raise UserError(
            "the cache must be one made by model.new_cache(), which has room for the shadow too; "
            f"got {type(cache).__name__}"
        )
    if cache.is_void:
        raise UserError(
            "this cache was in a pass when its generation was broken off, and the pass cannot be taken back "
            "(the cache is static or quantised, keeps a recurrent state, or its window has moved on); call "
            "its reset(), or make one with model.new_cache()"
        )
    if cache.shadow_blocks != shadow_blocks:
        raise UserError(
            f"this cache was made for a shadow of {cache.shadow_blocks} blocks, the adapter's has "
            f"{shadow_blocks}; use model.new_cache(adapter=...)"
        )
    if cache.adapter != adapter:
        raise UserError(
            f"this cache was made for adapter {cache.adapter!r}, under which its keys were computed, and the "
            f"call runs under {adapter!r}; use model.new_cache(adapter={adapter!r})"
        )
    return cache
