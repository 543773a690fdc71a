"""One tiny model per supported family, small enough for every test and odd enough to show faults.

Grouped-query attention where the family has it, sliding windows shorter than the test sequences, a soft cap
that bends the logits, and weights (norms and biases too) large enough that no comparison holds by accident.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from shadowpeft import ShadowConfig, ShadowedModel, arch, attach

# Four blocks: the variant `paper` then crosses two updates, the least that shows a state which is not handed
# on.
VOCAB, WIDTH, BLOCKS, WINDOW, LABELS = 97, 32, 4, 5, 3

# Most heads are untied: a tied head on random weights only repeats the last token, and generation would test
# little.
_TOKENS = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    **_TOKENS,
}
_GATED = {
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    **_SIZES,
}

_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_conv_kernel_dim": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
# The kinds of MLP of DeepSeek's later relatives; in earlier ones a number says how many blocks are dense.
_KINDS = {"mlp_layer_types": ["dense", "sparse"] * 2}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
# DeepSeek's kind.
_ROUTED = {**_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
# More heads than one needs: with few, scores are often zero, and which of equal ones are chosen is by chance.
_INDEXER = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 16}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 2,
    "mamba_expand": 2,
    "mamba_chunk_size": 4,
}
_GPT = {
    **_TOKENS, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64, "initializer_range": 0.2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip

# What each family's tiny configuration has beside the sizes above.
_CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    # The base mixes full and sliding blocks; its shadow, one block, is full.
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 8},
    "qwen3_moe": {**_EXPERTS, "head_dim": 8, "num_experts": 4},
    "gemma2": {
        "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "final_logit_softcapping": 3.0
    },
    "gemma3_text": {**_SLIDING, "head_dim": 8, "query_pre_attn_scalar": 8},
    "phi3": {},
    "olmo2": {},
    "apertus": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "arcee": {"head_dim": 8},
    "bitnet": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {**_SLIDING, "logit_scale": 0.25},
    "cohere2_moe": {**_SLIDING, **_KINDS, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
        "logit_scale": 0.25},
    "cwm": {**_SLIDING, "head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "deepseek_v2": {**_ROUTED, **_LATENT, "first_k_dense_replace": 2},
    "deepseek_v3": {**_ROUTED, **_LATENT, "first_k_dense_replace": 2},
    "deepseek_v32": {**_ROUTED, **_LATENT, **_KINDS, **_INDEXER},
    "dots1": {**_ROUTED, "first_k_dense_replace": 2},
    "ernie4_5": {"head_dim": 8},
    "ernie4_5_moe": {
        "moe_intermediate_size": 24, "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1, "moe_layer_end_index": 3,
    },
    "exaone4": {**_SLIDING},
    "exaone_moe": {**_SLIDING, **_EXPERTS, **_KINDS, "num_experts": 4, "num_shared_experts": 1},
    "falcon_h1": {
        **_MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5, "attention_out_multiplier": 0.5,
        "ssm_multipliers": [0.5, 1.0, 2.0, 1.5, 0.7], "ssm_in_multiplier": 1.5,
    },
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"head_dim": 8},
    # Blocks with experts and tables, as no published model has both; the last two read the keys of others.
    "gemma4_text": {
        **_SLIDING, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
        "attention_k_eq_v": True, "final_logit_softcapping": 3.0, "hidden_size_per_layer_input": 6,
        "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24,
    },
    "gemma4_unified_text": {
        **_SLIDING, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
        "attention_k_eq_v": True, "final_logit_softcapping": 3.0,
    },
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": {**_ROUTED, "first_k_dense_replace": 2},
    "glm4_moe_lite": {**_ROUTED, **_LATENT, **_KINDS},
    "glm_moe_dsa": {**_ROUTED, **_LATENT, **_KINDS, **_INDEXER},
    "gpt_oss": {**_SLIDING, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "granitemoe": {"logits_scaling": 4.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": {
        **_MAMBA, "layer_types": ["linear_attention", "full_attention"] * 2,
        "position_embedding_type": "rope",
        "shared_intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2,
        "logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0,
    },
    "granitemoeshared": {
        "logits_scaling": 4.0, "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
    },
    "granitemoe_swa": {
        **_SLIDING, "logits_scaling": 4.0, "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
    },
    "granite_swa": {**_SLIDING, "logits_scaling": 4.0, "residual_multiplier": 0.5},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "hy_v3": {**_EXPERTS, **_KINDS, "head_dim": 8, "num_experts": 4, "num_shared_experts": 1},
    "hyperclovax": {"head_dim": 8, "attention_multiplier": 0.35, "logits_scaling": 0.25},
    "jais2": {"head_dim": 8},
    "jamba": {
        "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_d_state": 8, "mamba_d_conv": 2, "mamba_dt_rank": 4,
    },
    "kimi_linear": {
        **_LATENT, **_KINDS, "q_lora_rank": None, "moe_intermediate_size": 24, "num_experts": 4,
        "num_experts_per_token": 2, "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_head_dim": 8, "linear_num_heads": 4, "linear_conv_kernel_dim": 2, "model_max_length": 64,
    },
    "lfm2_moe": {
        **_EXPERTS, "layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 2, "num_experts": 4,
        "num_dense_layers": 2,
    },
    "lfm3": {
        "head_dim": 8, "layer_types": ["conv", "full_attention", "conv", "sliding_attention"],
        "sliding_window": WINDOW, "conv_L_cache": 2,
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 2, "block_auto_adjust_ff_dim": False
    },
    "llama4_text": {
        "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1,
        "moe_layers": [1, 3], "attention_chunk_size": 16,
    },
    "mellum": {**_SLIDING, **_EXPERTS, **_KINDS, "head_dim": 8, "num_local_experts": 4},
    "mimo_v2_flash": {**_SLIDING, **_ROUTED, **_KINDS, "head_dim": 8, "v_head_dim": 6},
    "minimax_m2": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral": {**_SLIDING, "head_dim": 8},
    "ministral3": {
        "sliding_window": WINDOW, "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 8},
    },
    "mixtral": {"sliding_window": WINDOW, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "nanochat": {"final_logit_softcapping": 3.0},
    "nemotron": {"head_dim": 8},
    # Squared activations make rounding visible if weights are as large as in the others.
    "nemotron_h": {
        "initializer_range": 0.1, "head_dim": 8,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "conv_kernel": 2,
        "chunk_size": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24,
    },
    "olmo": {},
    "olmo3": {**_SLIDING},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "persimmon": {},
    "phi": {},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.0},
    "qwen2_moe": {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24},
    "qwen3_next": {
        **_LINEAR, **_EXPERTS, "head_dim": 8, "num_experts": 4, "shared_expert_intermediate_size": 24
    },
    "qwen3_5_text": {**_LINEAR, "head_dim": 8},
    "qwen3_5_moe_text": {
        **_LINEAR, **_EXPERTS, "head_dim": 8, "num_experts": 4, "shared_expert_intermediate_size": 24
    },
    "seed_oss": {"head_dim": 8, "residual_dropout": 0.0, "attention_dropout": 0.0},
    "smollm3": {},
    "solar_open": {**_ROUTED, "head_dim": 8},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
    "vaultgemma": {**_SLIDING, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "afmoe": {**_SLIDING, **_EXPERTS, "head_dim": 8, "num_experts": 4, "num_dense_layers": 2},
}  # fmt: skip
# Families whose configurations have names of their own for these sizes.
_OTHERS: dict[str, dict[str, Any]] = {
    "opt": {
        **_TOKENS, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "ffn_dim": 48,
        "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64, "dropout": 0.0, "init_std": 0.2,
    },
    "gpt2": {**_GPT, "tie_word_embeddings": True},
    "gpt_bigcode": {**_GPT, "tie_word_embeddings": True},
    "gptj": {**_GPT, "rotary_dim": 4},
    "gpt_neox": {**_SIZES, "intermediate_size": 48, "max_position_embeddings": 64},
    "falcon": {**_SIZES, "num_kv_heads": 2, "new_decoder_architecture": True, "max_position_embeddings": 64},
    "bloom": {
        **_TOKENS, "hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": 4, "initializer_range": 0.2,
        "hidden_dropout": 0.0, "attention_dropout": 0.0,
    },
}  # fmt: skip
# What their rows say is also said in others, so what breaks them breaks one of those. Some of their tests
# run in CI (conftest.py says which), the others by themselves (`make test-families`).
LIKE_ANOTHER = {
    "apertus", "arcee", "bitnet", "cohere", "cohere2_moe", "cwm", "deepseek_v2", "deepseek_v32", "dots1",
    "ernie4_5", "ernie4_5_moe", "exaone_moe", "flex_olmo", "gemma4_unified_text", "glm", "glm4_moe",
    "glm4_moe_lite", "gpt_bigcode", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "jais2",
    "lfm2_moe", "lfm3", "mellum", "mimo_v2_flash", "minimax_m2", "ministral", "olmo", "olmo3", "olmoe",
    "persimmon", "phi", "qwen2_moe", "qwen3_5_moe_text", "seed_oss", "smollm3", "solar_open", "stablelm",
    "starcoder2", "vaultgemma",
}  # fmt: skip
# Those of every row of the table, and those that the installed transformers knows: older ones lack some.
EVERY: dict[str, dict[str, Any]] = {
    **{name: {**_GATED, **changes} for name, changes in _CHANGES.items()},
    **_OTHERS,
}
TINY = {name: sizes for name, sizes in EVERY.items() if name in CONFIG_MAPPING}


def tiny_config(model_type: str, **changes: object) -> PretrainedConfig:
    """Make the tiny configuration of a family, with some fields changed."""
    config: PretrainedConfig = AutoConfig.for_model(model_type, **copy.deepcopy(TINY[model_type]))
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def tiny_model(
    model_type: str,
    task: arch.Task = "causal-lm",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """Build the base: random but reproducible, in evaluation mode; `config` in place of the family's tiny
    one.
    """
    config = config or tiny_config(model_type)
    if task == "sequence-classification":
        if arch.FAMILIES[model_type].classifier is None:
            pytest.skip("transformers has no such classifier")
        config.num_labels = LABELS
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = arch.build(config, task)
    jolt(model, seed, 0.05, all_of_it=True)
    return model.to(dtype).eval()


def attached(
    base: PreTrainedModel, config: ShadowConfig | None = None, shadow: PreTrainedModel | None = None
) -> ShadowedModel:
    """Attach a shadow whose random start is always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return attach(base, config, shadow)


