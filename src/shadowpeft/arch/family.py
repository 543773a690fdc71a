"""One row of the table of model families: where a family keeps what we need."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PretrainedConfig

from shadowpeft.errors import UnsupportedModelError

Task = Literal["causal-lm", "sequence-classification"]

# Values of `Family.dense` that depend on the number of blocks: that number, and the list of all blocks.
DEPTH, EVERY_BLOCK = object(), object()


@dataclass(frozen=True)
class Each:
    """A value of `Family.dense`: a list with the same value for each block."""

    value: Any


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
        norms_switches: those of `output_norms` that not every model has, each with the config field that is
            set where a model has it.
        embeddings: the decoder's modules that turn ids into the first block's input; an implicit shadow reads
            them.
        mlp: config field of the MLP width, `None` where it follows from the hidden width.
        kv_heads: config field of the number of key and value heads, `None` where there is none.
        head_dim: config field of the width of an attention head, `None` where it follows from the hidden
            width, or from fields of its own.
        context: config field of the largest number of positions, `None` where there is no limit.
        lists_kinds: where the configuration lists the kinds of its blocks (`layer_types`), the list can be
            set; false where it follows from other fields.
        dense: config fields and their values that make a shadow of plain blocks: of a mixture of experts a
            dense model, or one of a single expert that every token chooses. `DEPTH` stands for the number of
            blocks, `EVERY_BLOCK` for their list, `Each(x)` for a list with x for each.
        router: path in a block to the part that chooses experts; in a shadow of one expert it never trains,
            because its choice is the same whatever it computes.
        recurs: some of its blocks keep a recurrent or convolutional state in place of keys and values; those
            of a shadow attend.
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
    norms_switches: tuple[tuple[str, str], ...] = ()
    embeddings: tuple[str, ...] = ("embed_tokens",)
    mlp: str | None = "intermediate_size"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    context: str | None = "max_position_embeddings"
    lists_kinds: bool = True
    dense: tuple[tuple[str, Any], ...] = ()
    router: str | None = None
    recurs: bool = False
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
        absent = {norm for norm, field in self.norms_switches if not getattr(config, field)}
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
