"""The one table that knows how each supported model family is laid out. Nothing else looks inside a transformers model.

To add a family, add a row and a tiny configuration to `tests/families.py`; `docs/families.md` walks through it.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import is_accelerate_available

from shadowpeft.config import ResolvedConfig, ShadowConfig
from shadowpeft.errors import ConfigError, UnsupportedModelError

Task = Literal["causal-lm", "sequence-classification"]


@dataclass(frozen=True)
class Family:
    """Where one family keeps what we need.

    Args:
        name: what people call it.
        model_type: `config.model_type` in transformers.
        causal: class name of the causal language model (its head is `lm_head`).
        classifier: class name of the sequence classifier (its head is `score`).
        decoder: path from either class to the module that loops over the blocks.
        blocks: the decoder's attribute that holds the blocks.
        input_norm: a block's norm that its attention reads through, `None` where it reads the stream itself.
        output_norms: a block's norms that its attention's and its MLP's output pass before they join the stream; none in most families.
        embeddings: the decoder's modules that turn ids into the first block's input; an implicit shadow borrows them.
        mlp: config field of the MLP width, `None` where it follows from the hidden width.
        kv_heads: config field of the number of key and value heads, `None` where there is none.
        head_dim: config field of the width of an attention head, `None` where it follows from the hidden width.
        context: config field of the most positions, `None` where there is no limit.
        passes_kwargs: the decoder hands unknown keyword arguments to its blocks, so the frame can travel as one.
        takes_positions: the decoder accepts `position_ids`.
        packs: without a mask, the decoder tells the documents of a packed row by positions that begin anew.
        mask_fills_cache: its position bias is as long as the attention mask, so with a static cache the mask must be as long as its room.
        rope_switch: config field of the length at which the rotary factors change, so that what was cached before is void.
        softcaps: the logits pass through `cap * tanh(logits / cap)` when the config sets a cap.
        masks_itself: given no mask, its blocks' attention (`sdpa`) lets each token see all before it and none after.
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


# Elsewhere the first of these names is that of the norm before the MLP.
_BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("Llama", "llama", "LlamaForCausalLM", "LlamaForSequenceClassification", masks_itself=True),
        Family("Mistral", "mistral", "MistralForCausalLM", "MistralForSequenceClassification", masks_itself=True),
        Family("Qwen2", "qwen2", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification", head_dim=None, masks_itself=True),
        Family("Qwen3", "qwen3", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification", masks_itself=True),
        Family("Qwen3-MoE", "qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeForSequenceClassification", masks_itself=True),
        Family("Gemma 2", "gemma2", "Gemma2ForCausalLM", "Gemma2ForSequenceClassification", output_norms=_BEHIND, softcaps=True),
        Family(
            "Gemma 3 (text)", "gemma3_text", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification", output_norms=_BEHIND,
            softcaps=True, masks_itself=True,
        ),
        Family(
            "Phi-3", "phi3", "Phi3ForCausalLM", "Phi3ForSequenceClassification", head_dim=None,
            rope_switch="original_max_position_embeddings", masks_itself=True,
        ),
        Family(
            "OLMo 2", "olmo2", "Olmo2ForCausalLM", "Olmo2ForSequenceClassification", head_dim=None, input_norm=None,
            output_norms=_BEHIND, masks_itself=True,
        ),
        Family(
            "OPT", "opt", "OPTForCausalLM", "OPTForSequenceClassification", decoder="model.decoder", input_norm="self_attn_layer_norm",
            embeddings=("embed_tokens", "embed_positions"), mlp="ffn_dim", kv_heads=None, head_dim=None, packs=False,
        ),
        Family(
            "GPT-2", "gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification", decoder="transformer", blocks="h", input_norm="ln_1",
            embeddings=("wte", "wpe"), mlp="n_inner", kv_heads=None, head_dim=None,
        ),
        Family(
            "GPT-NeoX", "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification", decoder="gpt_neox",
            embeddings=("embed_in",), kv_heads=None, head_dim=None,
        ),
        Family(
            "Falcon", "falcon", "FalconForCausalLM", "FalconForSequenceClassification", decoder="transformer", blocks="h",
            embeddings=("word_embeddings",), mlp="ffn_hidden_size", kv_heads="num_kv_heads", head_dim=None,
            passes_kwargs=False, packs=False,
        ),
        Family(
            "BLOOM", "bloom", "BloomForCausalLM", "BloomForSequenceClassification", decoder="transformer", blocks="h",
            embeddings=("word_embeddings", "word_embeddings_layernorm"), mlp=None, kv_heads=None, head_dim=None, context=None,
            passes_kwargs=False, takes_positions=False, packs=False, mask_fills_cache=True,
        ),
        Family(
            "GPT-J", "gptj", "GPTJForCausalLM", "GPTJForSequenceClassification", decoder="transformer", blocks="h", input_norm="ln_1",
            embeddings=("wte",), mlp="n_inner", kv_heads=None, head_dim=None, passes_kwargs=False,
        ),
    )
}  # fmt: skip


