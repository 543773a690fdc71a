"""Every layout of a block that transformers has for the supported families."""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from helpers.families import TINY, tiny_config

# Beside each family's tiny model, the layouts in which transformers places the norm before the attention
# otherwise.
LAYOUTS = {
    **{name: (name, {}) for name in sorted(TINY)},
    "falcon, one norm": ("falcon", {"num_ln_in_parallel_attn": 1}),
    "falcon, old": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "falcon, not parallel": (
        "falcon",
        {"new_decoder_architecture": False, "parallel_attn": False, "multi_query": True},
    ),
    "gpt_neox, not parallel": ("gpt_neox", {"use_parallel_residual": False}),
    "bloom, residual after the norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "gemma4_text, dense": ("gemma4_text", {"enable_moe_block": False}),
    "gemma4_text, no tables": (
        "gemma4_text",
        {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_k_eq_v": False},
    ),
    "opt, norms behind": ("opt", {"do_layer_norm_before": False}),
}


def layout(name: str) -> PretrainedConfig:
    model_type, changes = LAYOUTS[name]
    return tiny_config(model_type, **changes)


def inputs_of(modules: list[nn.Module], seen: list[Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
    """Note the hidden states that each module is called with, in the order of the calls."""

    def note(module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    return [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
