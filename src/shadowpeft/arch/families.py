"""The table: how each supported model family is laid out, and which row a model belongs to."""

from dataclasses import dataclass
from typing import Literal

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft.errors import UnsupportedModelError

Task = Literal["causal-lm", "sequence-classification"]


@dataclass(frozen=True)
class Family:
    """Where one family keeps what we need.

    Attributes:
        name: its usual name.
        model_type: `config.model_type` in transformers.
        causal: class name of the causal language model (its head is `lm_head`).
        classifier: class name of the sequence classifier (its head is `score`).
        decoder: path from either class to the module that loops over the blocks.
        blocks: the decoder's attribute that holds the blocks.
        input_norm: a block's norm that its attention reads through, `None` where it reads the stream itself.
        output_norms: a block's norms that the outputs of its attention and its MLP pass before they join the
            stream; empty in most families.
        embeddings: the decoder's modules that turn ids into the first block's input; an implicit shadow reads
            them.
        mlp: config field of the MLP width, `None` where it follows from the hidden width.
        kv_heads: config field of the number of key and value heads, `None` where there is none.
        head_dim: config field of the width of an attention head, `None` where it follows from the hidden
            width.
        context: config field of the largest number of positions, `None` where there is no limit.
        passes_kwargs: the decoder hands unknown keyword arguments to its blocks, so the frame can be one of
            them.
        takes_positions: the decoder accepts `position_ids`.
        packs: without a mask, the decoder separates the documents of a packed row where positions begin anew.
        mask_fills_cache: the position bias is as long as the attention mask, so with a static cache the mask
            must be as long as the cache.
        rope_switch: config field of the length above which the rotary factors change, so that keys cached
            before are void.
        softcaps: the logits pass through `cap * tanh(logits / cap)` when the config sets a cap.
        masks_itself: without a mask, the attention `sdpa` of its blocks lets each token see those before it
            alone.
    """

    name: str
    model_type: str
    causal: str
    classifier: str
    decoder: str = "model"
    blocks: str = "layers"
    input_norm: str | None = "input_layernorm"
    output_norms: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ("embed_tokens",)
    mlp: str | None = "intermediate_size"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    context: str | None = "max_position_embeddings"
    passes_kwargs: bool = True
    takes_positions: bool = True
    packs: bool = True
    mask_fills_cache: bool = False
    rope_switch: str | None = None
    softcaps: bool = False
    masks_itself: bool = False

    def class_name(self, task: Task) -> str:
        """Return the name of the transformers class for a task."""
        return self.causal if task == "causal-lm" else self.classifier


# In other families the first of these is the name of the norm before the MLP.
_BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "Llama", "llama", "LlamaForCausalLM", "LlamaForSequenceClassification", masks_itself=True,
        ),
        Family(
            "Mistral", "mistral", "MistralForCausalLM", "MistralForSequenceClassification", masks_itself=True,
        ),
        Family(
            "Qwen2", "qwen2", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification", head_dim=None,
            masks_itself=True,
        ),
        Family(
            "Qwen3", "qwen3", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification", masks_itself=True,
        ),
        Family(
            "Qwen3-MoE", "qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeForSequenceClassification",
            masks_itself=True,
        ),
        Family(
            "Gemma 2", "gemma2", "Gemma2ForCausalLM", "Gemma2ForSequenceClassification",
            output_norms=_BEHIND, softcaps=True,
        ),
        Family(
            "Gemma 3 (text)", "gemma3_text", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification",
            output_norms=_BEHIND, softcaps=True, masks_itself=True,
        ),
        Family(
            "Phi-3", "phi3", "Phi3ForCausalLM", "Phi3ForSequenceClassification", head_dim=None,
            rope_switch="original_max_position_embeddings", masks_itself=True,
        ),
        Family(
            "OLMo 2", "olmo2", "Olmo2ForCausalLM", "Olmo2ForSequenceClassification", head_dim=None,
            input_norm=None, output_norms=_BEHIND, masks_itself=True,
        ),
        Family(
            "OPT", "opt", "OPTForCausalLM", "OPTForSequenceClassification", decoder="model.decoder",
            input_norm="self_attn_layer_norm", embeddings=("embed_tokens", "embed_positions"), mlp="ffn_dim",
            kv_heads=None, head_dim=None, packs=False,
        ),
        Family(
            "GPT-2", "gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification", decoder="transformer",
            blocks="h", input_norm="ln_1", embeddings=("wte", "wpe"), mlp="n_inner", kv_heads=None,
            head_dim=None,
        ),
        Family(
            "GPT-NeoX", "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification",
            decoder="gpt_neox", embeddings=("embed_in",), kv_heads=None, head_dim=None,
        ),
        Family(
            "Falcon", "falcon", "FalconForCausalLM", "FalconForSequenceClassification", decoder="transformer",
            blocks="h", embeddings=("word_embeddings",), mlp="ffn_hidden_size", kv_heads="num_kv_heads",
            head_dim=None, passes_kwargs=False, packs=False,
        ),
        Family(
            "BLOOM", "bloom", "BloomForCausalLM", "BloomForSequenceClassification", decoder="transformer",
            blocks="h", embeddings=("word_embeddings", "word_embeddings_layernorm"), mlp=None, kv_heads=None,
            head_dim=None, context=None, passes_kwargs=False, takes_positions=False, packs=False,
            mask_fills_cache=True,
        ),
        Family(
            "GPT-J", "gptj", "GPTJForCausalLM", "GPTJForSequenceClassification", decoder="transformer",
            blocks="h", input_norm="ln_1", embeddings=("wte",), mlp="n_inner", kv_heads=None, head_dim=None,
            passes_kwargs=False,
        ),
    )
}  # fmt: skip


def supported() -> str:
    """Return the names of the supported families in one line."""
    return ", ".join(family.name for family in FAMILIES.values())


def family_of(model: PreTrainedModel) -> Family:
    """Return the row of a model.

    Raises:
        UnsupportedModelError: the model's family or class is not in the table, or it is an OPT with projected
            embeddings.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"expected a loaded transformers model, got {type(model).__name__}; load it with "
            "AutoModelForCausalLM.from_pretrained(...)"
        )
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {model.config.model_type!r}) is not supported; "
            f"supported: {supported()}"
        )
    classes = (getattr(transformers, family.causal), getattr(transformers, family.classifier))
    if not isinstance(model, classes):
        raise UnsupportedModelError(
            f"expected a {family.causal} or {family.classifier}, got {type(model).__name__}"
        )
    if family.model_type == "opt" and model.config.word_embed_proj_dim != model.config.hidden_size:
        raise UnsupportedModelError(
            "OPT with word_embed_proj_dim != hidden_size (opt-350m) is not supported: its head is narrower "
            "than its blocks"
        )
    return family


def family_of_config(config: PretrainedConfig) -> Family:
    """Return the row of a configuration.

    Raises:
        UnsupportedModelError: the family is not in the table.
    """
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {config.model_type!r} is not supported; supported: {supported()}"
        )
    return FAMILIES[config.model_type]


def task_of(model: PreTrainedModel) -> Task:
    """Return whether a model is a causal language model or a sequence classifier.

    Raises:
        UnsupportedModelError: as `family_of`.
    """
    causal = getattr(transformers, family_of(model).causal)
    return "causal-lm" if isinstance(model, causal) else "sequence-classification"