def supported() -> str:
    """Name the supported families in one line."""
    return ", ".join(family.name for family in FAMILIES.values())


def family_of(model: PreTrainedModel) -> Family:
    """Find the row of a model.

    Raises:
        UnsupportedModelError: the model's family or class is not in the table, or it is an OPT with projected embeddings.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"expected a loaded transformers model, got {type(model).__name__}; load it with AutoModelForCausalLM.from_pretrained(...)"
        )
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {model.config.model_type!r}) is not supported; supported: {supported()}"
        )
    classes = (getattr(transformers, family.causal), getattr(transformers, family.classifier))
    if not isinstance(model, classes):
        raise UnsupportedModelError(f"expected a {family.causal} or {family.classifier}, got {type(model).__name__}")
    if family.model_type == "opt" and model.config.word_embed_proj_dim != model.config.hidden_size:
        raise UnsupportedModelError(
            "OPT with word_embed_proj_dim != hidden_size (opt-350m) is not supported: its head is narrower than its blocks"
        )
    return family


def family_of_config(config: PretrainedConfig) -> Family:
    """Find the row of a configuration read from a file.

    Raises:
        UnsupportedModelError: the family is not in the table.
    """
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(f"model_type {config.model_type!r} is not supported; supported: {supported()}")
    return FAMILIES[config.model_type]


def context_of(config: PretrainedConfig) -> int | None:
    """Return how many positions a model takes, `None` for no limit of its own."""
    field = family_of_config(config).context
    return None if field is None else int(getattr(config, field))


def rope_switch_of(config: PretrainedConfig) -> int | None:
    """Return the length from which on a model computes other positions, `None` if it never does."""
    field = family_of_config(config).rope_switch
    return None if field is None else getattr(config, field, None)


def task_of(model: PreTrainedModel) -> Task:
    """Tell a causal language model from a sequence classifier."""
    return "causal-lm" if isinstance(model, getattr(transformers, family_of(model).causal)) else "sequence-classification"


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the module that loops over the blocks."""
    decoder = model.get_submodule(family_of(model).decoder)
    assert isinstance(decoder, PreTrainedModel)
    return decoder


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the blocks in order."""
    blocks = decoder_of(model).get_submodule(family_of(model).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def needs_no_mask(config: PretrainedConfig, index: int, tokens: int) -> bool:
    """Tell whether a block's attention is right without a mask for whole rows of so many tokens that are one document each, unpadded."""
    if not FAMILIES[config.model_type].masks_itself or config._attn_implementation != "sdpa":
        return False
    if getattr(config, "use_bidirectional_attention", False):  # a Gemma 3 that was made an encoder
        return False
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and layer_types[index] == "full_attention":
        return True
    window = getattr(config, "sliding_window", None)
    return window is None or tokens <= window


def input_norm_of(block: nn.Module, family: Family) -> Callable[[Tensor], Tensor]:
    """Return the norm that a block's attention reads the stream through; the identity where there is none.

    Falcon's newer layout keeps one norm for the attention beside another for the MLP, under a name of its own. An OPT may put its norms
    behind the attention and the MLP.
    """
    if family.input_norm is None or (family.model_type == "opt" and not block.do_layer_norm_before):
        return _unchanged
    name = "ln_attn" if family.model_type == "falcon" and hasattr(block, "ln_attn") else family.input_norm
    return getattr(block, name)