def perturb(model: ShadowedModel, seed: int = 1, std: float = 0.3) -> ShadowedModel:
    """Move every trainable tensor (W_up too, which starts at zero) far enough that the shadow visibly acts;
    in place.
    """
    jolt(model, seed, std)
    return model


@torch.no_grad()
def jolt(model: PreTrainedModel, seed: int, std: float, all_of_it: bool = False) -> None:
    """Add noise to the weights that train, or to all of them; in place."""
    generator = torch.Generator().manual_seed(seed + 1000)
    for parameter in model.parameters():
        if all_of_it or parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((std * noise).to(parameter))
    if not all_of_it:
        return
    learnt = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    # Factors and biases that a checkpoint holds and no gradient reaches, such as `layer_scalar` in Gemma 4.
    for name, buffer in model.state_dict().items():
        if name not in learnt and buffer.is_floating_point():
            noise = torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
            buffer.add_((std * noise).to(buffer))


def token_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Draw ids that are neither padding nor any other special token."""
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stack rows of different lengths: ids, mask and the positions that count tokens only, each (B, T)."""
    length = max(len(row) for row in rows)
    ids, mask = (
        torch.zeros(len(rows), length, dtype=torch.long),
        torch.zeros(len(rows), length, dtype=torch.long),
    )
    for i, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


