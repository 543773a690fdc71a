"""What a shadow is pretrained on, as a module that transformers' Trainer runs: token ids in, a loss out.

Shape legend: B rows, T tokens a row, N = B (T - 1) predicted tokens, D width of the base.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.losses.divergence import Head, divergences
from shadowpeft.losses.linear_ce import token_losses
from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.shadow import Shadow


@dataclass(frozen=True)
class Weights:
    """Weights of the losses and settings of the losses themselves, as in `PretrainConfig`."""

    next_token: float = 1.0
    distil: float = 0.0
    match: float = 0.0
    temperature: float = 1.0
    top_k: int | None = None
    match_block: int | None = None

    @classmethod
    def of(cls, config: PretrainConfig) -> "Weights":
        """Return those of a run's settings."""
        return cls(
            next_token=config.next_token,
            distil=config.distil,
            match=config.match,
            temperature=config.temperature,
            top_k=config.top_k,
            match_block=config.match_block,
        )


class Objective(nn.Module):
    """Compute the weighted losses of a shadow on rows of tokens.

    The base is not a submodule: it is neither moved, saved nor trained with this module, and it runs only if a loss
    compares with it.

    Args:
        base: the frozen base, on the device of the work.
        shadow: what is trained.
        weights: which losses.
    """

    def __init__(self, base: PreTrainedModel, shadow: Shadow, weights: Weights) -> None:
        super().__init__()
        self.shadow, self.weights = shadow, weights
        self._base = (base.requires_grad_(False).eval(),)

    @property
    def base(self) -> PreTrainedModel:
        """The frozen base."""
        return self._base[0]

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return the weighted `loss` and each loss in it by name, means over the predicted tokens."""
        weights, head = self.weights, Head.of(self.base)
        s_BTD = self.shadow(input_ids, None, None, None, None)
        s_ND = s_BTD[:, :-1].flatten(0, 1)
        parts = {}
        if weights.next_token:
            parts["next_token"] = token_losses(s_ND, input_ids[:, 1:].flatten(), *head).mean()
        if weights.distil or weights.match:
            read_BTD, matched_BTD = self._base_states(input_ids)
        if weights.distil:
            h_ND = read_BTD[:, :-1].flatten(0, 1)
            parts["distil"] = divergences(s_ND, h_ND, head, weights.temperature, weights.top_k).mean()
        if weights.match:
            parts["match"] = cosine_distance(s_BTD, matched_BTD).mean()
        factors = {"next_token": weights.next_token, "distil": weights.distil, "match": weights.match}
        loss = torch.stack([factors[name] * part for name, part in parts.items()]).sum()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    @torch.no_grad()
    def _base_states(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the base's head reads, and the state that the shadow's is compared with."""
        block = self.weights.match_block if self.weights.match else None
        out = arch.decoder_of(self.base)(
            input_ids=input_ids, use_cache=False, return_dict=True, output_hidden_states=block is not None
        )
        if block is None:
            return out.last_hidden_state, out.last_hidden_state
        # The first of the hidden states is the first block's input.
        return out.last_hidden_state, out.hidden_states[block + 1]

    def trained_values(self) -> int:
        """Count the values of the shadow that train."""
        return sum(weight.numel() for weight in self.shadow.parameters() if weight.requires_grad)

    def plain_loss(self, input_ids: Tensor) -> Tensor:
        """Compute the next-token loss with the logits in memory, as any model does. Speed is compared with it."""
        s_BTD = self.shadow(input_ids, None, None, None, None)
        return F.cross_entropy(
            arch.logits(self.base, s_BTD)[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten()
        )

    @torch.no_grad()
    def shadow_losses(self, input_ids: Tensor) -> Tensor:
        """Compute the next-token losses of the detached shadow, (N,)."""
        return self._losses(self.shadow(input_ids, None, None, None, None), input_ids)

    @torch.no_grad()
    def base_losses(self, input_ids: Tensor) -> Tensor:
        """Compute the next-token losses of the base, (N,)."""
        return self._losses(
            arch.decoder_of(self.base)(
                input_ids=input_ids, use_cache=False, return_dict=True
            ).last_hidden_state,
            input_ids,
        )

    def _losses(self, x_BTD: Tensor, input_ids: Tensor) -> Tensor:
        return token_losses(x_BTD[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten(), *Head.of(self.base))


@torch.no_grad()
def own_loss(model: PreTrainedModel, rows: Sequence[Tensor]) -> float:
    """Return the next-token loss of a stock model through its own head over rows of ids, (T,) each."""
    losses = []
    for row_T in rows:
        x_BTD = arch.decoder_of(model)(
            input_ids=row_T[None], use_cache=False, return_dict=True
        ).last_hidden_state
        losses.append(token_losses(x_BTD[0, :-1], row_T[1:], *Head.of(model)).double())
    return torch.cat(losses).mean().item()


def train_parts(shadow: Shadow, parts: str) -> None:
    """Make the chosen parts of a shadow trainable and freeze the rest. Embeddings that it borrows are never trained.

    Args:
        shadow: the shadow.
        parts: `projection`, `all-but-embeddings` or `everything`.
    """
    shadow.requires_grad_(parts != "projection")
    if shadow.projection is not None:
        shadow.projection.requires_grad_(True)
    if parts == "all-but-embeddings" and not shadow.borrows:
        for name in shadow.family.embeddings:
            shadow.backbone.get_submodule(name).requires_grad_(False)


@contextmanager
def parts_trained(shadow: Shadow, parts: str) -> Iterator[list[nn.Parameter]]:
    """Make the chosen parts trainable, as `train_parts` does, while the context lasts; yield their weights."""
    before = [(parameter, parameter.requires_grad) for parameter in shadow.parameters()]
    train_parts(shadow, parts)
    try:
        yield [parameter for parameter, _ in before if parameter.requires_grad]
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def cosine_distance(s_ND: Tensor, h_ND: Tensor) -> Tensor:
    """Compute 1 - cos(s, h) of each token, (N,). It compares directions and ignores sizes; h gets no gradient."""
    return 1 - F.cosine_similarity(s_ND.float(), h_ND.detach().float(), dim=-1)