def output_gains(model: PreTrainedModel) -> list[Tensor] | None:
    """Tell for each block how its attention and MLP share out what they write over the channels of the stream.

    c = sqrt(w_1^2 + w_2^2) / mean(sqrt(w_1^2 + w_2^2)), w_i the weights of the norms behind the two

    A norm's output has its weights for a size, whatever it normed. `None` for a family without such norms.
    """
    names = family_of(model).output_norms
    if not names:
        return None
    gains = []
    for block in blocks_of(model):
        first_D, second_D = (_rms_weight(block.get_submodule(name)) for name in names)
        size_D = torch.hypot(first_D, second_D)
        gains.append(size_D / size_D.mean())
    return gains


def _rms_weight(norm: nn.Module) -> Tensor:
    if norm.get_parameter("weight").is_meta and is_accelerate_available():  # perhaps offloaded: accelerate has the values
        from accelerate.utils import align_module_device

        context: AbstractContextManager[None] = align_module_device(norm)
    else:
        context = nullcontext()
    with torch.device("cpu"), context:  # on no other device that the caller builds on: values that are read from disk are needed now
        parts = norm_parts(norm)
        assert parts is not None, f"{type(norm).__name__} is missing in _RMS_NORMS"
        assert parts.weight is not None
        wide = torch.promote_types(parts.weight.dtype, torch.float32)
        return parts.weight.detach().to(wide) + parts.offset


def _unchanged(h_BTD: Tensor) -> Tensor:
    return h_BTD


class NormParts(NamedTuple):
    """What a norm computes, for a kernel that folds it into a product.

    kind `rms`: h (weight + offset) / sqrt(mean(h^2) + eps); `layer`: torch's LayerNorm; `none`: h itself.
    """

    kind: Literal["none", "rms", "layer"]
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0
    offset: float = 0.0


