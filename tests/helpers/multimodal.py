"""A tiny multimodal model of each kind whose text path is taken: the smallest vision parts that build."""

import copy
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from helpers.families import LABELS, TINY, jolt
from shadowpeft import arch
from shadowpeft.arch.multimodal import MULTIMODAL

_BLOCK = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
_IMAGE = {"image_size": 16, "patch_size": 8}
_QWENS = {
    "vision_config": {
        "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 32, "num_position_embeddings": 16,
    },
    "image_token_id": 96, "video_token_id": 95, "vision_start_token_id": 94, "vision_end_token_id": 93,
}  # fmt: skip
# By kind: the family of the language model, and the configuration beside it. The tokens of an image are the
# vocabulary's last ones.
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {
        "vision_config": {"model_type": "siglip_vision_model", **_BLOCK, **_IMAGE},
        "mm_tokens_per_image": 4, "image_token_index": 96, "boi_token_index": 95, "eoi_token_index": 94,
    }),
    "gemma4": ("gemma4_text", {
        "vision_config": {
            **_BLOCK, "num_key_value_heads": 2, "head_dim": 4, "patch_size": 4, "position_embedding_size": 16
        },
        # Never drawn: without an image, Gemma 4 reads its place as padding.
        "image_token_id": 2, "video_token_id": 2, "audio_token_id": 2,
    }),
    "llama4": ("llama4_text", {
        "vision_config": {
            **_BLOCK, **_IMAGE, "projector_input_dim": 8, "projector_output_dim": 8, "vision_output_dim": 8
        },
        "image_token_index": 96, "boi_token_index": 95, "eoi_token_index": 94,
    }),
    "mistral3": ("mistral", {
        "vision_config": {"model_type": "pixtral", **_BLOCK, **_IMAGE, "head_dim": 4},
        "image_token_index": 96,
    }),
    "qwen3_5": ("qwen3_5_text", _QWENS),
    "qwen3_5_moe": ("qwen3_5_moe_text", _QWENS),
    "qwen3_vl": ("qwen3", {
        **_QWENS, "vision_config": {**_QWENS["vision_config"], "deepstack_visual_indexes": [0]}
    }),
}  # fmt: skip
# What a kind's language model has beside the tiny configuration of its family. Gemma 3's causal class of text
# applies a soft cap, and its multimodal class does not.
_TEXT: dict[str, dict[str, Any]] = {
    "gemma3": {"final_logit_softcapping": 0.5},
    "mistral3": {"model_type": "mistral"},
    "qwen3_vl": {
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        }
    },
}  # fmt: skip
FAMILY_OF = {kind: family for kind, (family, _) in _KINDS.items()}
# Those that the installed transformers knows: older ones lack some.
KINDS = sorted(kind for kind in _KINDS if kind in CONFIG_MAPPING and FAMILY_OF[kind] in TINY)


def multimodal_config(kind: str, **text: object) -> PretrainedConfig:
    """Make the tiny configuration of a kind, with some fields of its language model changed."""
    family, others = copy.deepcopy(_KINDS[kind])
    values = {**copy.deepcopy(TINY[family]), **copy.deepcopy(_TEXT.get(kind, {})), **text}
    is_tied = values.pop("tie_word_embeddings")
    config: PretrainedConfig = AutoConfig.for_model(
        kind, text_config=values, tie_word_embeddings=is_tied, **others
    )
    return config


def multimodal_model(kind: str, task: arch.Task = "causal-lm", seed: int = 0, **text: object) -> Any:
    """Build a model: random but reproducible, in evaluation mode."""
    config = multimodal_config(kind, **text)
    config.num_labels = LABELS
    name = MULTIMODAL[kind].class_name(task)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = getattr(transformers, name)(config)
    jolt(model, seed, 0.05, all_of_it=True)
    return model.eval()


def text_logits(model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return a multimodal model's own logits of text."""
    # In transformers 5.24 Llama 4's whole model asks its language model's output for what it does not have.
    if model.config.model_type == "llama4":
        model = model.language_model
    return model(*args, **kwargs).logits