# Comparing with another implementation of the method

Counterpart = Callable[[str, Mapping[str, torch.Tensor]], torch.Tensor]


def language_batch() -> dict[str, torch.Tensor]:
    """Two rows of different lengths, padded on the right and labelled but for the padding."""
    ids, mask, _ = padded([token_ids(1, 12)[0], token_ids(1, 7, seed=1)[0]], "right")
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def classification_batch() -> dict[str, torch.Tensor]:
    """The same rows with one class each."""
    return {**language_batch(), "labels": torch.tensor([2, 0])}


@torch.no_grad()
def copy_weights(
    ours: ShadowedModel, theirs: Mapping[str, torch.Tensor], counterpart: Counterpart, seed: int = 5
) -> set[str]:
    """Give another implementation our weights and return the names of its tensors that have no place in ours.

    Those get random values, so that they would show wherever they act.

    Args:
        ours: the shadowed model whose adapter is copied.
        theirs: every trainable tensor of the other, by its name.
        counterpart: finds, for one of our names, the (view of the) tensor among theirs.
        seed: of the random values.
    """
    for tensor in theirs.values():
        tensor.fill_(torch.nan)
    for name, tensor in ours.adapters["default"].named_parameters():
        if tensor.requires_grad:
            counterpart(name, theirs).copy_(tensor)
    generator, left = torch.Generator().manual_seed(seed), set()
    for name, tensor in theirs.items():
        if tensor.isnan().any():
            left.add(name)
            fresh = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(torch.where(tensor.isnan(), fresh, tensor))
    return left


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ||a - b|| / ||b||."""
    return ((actual - expected).norm() / expected.norm()).item()


def gradient_errors(
    ours: ShadowedModel, theirs: Mapping[str, torch.Tensor], counterpart: Counterpart
) -> dict[str, float]:
    """Return, for each of our trained tensors, how far its gradient is from its counterpart's."""
    gradients = {name: tensor.grad for name, tensor in theirs.items() if tensor.grad is not None}
    trained = {
        name: tensor for name, tensor in ours.adapters["default"].named_parameters() if tensor.requires_grad
    }
    return {
        name: relative_error(tensor.grad, counterpart(name, gradients)) for name, tensor in trained.items()
    }
