"""Single training steps of tiny shadowed models, and documents to pack."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.families import attached, perturb, tiny_config, tiny_model, token_ids
from shadowpeft import ShadowConfig, ShadowedModel

VARIANTS = ("normed", "paper", "peft")


def build(
    model_type: str,
    base_changes: dict[str, Any] | None = None,
    shadow: PreTrainedModel | None = None,
    **settings: Any,
) -> ShadowedModel:
    """A tiny shadowed model with weights that no initialisation leaves at zero."""
    base = tiny_model(model_type, config=tiny_config(model_type, **(base_changes or {})))
    config = ShadowConfig(**{"r": 4, "update_width": 5, "alpha": 0.5, **settings})
    return perturb(attached(base, config, shadow))


def step(model: nn.Module, batch: dict[str, Tensor], seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    """One training step from a fixed random state: the loss and every gradient."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def documents() -> tuple[list[Tensor], Tensor, Tensor]:
    """Three documents, all of them in one row, and the positions, which begin anew with each."""
    docs = [token_ids(1, length, seed=length) for length in (7, 3, 9)]
    return docs, torch.cat(docs, 1), torch.cat([torch.arange(doc.shape[1]) for doc in docs])[None]
