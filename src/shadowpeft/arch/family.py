"""One row of the table of model families: where a family keeps what we need."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PretrainedConfig

from shadowpeft.errors import UnsupportedModelError

Task = Literal["causal-lm", "sequence-classification"]

# Values of `Family.dense` that depend on the number of blocks: that number, and the list of all blocks.
DEPTH, EVERY_BLOCK = object(), object()


class Each:
    """A value of `Family.dense` or `Family.plain`: a list with the same values for each layer.

    Args:
        *values: one for each block of a layer.
    """

    def __init__(self, *values: Any) -> None:
        self.values = values

    def of(self, layers: int) -> list[Any]:
        """Return the list for a number of layers."""
        return [*self.values] * layers


@dataclass(frozen=True)
class Family:
    """Where one family keeps what we need. The defaults are Llama's.

    Attributes:
        name: its usual name.
        model_type: `config.model_type` in transformers.
        causal: class name of the causal language model (its head is `lm_head`).
        classifier: class name of the sequence classifier (its head is `score`), `None` where transformers has
            none.
        decoder: path from either class to the module that loops over the blocks.
        blocks: the decoder's attribute that holds the blocks.
        input_norm: a block's norm that its attention reads through, `None` where it reads the stream itself.
        output_norms: a block's norms that the outputs of its attention, its MLP and what else it adds pass
            before they join the stream; empty in most families.
        norms_switches: those of `output_norms` that not every model has, under the config field that is set
            where a model has them.
        embeddings: the decoder's modules that turn ids into the first block's input; an implicit shadow reads
            them.
        tables: its other tables with a row for each token, which only some models have; like the embeddings
            they never train.
        mlp: config field of the MLP width, `None` where it follows from the hidden width.
        kv_heads: config field of the number of key and value heads, `None` where there is none.
        head_dim: config field of the width of an attention head, `None` where it follows from the hidden
            width, or from fields of its own.
        context: config field of the largest number of positions, `None` where there is no limit.
        dense: config fields and their values that make a mixture of experts dense, or one of as many experts
            as every token chooses. `DEPTH` stands for the number of blocks, `EVERY_BLOCK` for their list,
            `Each(x)` for a list with x for each.
        plain: other config fields, and the values with which a shadow's blocks attend to all before them and
            need nothing but the stream.
        router: path in a block to the part that chooses experts or keys; in a shadow it never trains, because
            there is one expert, or all keys are chosen, whatever it computes.
        recurs: some of its blocks keep a recurrent or convolutional state in place of keys and values, or
            beside them.
        shadow_recurs: the blocks of its shadow do, too; those of other shadows attend and do nothing else.
        lists_kinds: where the configuration names the kinds of its blocks (`layer_types`), it takes a list;
            false where they follow from other fields.
        blocks_a_layer: how many blocks hold one attention and one MLP together.
        block_attributes: what the decoder's loop reads of a block, beside calling it; none of it may change.
        widens: its blocks compute in the type of their weights, whatever the type of what they read; so a
            shadow trained in float32 computes in it.
        passes_kwargs: the decoder hands unknown keyword arguments to its blocks, so the frame can be one of
            them.
        takes_positions: the decoder accepts `position_ids`.
        packs: without a mask, the decoder separates the documents of a packed row where positions begin anew.
        mask_fills_cache: the position bias is as long as the attention mask, so with a static cache the mask
            must be as long as the cache.
        rope_switch: config field of the length above which the rotary factors change, so that keys cached
            before are void.
        softcaps: the logits pass through `cap * tanh(logits / cap)` when the config sets a cap.
        multiplies_logits: config field of a number that the logits are multiplied with.
        divides_logits: config field of a number that the logits are divided by.
        masks_itself: without a mask, the attention `sdpa` of its blocks lets each token see those before it
            alone.
    """

    name: str
    model_type: str
    causal: str
    classifier: str | None = None
    decoder: str = "model"
    blocks: str = "layers"
    input_norm: str | None = "input_layernorm"
    output_norms: tuple[str, ...] = ()
    norms_switches: tuple[tuple[str, tuple[str, ...]], ...] = ()
    embeddings: tuple[str, ...] = ("embed_tokens",)
    tables: tuple[str, ...] = ()
    mlp: str | None = "intermediate_size"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    context: str | None = "max_position_embeddings"
    dense: tuple[tuple[str, Any], ...] = ()
    plain: tuple[tuple[str, Any], ...] = ()
    router: str | None = None
    recurs: bool = False
    shadow_recurs: bool = False
    lists_kinds: bool = True
    blocks_a_layer: int = 1
    block_attributes: tuple[str, ...] = ()
    widens: bool = False
    passes_kwargs: bool = True
    takes_positions: bool = True
    packs: bool = True
    mask_fills_cache: bool = False
    rope_switch: str | None = None
    softcaps: bool = False
    multiplies_logits: str | None = None
    divides_logits: str | None = None
    masks_itself: bool = True

    def class_name(self, task: Task) -> str:
        """Return the name of the transformers class for a task.

        Raises:
            UnsupportedModelError: transformers has no such class.
        """
        if task == "causal-lm":
            return self.causal
        if self.classifier is None:
            raise UnsupportedModelError(f"transformers has no sequence classifier of {self.name}")
        return self.classifier

    def norms_behind(self, config: PretrainedConfig) -> tuple[str, ...]:
        """Return the names of a block's `output_norms` that a model of this configuration has."""
        off = [norms for field, norms in self.norms_switches if not getattr(config, field)]
        absent = {norm for norms in off for norm in norms}
        return tuple(norm for norm in self.output_norms if norm not in absent)

    def logit_fields(self) -> tuple[str, ...]:
        """Return the config fields that change the logits behind the linear head."""
        cap = "final_logit_softcapping" if self.softcaps else None
        return tuple(field for field in (cap, self.multiplies_logits, self.divides_logits) if field)

    def logit_factor(self, config: PretrainedConfig) -> float:
        """Return the number that the linear head's output is multiplied with."""
        factor = 1.0
        if self.multiplies_logits is not None:
            factor = float(getattr(config, self.multiplies_logits))
        if self.divides_logits is not None:
            factor /= float(getattr(config, self.divides_logits))
        return factor