# The RMS norms of the table's families: the attribute that holds epsilon, and what is added to the weight.
_RMS_NORMS = {
    **{f"{name}RMSNorm": ("variance_epsilon", 0.0) for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Qwen3Moe", "Phi3", "Olmo2")},
    **{f"{name}RMSNorm": ("eps", 1.0) for name in ("Gemma2", "Gemma3")},
}


def norm_parts(norm: Callable[[Tensor], Tensor]) -> NormParts | None:
    """Take a norm that `input_norm_of` returned apart; `None` if it is of a class not known here."""
    if norm is _unchanged:
        return NormParts("none")
    if type(norm) is nn.LayerNorm:
        whole = norm.weight is not None and norm.bias is not None
        return NormParts("layer", norm.weight, norm.bias, norm.eps) if whole else None
    if isinstance(norm, nn.Module) and type(norm).__name__ in _RMS_NORMS:
        eps, offset = _RMS_NORMS[type(norm).__name__]
        assert isinstance(norm.weight, Tensor)
        return NormParts("rms", norm.weight, None, getattr(norm, eps), offset)
    return None


def head_of(model: PreTrainedModel) -> nn.Linear:
    """Return the linear head: `lm_head` of a causal language model, `score` of a classifier."""
    head = model.get_submodule("lm_head" if task_of(model) == "causal-lm" else "score")
    assert isinstance(head, nn.Linear)
    return head


def token_embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """Return the table of token embeddings."""
    table = decoder_of(model).get_submodule(family_of(model).embeddings[0])
    assert isinstance(table, nn.Embedding)
    return table


def softcap_of(model: PreTrainedModel) -> float | None:
    """Return the bound that the family's logits pass through, `None` where there is none."""
    return model.config.final_logit_softcapping if family_of(model).softcaps else None


def logits(model: PreTrainedModel, hidden_BTD: Tensor) -> Tensor:
    """Apply the language-model head as the family does: linear, then the soft cap where there is one."""
    logits_BTV, cap = head_of(model)(hidden_BTD), softcap_of(model)
    return logits_BTV if cap is None else cap * (logits_BTV / cap).tanh()


def has_plain_frozen_head(model: PreTrainedModel) -> bool:
    """Tell whether the head is no more than its weight and bias: not trained, quantised, sharded, offloaded or hooked."""
    head = head_of(model)
    weight, bias = head.weight, head.bias
    return (
        type(head) is nn.Linear
        and type(weight) is nn.Parameter
        and weight.shape == (head.out_features, head.in_features)
        and not weight.is_meta
        and not (weight.requires_grad or (bias is not None and bias.requires_grad))
        and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
    )


def mlp_width(config: PretrainedConfig) -> int | None:
    """Return the width of the MLP of a model's blocks, `None` where the family has no setting for it."""
    field = FAMILIES[config.model_type].mlp
    return None if field is None else getattr(config, field) or 4 * config.hidden_size


def with_shadow_sizes(model: PretrainedConfig, config: ShadowConfig) -> ShadowConfig:
    """Fill in the sizes of an implicit shadow that a variant has of its own: in `normed` an MLP of a quarter of the base's width.

    They become numbers, so that an adapter still means the same when a default has changed.
    """
    width = mlp_width(model)
    if config.variant != "normed" or config.shadow_intermediate_size is not None or width is None:
        return config
    return replace(config, shadow_intermediate_size=max(8, width // 32 * 8))


def shadow_model_config(model: PreTrainedModel, config: ResolvedConfig) -> PretrainedConfig:
    """Derive the configuration of an implicit shadow: the base's, with fewer and smaller blocks.

    A mixture-of-experts base gets dense shadow blocks: experts that no token chose would receive no gradient.

    Raises:
        ConfigError: a size is set that the family does not have.
    """
    family = family_of(model)
    sizes = {
        "shadow_intermediate_size": (family.mlp, config.shadow_intermediate_size),
        "shadow_attention_heads": ("num_attention_heads", config.shadow_attention_heads),
        "shadow_key_value_heads": (family.kv_heads, config.shadow_key_value_heads),
        "shadow_head_dim": (family.head_dim, config.shadow_head_dim),
    }
    values = copy.deepcopy(model.config)
    vars(values).pop("quantization_config", None)  # a quantised base gets a plain shadow
    for setting, (field, value) in sizes.items():
        if value is None:
            continue
        if field is None:
            raise ConfigError(f"{setting} cannot be set: {family.name} has no such size; leave it out")
        setattr(values, field, value)
    _check_heads(family, values)
    set_depth(values, config.shadow_layers)
    values.tie_word_embeddings = model.config.tie_word_embeddings
    return values


def _check_heads(family: Family, config: PretrainedConfig) -> None:
    """Refuse heads that do not divide what they must, before transformers' blocks fail on them."""
    heads = config.num_attention_heads
    if family.head_dim is None and config.hidden_size % heads:
        raise ConfigError(f"shadow_attention_heads must divide the base's width {config.hidden_size}, got {heads}")
    if family.head_dim is not None and getattr(config, family.head_dim) is not None and getattr(config, family.head_dim) % 2:
        raise ConfigError(f"shadow_head_dim must be even, got {getattr(config, family.head_dim)}")
    shared = getattr(config, family.kv_heads) if family.kv_heads is not None and family.model_type != "falcon" else None
    if shared and heads % shared:
        raise ConfigError(f"shadow_attention_heads ({heads}) must be a multiple of shadow_key_value_heads ({shared})")


def set_depth(config: PretrainedConfig, layers: int) -> None:
    """Set the number of blocks, and the per-block lists that some configurations keep beside it."""
    if "layer_types" in config.to_dict() and config.layer_types is not None:
        if layers > len(config.layer_types):
            raise ConfigError(f"shadow_layers must be at most the base's {len(config.layer_types)}, got {layers}")
        config.layer_types = config.layer_types[:layers]
    config.num_hidden_layers = layers
    if config.model_type == "qwen3_moe":
        config.mlp_only_layers = list(range(layers))


def build(config: PretrainedConfig, task: Task) -> PreTrainedModel:
    """Build an untrained stock model of a supported family from its configuration."""
    family = family_of_config(config)
    return getattr(transformers, family.causal if task == "causal-lm" else family.classifier)(config)
