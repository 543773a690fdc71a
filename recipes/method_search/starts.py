"""Other starts of an adapter's weights: from a block's weights, from data, or as a mean of embeddings."""

from typing import Any

import torch
from torch import Tensor, nn

from shadowpeft import arch


def directions_read(block: Any) -> Tensor:
    """Return the unit directions that the linear layers of a block read, the strongest first.

    Only for families with Llama's names.
    """
    attention, mlp = block.self_attn, block.mlp
    gram_DD = torch.tensor(0.0)
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        weight = layer.weight.float()
        # Each layer counts the same, whatever the size of its weights.
        gram_DD = gram_DD + weight.T @ weight / weight.square().sum()
    return torch.linalg.eigh(gram_DD).eigenvectors.flip(-1).T


@torch.no_grad()
def start_from_data(injection: Any, delta_BTD: Tensor) -> None:
    """Point W_down where delta varies most, each direction scaled to unit variance."""
    injection.started = True
    delta_ND = delta_BTD.float().flatten(0, -2)
    centred_ND = delta_ND - delta_ND.mean(0)
    with torch.autocast(delta_BTD.device.type, enabled=False):
        values_D, vectors_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / len(centred_ND))
    rank = len(injection.down.weight)
    strongest_R = values_D.flip(0)[:rank].clamp_min(values_D[-1] * 1e-4)
    injection.down.weight.copy_(vectors_DD.flip(-1).T[:rank] * strongest_R.rsqrt()[:, None])


@torch.no_grad()
def copy_block(backbone: nn.Module, base: Any) -> None:
    """Copy the base's first block, cut to the shadow's sizes, and its final norm.

    Only for families with Llama's names.
    """
    ours = dict(backbone.get_submodule("layers.0").named_parameters())
    theirs = dict(arch.blocks_of(base)[0].named_parameters())
    strength = (
        theirs["mlp.gate_proj.weight"].norm(dim=1)
        * theirs["mlp.up_proj.weight"].norm(dim=1)
        * theirs["mlp.down_proj.weight"].norm(dim=0)
    )
    best = strength.topk(len(ours["mlp.gate_proj.weight"])).indices.sort().values
    for name, weight in ours.items():
        source = theirs[name].to(weight)
        if name.startswith("mlp.down"):
            source = source[:, best]
        elif name.startswith("mlp."):
            source = source[best]
        weight.copy_(source[tuple(map(slice, weight.shape))])
    backbone.get_parameter("norm.weight").copy_(arch.decoder_of(base).get_parameter("norm.weight"))


@torch.no_grad()
def start_as_mean(backbone: Any) -> None:
    """Start the attention of a shadow's blocks as a projected mean of what they read.

    For Gemma 3, Qwen 2 and Llama. Queries of zero look at every token alike. Values are read through
    orthonormal rows and written back through the same rows, once for all heads that share them.
    """
    for layer in backbone.layers:
        attention = layer.self_attn
        if "q_norm" in dict(attention.named_children()):
            # A query of zero has no direction to norm: its norm's factor is 0. Gemma's factor is 1 + weight.
            attention.q_norm.weight.fill_(-1.0 if "Gemma" in type(attention.q_norm).__name__ else 0.0)
        else:
            attention.q_proj.weight.zero_()
        for projection in (attention.q_proj, attention.v_proj):
            if projection.bias is not None:
                projection.bias.zero_()
        values_ED = attention.v_proj.weight
        values_ED.copy_(torch.linalg.qr(torch.randn_like(values_ED, dtype=torch.float32).T)[0].T)
        shares = attention.o_proj.in_features // len(values_ED)
        by_head_KHD = values_ED.unflatten(0, (-1, attention.head_dim)).repeat_interleave(shares, 0)
        attention.o_proj.weight.copy_(by_head_KHD.flatten(0, 1).T / shares)
