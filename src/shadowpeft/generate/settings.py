"""What a caller asks for, and what is refused before any work."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import GenerationConfig, PretrainedConfig
from transformers.generation.configuration_utils import GenerationMode

from shadowpeft import arch
from shadowpeft.arch import versions
from shadowpeft.decoder.cache import StaticShadowCache
from shadowpeft.errors import UserError
from shadowpeft.generate.text import Text

AUTO = "auto"
_CACHES = (None, "dynamic", "dynamic_full", "static")
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)

# What transformers prepares for the model, and the loop knows how to continue.
_KNOWN = {
    *versions.CACHE_NAMES,
    "adapter",
    "attention_mask",
    "inputs_embeds",
    "logits_to_keep",
    "position_ids",
    "use_cache",
}


class Drafting(NamedTuple):
    """How to draft.

    Attributes:
        tokens: how many tokens the base reads in a pass: the last one of the text and the drafts behind it. A
            pass gives 1 to so many tokens. `None` lets the shadow's confidence and measured times decide.
        vocabulary: whether only tokens of the adapter's draft vocabulary are drafted; `None` if it has one.
    """

    tokens: int | None
    vocabulary: bool | None = None


def drafting_of(draft: Any, draft_tokens: Any, draft_vocabulary: Any = None) -> Drafting | None:
    """Return what the arguments of `generate` ask for, `None` if nothing is to be drafted.

    Raises:
        UserError: one of them is not what it may be.
    """
    if draft is None:
        for name, value in (("draft_tokens", draft_tokens), ("draft_vocabulary", draft_vocabulary)):
            if value is not None:
                raise UserError(f'{name} says how the shadow drafts; give draft="shadow" with it')
        return None
    if draft != "shadow":
        raise UserError(f'draft must be "shadow" or left out, got {draft!r}')
    if not (draft_vocabulary is None or isinstance(draft_vocabulary, bool)):
        raise UserError(
            "draft_vocabulary must be true, false or left out (then it is used if the adapter has one), got "
            f"{draft_vocabulary!r}; set_draft_vocabulary() takes the ids"
        )
    if draft_tokens is None or (isinstance(draft_tokens, str) and draft_tokens == AUTO):
        return Drafting(None, draft_vocabulary)
    try:
        tokens = operator.index(draft_tokens)
    except TypeError:
        tokens = 0
    if tokens < 1 or isinstance(draft_tokens, bool):
        raise UserError(
            'draft_tokens must be a whole number of tokens, 1 or more, or "auto", got '
            f"{draft_tokens!r}; with 1 nothing is drafted"
        )
    return Drafting(tokens, draft_vocabulary)


def refuse_mode(mode: GenerationMode, config: GenerationConfig, given: dict[str, Any]) -> None:
    """Raise if something is asked for beside drafts that cannot be done with them.

    Args:
        mode: how transformers would decode.
        config: the settings of the call, merged with the model's.
        given: the arguments of `generate` that are no settings, such as `assistant_model`.

    Raises:
        UserError: names it.
    """
    asked = config.to_dict()
    found = {
        "assistant_model": given.get("assistant_model") is not None,
        "prompt_lookup_num_tokens": asked.get("prompt_lookup_num_tokens") is not None,
        "num_beams": (asked.get("num_beams") or 1) > 1,
        "num_return_sequences": (asked.get("num_return_sequences") or 1) > 1,
        f"decoding by {mode.value.replace('_', ' ')}": mode not in _MODES,
        "synced_gpus": bool(given.get("synced_gpus")),
        "output_attentions": bool(asked.get("output_attentions")),
        "output_hidden_states": bool(asked.get("output_hidden_states")),
        "use_cache=False": asked.get("use_cache") is False,
        "this cache_implementation": asked.get("cache_implementation") not in _CACHES,
    }
    for name, is_asked in found.items():
        if is_asked:
            raise UserError(
                f'draft="shadow" cannot be combined with {name}: it decodes one row, greedily or by '
                "sampling, with a dynamic or a static cache; leave out one of the two"
            )


def refuse_input(
    text: Text,
    max_length: int,
    read_at_once: int,
    configs: Sequence[PretrainedConfig],
    model_kwargs: dict[str, Any],
) -> None:
    """Raise if a prompt does not fit.

    Args:
        text: the prompt's ids; none, if the prompt is embeddings.
        max_length: the most ids, those of the prompt among them.
        read_at_once: the tokens of a pass over a static cache.
        configs: of base and shadow.
        model_kwargs: what transformers prepared for the model.

    Raises:
        UserError: says what.
    """
    rows = text.ids_1T.shape[0]
    if rows != 1:
        raise UserError(
            'draft="shadow" decodes one row, because the rows of a batch would take different numbers of '
            f"drafts; got {rows} rows: generate them one by one, or leave draft out"
        )
    given = {name: value for name, value in model_kwargs.items() if value is not None}
    unknown = sorted(set(given) - _KNOWN)
    if unknown:
        raise UserError(f'{unknown[0]} cannot be combined with draft="shadow"; leave out one of the two')
    cache = given[versions.CACHE]
    if not cache.can_crop_each():
        raise UserError(
            'draft="shadow" crops the tokens that are rejected, and this cache cannot be cropped by the '
            "token (it is quantised, or some of its blocks keep recurrent states, or are static and slide or "
            "keep an index): leave the cache out, or else draft"
        )
    positions_1T, new = given["position_ids"], max_length - text.ids_1T.shape[1]
    read = int(positions_1T[0, -1]) + 1
    limits = [limit for config in configs if (limit := arch.context_of(config)) is not None]
    limit = min(limits, default=None)
    # The last token is put out and not read.
    if limit is not None and read + new - 1 > limit:
        raise UserError(
            f"a prompt of {read} tokens and {new} new ones need {read + new - 1} positions, and there are "
            f"{limit}: shorten the prompt or lower max_new_tokens"
        )
    if isinstance(cache, StaticShadowCache):
        _refuse_static(cache, positions_1T.shape[1], new, read_at_once=read_at_once, configs=configs)


def _refuse_static(
    cache: StaticShadowCache, prompt: int, new: int, read_at_once: int, configs: Sequence[PretrainedConfig]
) -> None:
    """Raise if a static cache has no room for a text and its drafts, or cannot be used as the steps do."""
    needed = prompt + new - 2 + read_at_once
    if needed > cache.max_length:
        raise UserError(
            f"a prompt of {prompt} tokens, {new} new ones and passes over {read_at_once} need a static cache "
            f"of {needed} tokens, and this one has room for {cache.max_length}: make a larger one, or leave "
            'it out and give cache_implementation="static"'
        )
    if any(arch.uses_flash_attention(config) for config in configs):
        raise UserError(
            'draft="shadow" over a static cache hides the tokens that are rejected by a mask, which flash '
            'attention does not read; load the base with attn_implementation="sdpa", or use a dynamic cache'
        )
    switches = [switch for config in configs if (switch := arch.rope_switch_of(config)) is not None]
    if any(prompt <= switch < prompt + new for switch in switches):
        raise UserError(
            f"the rotary factors change at {min(switches)} tokens, within this text, where all keys are "
            'computed anew: draft="shadow" does that with a dynamic cache alone; leave the static one out'
        )
