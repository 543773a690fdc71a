"""The first shadow of pretraining: random, another pretrained model, or copies of the base's own blocks."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.config import ShadowConfig
from shadowpeft.decoder.casting import trained_type
from shadowpeft.errors import ConfigError, UnsupportedModelError
from shadowpeft.shadow import Shadow, explicit, implicit, place
from shadowpeft.shadow.open_settings import settle


def fresh(base: PreTrainedModel, config: ShadowConfig, dtype: torch.dtype | None = None) -> Shadow:
    """Build a small random shadow of the base's own architecture, as `attach(base, config)` builds it.

    Args:
        base: the frozen base.
        config: gives the sizes.
        dtype: type of the weights; as for `attach` by default.

    Raises:
        ConfigError: a size does not fit the base.
        UnsupportedModelError: the base is not of a supported family.
    """
    return placed(base, implicit(base, settle(base.config, config)), dtype)


def from_model(base: PreTrainedModel, model: PreTrainedModel, dtype: torch.dtype | None = None) -> Shadow:
    """Make another pretrained model's decoder the shadow, without a copy. Its projection is random yet.

    If the widths are equal, there is no projection: the base's head reads the model's hidden states as they
    are.

    Args:
        base: the frozen base.
        model: a causal language model with the base's tokenizer.
        dtype: type of the weights; as for `attach` by default.

    Raises:
        UnsupportedModelError: the two do not fit, or the model is quantised.
    """
    return placed(base, explicit(base, model), dtype)


def from_base_blocks(
    base: PreTrainedModel, blocks: Sequence[int], dtype: torch.dtype | None = None
) -> Shadow:
    """Build an implicit shadow of copies: some of the base's blocks, and its final norm behind them.

    Args:
        base: the frozen base.
        blocks: indices from 0 of the base's blocks, in the order they are to run.
        dtype: type of the weights; as for `attach` by default.

    Raises:
        ConfigError: there is no such block, or its kind of attention is not that of the shadow's block in its
            place.
        UnsupportedModelError: the base's blocks are quantised or not in memory, or they are mixtures of
            experts, keep recurrent states, or read what a shadow's do not.
    """
    _check_blocks(base, blocks)
    shadow = placed(base, implicit(base, ShadowConfig(shadow_layers=len(blocks)).resolved()), dtype)
    _refuse_others_inputs(base, shadow)
    shadow.backbone.load_state_dict(_copied_weights(base, shadow, blocks), strict=True)
    return shadow


def _refuse_others_inputs(base: PreTrainedModel, shadow: Shadow) -> None:
    """Raise if the base's blocks read other keys than the shadow's, or more than the stream."""
    theirs, own = base.config.to_dict(), shadow.backbone.config.to_dict()
    for field, _ in shadow.family.plain:
        if theirs.get(field) != own.get(field):
            raise UnsupportedModelError(
                f"blocks of this {shadow.family.name} base cannot be copied: its {field} is not that of the "
                "shadow (a shadow's blocks are dense and attend to all before them, whatever the base's do); "
                "start from a fresh shadow"
            )


def _copied_weights(base: PreTrainedModel, shadow: Shadow, blocks: Sequence[int]) -> dict[str, Tensor]:
    """Return the base's weights by the names of the shadow's."""
    decoder, layers = arch.decoder_of(base).state_dict(), shadow.family.blocks
    index = re.compile(rf"^{re.escape(layers)}\.(\d+)\.")

    def source(name: str) -> str:
        return index.sub(lambda found: f"{layers}.{blocks[int(found[1])]}.", name)

    state: dict[str, Tensor] = {}
    for name, tensor in shadow.backbone.state_dict().items():
        original = decoder.get(source(name))
        if original is None or original.shape != tensor.shape:
            raise UnsupportedModelError(
                f"blocks of this {shadow.family.name} base cannot be copied: the shadow's {name} has no "
                "counterpart (a shadow's blocks are dense and attend, whatever the base's do); choose blocks "
                "that are so, or start from a fresh shadow"
            )
        if original.is_meta or not original.is_floating_point() or arch.is_packed(original):
            raise UnsupportedModelError(
                "blocks of a quantised or offloaded base cannot be copied; load the base whole, unquantised"
            )
        state[name] = original
    return state


def _check_blocks(base: PreTrainedModel, blocks: Sequence[int]) -> None:
    depth = len(arch.blocks_of(base))
    if not blocks or not all(0 <= block < depth for block in blocks):
        raise ConfigError(
            f"blocks must name at least one of the base's {depth} blocks, 0 to {depth - 1}, "
            f"got {list(blocks)}"
        )
    if len(blocks) > depth:
        raise ConfigError(f"a shadow has at most as many blocks as the base, {depth}, got {len(blocks)}")
    kinds = base.config.to_dict().get("layer_types")
    for at, block in enumerate(blocks):
        # An adapter keeps only how many blocks its shadow has. Their kinds of attention are those of the
        # base's first blocks.
        if kinds and kinds[at] != kinds[block]:
            raise ConfigError(
                f"block {block} of the base attends by {kinds[block]}, but block {at} of a shadow by "
                f"{kinds[at]}, as the base's block {at} does; choose there one of the blocks "
                f"{_listed(kinds, kinds[at])}"
            )


def _listed(kinds: Sequence[str], kind: str) -> str:
    return ", ".join(str(block) for block, other in enumerate(kinds) if other == kind)


def placed(base: PreTrainedModel, shadow: Shadow, dtype: torch.dtype | None = None) -> Shadow:
    """Return a shadow on the base's device, its weights in the wanted type, by default as for `attach`."""
    table = arch.token_embedding_of(base).weight
    place(shadow, shadow, table, dtype or trained_type(table.dtype))
    return shadow
