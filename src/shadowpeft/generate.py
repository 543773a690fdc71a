"""What transformers' `generate` needs to know of us: how to make a cache for two decoders, and to leave masks alone."""

from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from shadowpeft.cache import ShadowCache, dynamic_cache, static_cache
from shadowpeft.errors import UserError

_DYNAMIC = (None, "dynamic", "dynamic_full")
_STATIC = ("static", "hybrid", "sliding_window", "hybrid_chunked")


class ShadowGeneration:
    """Goes before `GenerationMixin`: transformers' own generation, with one cache for base and shadow."""

    def cache_configs(self, adapter: str | None) -> tuple[PretrainedConfig, PretrainedConfig] | None:
        """Return the configurations of base and shadow under an adapter, or `None` where the base runs bare."""
        raise NotImplementedError

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        configs = self.cache_configs(model_kwargs.get("adapter"))
        given = model_kwargs.get("past_key_values")
        if configs is None or generation_config.use_cache is False:
            super()._prepare_cache_for_generation(  # type: ignore[misc]
                generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
            )
        elif given is not None:
            require_shadow_cache(given)
            given._is_user_defined = True
        elif generation_config.cache_implementation in _DYNAMIC:
            model_kwargs["past_key_values"] = dynamic_cache(*configs)
        elif generation_config.cache_implementation in _STATIC:
            model_kwargs["past_key_values"] = static_cache(*configs, max_cache_length)
        else:
            raise UserError(
                f"cache_implementation must be 'dynamic' or 'static' for a shadowed model, got {generation_config.cache_implementation!r}"
            )

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **_: Any) -> Tensor | None:
        """Hand the plain mask through: base and shadow each build their own, since their window patterns may differ."""
        return attention_mask


def require_shadow_cache(cache: object) -> ShadowCache:
    """Refuse a cache that has no room for the shadow.

    Raises:
        UserError: the cache is not one of `model.new_cache()`.
    """
    if not isinstance(cache, ShadowCache):
        raise UserError(
            f"past_key_values must be a cache made by model.new_cache(), which has room for the shadow too; got {type(cache).__name__}"
        )
    return cache
