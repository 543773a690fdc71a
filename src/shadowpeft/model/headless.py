"""The shadowed model without its head, for those who compute a loss from the last hidden state."""

from typing import Any, Protocol

from torch import Tensor
from transformers import Cache, PretrainedConfig, PreTrainedModel

from shadowpeft import arch
from shadowpeft.arch import versions
from shadowpeft.decoder.cache import ShadowCache
from shadowpeft.model import outside_loss
from shadowpeft.model.bare import BareSwitch
from shadowpeft.shadow.adapter import Adapter


class _Shadowed(Protocol):
    """What is needed of the shadowed model."""

    config: PretrainedConfig
    training: bool
    _bare: BareSwitch

    def _base(self) -> PreTrainedModel: ...

    def _adapter(self, name: str | None) -> Adapter: ...

    def _arguments_of_call(self, kwargs: dict[str, Any]) -> dict[str, Any]: ...

    def _run_shadowed(
        self,
        adapter: Adapter,
        inputs: dict[str, Tensor | None],
        given_cache: Cache | None,
        use_cache: bool,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Tensor, ShadowCache | None]: ...


class Headless:
    """What transformers calls the base model of a model with a head: `model.base_model`.

    TRL's trainers call it, and multiply its last hidden state by the head's weights themselves. It is not an
    `nn.Module`, and so registers no weight a second time.

    Args:
        model: the shadowed model; its active adapter answers.
    """

    def __init__(self, model: _Shadowed) -> None:
        self._model = model

    @property
    def config(self) -> PretrainedConfig:
        """The shadowed model's configuration."""
        return self._model.config

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        adapter: str | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run base and shadow; the arguments are those of `ShadowedModel.forward`.

        Returns:
            The output of the base's decoder, whose `last_hidden_state` is what the head reads.
        """
        model, given_cache = self._model, versions.one_cache(cache, past_key_values)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        kwargs = model._arguments_of_call(kwargs)
        if model._bare.is_on(adapter):
            stock = {versions.CACHE: given_cache, "use_cache": use_cache, **kwargs}
            given = {name: value for name, value in {**inputs, **stock}.items() if value is not None}
            return arch.decoder_of(model._base())(**given)
        chosen = model._adapter(adapter)
        if model.training:
            outside_loss.check(chosen, labels_were_taken=False)
        if use_cache is None:
            use_cache = model.config.use_cache and not model.training
        out, _, both_caches = model._run_shadowed(chosen, inputs, given_cache, use_cache, kwargs)
        if both_caches is not None:
            out[versions.CACHE] = both_caches
        return out
