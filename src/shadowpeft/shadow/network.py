"""The shadow network: a small backbone beside the base, and the projection to the base's width."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs

from shadowpeft import arch
from shadowpeft.arch import versions
from shadowpeft.config import ResolvedConfig
from shadowpeft.decoder.cache import filling_mask
from shadowpeft.decoder.casting import cast, follow_inputs
from shadowpeft.decoder.view import BorrowedModule, ListedBlocks, ModuleView, WrappedBlocks
from shadowpeft.decoder.whole_rows import WholeRowsBlock, rows_are_whole
from shadowpeft.errors import UnsupportedModelError

_ATTENTION = (*FlashAttentionKwargs.__annotations__, "is_causal")


class Shadow(nn.Module):
    """The network that computes the first shadow state from the input: s^(0) = P(f_shadow(x)) (eq. 1).

    It computes in the type of the embeddings that it reads, whatever the type of its own weights, and if its
    family cannot (`Family.widens`), it puts out a state of that type.

    An implicit shadow is a shallow copy of the base's architecture that reads the base's embeddings. An
    explicit shadow is another model's decoder with embeddings of its own, which stay frozen.

    Args:
        base: the frozen base model.
        backbone: f_shadow, a decoder without head.
        borrows: whether the backbone reads the base's embeddings (implicit) or its own (explicit).

    Attributes:
        trains_backbone: whether the backbone is trained; otherwise it runs without gradients.
    """

    trains_backbone = True

    def __init__(self, base: PreTrainedModel, backbone: PreTrainedModel, borrows: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.borrows = borrows
        self.family = arch.family_of_config(backbone.config)
        width, shadow_width = base.config.hidden_size, backbone.config.hidden_size
        self.projection = nn.Linear(shadow_width, width, bias=False) if shadow_width != width else None
        replacements: dict[str, Callable[[], Any]] = {}
        if borrows:
            decoder = arch.decoder_of(base)
            for name in self.family.embeddings:
                delattr(backbone, name)
                replacements[name] = BorrowedModule(decoder, name)
        blocks = backbone.get_submodule(self.family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        whole_rows = WrappedBlocks(WholeRowsBlock, blocks, backbone.config)
        follow_inputs(self, table=None if borrows else self.embeddings())
        listed = ListedBlocks(backbone, self.family.blocks)
        self._run = ModuleView(backbone, {**replacements, self.family.blocks: listed})
        self._run_whole_rows = ModuleView(backbone, {**replacements, self.family.blocks: whole_rows})

    def embeddings(self) -> nn.Embedding:
        """Return the token embeddings of an explicit shadow."""
        table = self.backbone.get_submodule(self.family.embeddings[0])
        assert isinstance(table, nn.Embedding)
        return table

    def _token_table(self) -> nn.Module:
        """Return the token embeddings that the shadow reads, its own or the base's."""
        borrowed = self._run.replacements.get(self.family.embeddings[0])
        return self.embeddings() if borrowed is None else borrowed()

    def tables(self) -> list[nn.Module]:
        """Return what an explicit shadow looks up by token, and never trains."""
        return [self.embeddings(), *arch.tables_of(self.backbone, self.family)]

    def forward(
        self,
        input_ids_BT: Tensor | None,
        inputs_embeds_BTD: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        shadow_cache: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        """Return s^(0) for ids or embeddings.

        Args:
            input_ids_BT: token ids.
            inputs_embeds_BTD: embeddings in place of ids, for an implicit shadow alone.
            attention_mask: 1 for tokens, 0 for padding, (B, cached + T).
            position_ids: positions of the tokens, (B, T).
            shadow_cache: the shadow's half of the cache; written to.
            **kwargs: what the base's decoder is given besides. The shadow takes of it what changes attention,
                such as where packed documents begin.

        Returns:
            s^(0), (B, T, D).

        Raises:
            UnsupportedModelError: embeddings were given to a shadow that has a table of its own.
        """
        is_whole = rows_are_whole(attention_mask, position_ids, shadow_cache, *kwargs.values())
        run = self._run
        if is_whole:
            run = self._run_whole_rows
        inputs = self._inputs(input_ids_BT, inputs_embeds_BTD)
        if position_ids is not None and self.family.takes_positions:
            inputs["position_ids"] = position_ids
        if self.family.mask_fills_cache:
            given = inputs_embeds_BTD if input_ids_BT is None else input_ids_BT
            assert given is not None
            attention_mask = filling_mask(attention_mask, shadow_cache, given.shape[1])
        attention = {name: kwargs[name] for name in _ATTENTION if name in kwargs}
        # Nothing below a frozen backbone can train, so none of its activations is kept.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_backbone):
            out = run(
                **inputs,
                **attention,
                attention_mask=attention_mask,
                use_cache=shadow_cache is not None,
                return_dict=True,
                **{versions.CACHE: shadow_cache},
            )
        s_BTD = out.last_hidden_state
        if self.family.widens:
            s_BTD = s_BTD.to(self._token_table().weight.dtype)
        return s_BTD if self.projection is None else self.projection(s_BTD)

    def _inputs(
        self, input_ids_BT: Tensor | None, inputs_embeds_BTD: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Return the backbone's argument for ids or embeddings."""
        if input_ids_BT is not None:
            return {"input_ids": input_ids_BT}
        if not self.borrows:
            raise UnsupportedModelError(
                "an explicit shadow has embeddings of its own and needs input_ids, got inputs_embeds only"
            )
        return {"inputs_embeds": inputs_embeds_BTD}


def place(module: nn.Module, shadow: Shadow, table_VD: Tensor, dtype: torch.dtype) -> None:
    """Move a module that holds a shadow to its base, and cast its weights.

    What is not trained gets the base's type: the embeddings of an explicit shadow, whose type is that of all
    that the shadow computes, and a frozen backbone.

    Args:
        module: changed in place.
        shadow: the shadow in it.
        table_VD: the base's embeddings, whose type and device are the base's.
        dtype: type of the weights.
    """
    frozen: list[nn.Module] = [shadow.backbone]
    if shadow.trains_backbone:
        cast(module, table_VD.device, dtype, stock=shadow.backbone)
        if shadow.borrows:
            return
        frozen = shadow.tables()
    else:
        # Not by way of `dtype`, which could round what was given.
        for part in _beside(module, shadow.backbone):
            part.to(table_VD.device, dtype)
    for part in frozen:
        cast(part, table_VD.device, table_VD.dtype, stock=part)


def _beside(module: nn.Module, backbone: nn.Module) -> Iterator[nn.Module]:
    """Return the parts of a module that together hold everything in it but the backbone."""
    for child in module.children():
        if child is backbone:
            continue
        if any(part is backbone for part in child.modules()):
            yield from _beside(child, backbone)
        else:
            yield child


def sizes_of(config: PretrainedConfig) -> dict[str, int | None]:
    """Return a shadow's sizes by their names in `ShadowConfig`, `None` where its family has no such size.

    Args:
        config: configuration of the shadow's backbone.
    """
    family, values = arch.family_of_config(config), config.to_dict()
    sizes = {
        "shadow_layers": arch.layers_of(config),
        "shadow_intermediate_size": arch.mlp_width(config),
        "shadow_attention_heads": config.num_attention_heads,
        "shadow_key_value_heads": None,
        "shadow_head_dim": None,
    }
    fields = {"shadow_key_value_heads": family.kv_heads, "shadow_head_dim": family.head_dim}
    sizes.update({size: values.get(field) for size, field in fields.items() if field is not None})
    return sizes


def implicit(base: PreTrainedModel, config: ResolvedConfig) -> Shadow:
    """Build a random shadow of the base's own architecture (section 3.1, implicit).

    Raises:
        ConfigError: a size is set that the family does not have, or that does not fit the base.
    """
    backbone_config = arch.shadow_model_config(base, config)
    # The embeddings are the base's. To draw a table of 262,144 rows and drop it would take longer than all
    # the rest.
    vocabulary, padding = backbone_config.vocab_size, backbone_config.pad_token_id
    backbone_config.vocab_size, backbone_config.pad_token_id = 1, None
    backbone = arch.shadow_decoder(base, backbone_config)
    backbone_config.vocab_size, backbone_config.pad_token_id = vocabulary, padding
    return Shadow(base, backbone, borrows=True)


def explicit(base: PreTrainedModel, model: PreTrainedModel) -> Shadow:
    """Make a shadow of another pretrained model's decoder (section 3.1, explicit).

    Raises:
        UnsupportedModelError: the two do not share a vocabulary, the shadow's family cannot have the base's
            head, or the shadow is quantised.
    """
    arch.family_of(model)
    if not all(weight.is_floating_point() and not arch.is_packed(weight) for weight in model.parameters()):
        raise UnsupportedModelError(
            "the shadow is trained and so cannot be quantised; load it without quantization_config"
        )
    refuse_misfit(base, model.config)
    return Shadow(base, arch.stock_decoder(model), borrows=False)


def refuse_misfit(base: PreTrainedModel, config: PretrainedConfig) -> None:
    """Raise unless a model of this configuration can be the base's explicit shadow.

    Raises:
        UnsupportedModelError: the two do not share a vocabulary, or the shadow's family cannot have the
            base's head.
    """
    if config.vocab_size != base.config.vocab_size:
        raise UnsupportedModelError(
            f"base and shadow must share one vocabulary: the base has {base.config.vocab_size} tokens, the "
            f"shadow {config.vocab_size}; choose a shadow with the base's tokenizer and as many rows "
            "(padding rows count)"
        )
    base_family = arch.family_of(base)
    has_bias = arch.task_of(base) == "causal-lm" and arch.head_of(base).bias is not None
    # Detached, the shadow's family must be able to hold the base's head.
    if (base_family.logit_fields() or has_bias) and arch.family_of_config(config) is not base_family:
        raise UnsupportedModelError(
            f"a {base_family.name} base needs a {base_family.name} shadow: no other family has its kind of "
            "head"
        )


def explicit_from_config(base: PreTrainedModel, config: PretrainedConfig) -> Shadow:
    """Rebuild an explicit shadow, untrained, from the configuration of its backbone."""
    return Shadow(base, arch.decoder_of(arch.build(config, "causal-lm")), borrows=False)
