"""The warm start of the projection P: three fits that bring the base's head near to the smaller model's own.

The head reads s^(0) = P x as it is, with no norm between, both attached (eq. 8) and detached. So P is fitted
in the units of what the head reads: to the smaller model's logits (`pinv`, `weighted`) or to the base's own
state behind its final norm (`ridge`). A soft cap comes after the logits and is left out. So are the heads'
biases, which no P can change. All sums are in float64, a few rows of the heads at a time.

Shape legend: V vocabulary, v rows of it in hand, D width of the base, d width of the smaller model, N tokens.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.errors import ConfigError, UnsupportedModelError
from shadowpeft.shadow import Shadow

Method = Literal["pinv", "weighted", "ridge"]
# Rows of a head turned to float64 at once: 100 MB for a width of 1,536.
_ROWS = 8192
# The share of all weight that is spread evenly over the vocabulary: a token that the text lacks, or a padding
# row that no token has, is in the softmax all the same.
EVENLY = 0.02
_STRENGTHS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Fit:
    """A fitted projection and how well it fits.

    Attributes:
        weight_Dd: P.
        in_weights: ||C (W_base P - W)|| / ||C W||, where C takes from each column its mean over the
            vocabulary: a constant added to all logits of a position changes no probability.
        in_logits: the same of the logits W_base P x and W x, over held-out hidden states x. `ridge` does not
            aim at these.
        in_states: ||P x - y|| / ||y|| over held-out text, where y is what the base's own head reads; `None`
            if the base was not run.
        strength: what `ridge` chose, as a share of the states' mean square; `None` for the others.
        state_rms: root mean square of s^(0) = P x, on held-out text.
        target_rms: the same of what the base's own head reads, if it was run; a boundary of the variant
            `normed` compares at 1.
    """

    weight_Dd: Tensor
    in_weights: float
    in_logits: float
    in_states: float | None
    strength: float | None
    state_rms: float
    target_rms: float | None


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of text: all that the fits need of hidden states.

    Attributes:
        tokens: how many were read.
        xx_dd: sum of x x^T, where x is what the smaller model's own head reads.
        yx_Dd: sum of y x^T, where y is what the base's head reads; `None` if the base was not run.
        yy: sum of ||y||^2.
    """

    tokens: int
    xx_dd: Tensor
    yx_Dd: Tensor | None
    yy: float

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: PreTrainedModel, batches: Iterable[Tensor], base: PreTrainedModel | None = None
    ) -> "Moments":
        """Read rows of token ids, each (B, T) and without padding.

        Args:
            model: the smaller model, whose decoder is or will be the shadow's.
            batches: the text.
            base: run beside it; leave it out where nothing asks for its states.

        Raises:
            ConfigError: there is no text.
        """
        device, width = _exact(arch.token_embedding_of(model).weight.device), model.config.hidden_size
        xx_dd = torch.zeros(width, width, dtype=torch.float64, device=device)
        tokens, yy, yx_Dd = 0, 0.0, None
        if base is not None:
            yx_Dd = torch.zeros(base.config.hidden_size, width, dtype=torch.float64, device=device)
        for ids_BT in batches:
            x_Nd = _states(model, ids_BT, device)
            xx_dd += x_Nd.T @ x_Nd
            tokens += ids_BT.numel()
            if base is not None and yx_Dd is not None:
                y_ND = _states(base, ids_BT, device)
                yx_Dd += y_ND.T @ x_Nd
                yy += y_ND.square().sum().item()
        _refuse_no_text(tokens)
        return cls(tokens, xx_dd, yx_Dd, yy=yy)

    def miss(self, weight_Dd: Tensor) -> float:
        """Sum ||y - P x||^2 over the text, from the sums alone: tr(P X P^T) - 2 tr(P^T Y) + sum ||y||^2."""
        assert self.yx_Dd is not None
        return self.square_of(weight_Dd) - 2 * (weight_Dd * self.yx_Dd).sum().item() + self.yy

    def square_of(self, weight_Dd: Tensor) -> float:
        """Sum ||P x||^2 over the text, tr(P X P^T)."""
        return ((weight_Dd @ self.xx_dd) * weight_Dd).sum().item()


def start(
    shadow: Shadow,
    base: PreTrainedModel,
    model: PreTrainedModel,
    method: Method,
    text: Iterable[Tensor],
    held_out: Iterable[Tensor],
) -> Fit:
    """Fit a shadow's projection and copy it into the shadow.

    Args:
        shadow: explicit, made of `model`.
        base: the frozen base.
        model: the smaller model, with its own head.
        method: `pinv`, `weighted` or `ridge`.
        text: rows of token ids to fit on, each (B, T) and without padding; `pinv` does not read them.
        held_out: other rows, on which the errors are measured; `ridge` chooses its strength on them.

    Raises:
        ConfigError: the shadow has no projection, a head is missing what the fit needs, or there is no text.
        UnsupportedModelError: a head is quantised or not in memory.
    """
    if shadow.projection is None:
        raise ConfigError(
            f"the shadow has the base's width, {base.config.hidden_size}, and so no projection to start; "
            "leave the warm start out, or choose a narrower model"
        )
    found = fit(base, model, method, text=text, held_out=held_out)
    with torch.no_grad():
        shadow.projection.weight.copy_(found.weight_Dd)
    return found


def fit(
    base: PreTrainedModel,
    model: PreTrainedModel,
    method: Method,
    text: Iterable[Tensor],
    held_out: Iterable[Tensor],
) -> Fit:
    """Fit a projection; arguments and errors as `start`."""
    base_VD, own_Vd, strength = head_weight(base), head_weight(model), None
    judge = Moments.of(model, held_out, base if method == "ridge" else None)
    if method == "pinv":
        weight_Dd = pinv(base_VD, own_Vd)
    elif method == "weighted":
        weight_Dd = weighted(base_VD, own_Vd, frequencies(text, len(base_VD)))
    else:
        weight_Dd, strength = ridge(Moments.of(model, text, base), judge)
    return judged(base_VD, own_Vd, weight_Dd, held_out=judge, strength=strength)


def judged(
    base_VD: Tensor, own_Vd: Tensor, weight_Dd: Tensor, held_out: Moments, strength: float | None = None
) -> Fit:
    """Measure how well a projection fits, from sums over held-out text.

    Args:
        base_VD: the base's head.
        own_Vd: the smaller model's head.
        weight_Dd: P.
        held_out: sums over the text.
        strength: what `ridge` chose, kept as it is.
    """
    width, narrow = weight_Dd.shape
    identity_dd = torch.eye(narrow, dtype=torch.float64, device=weight_Dd.device)
    in_states = target_rms = None
    if held_out.yx_Dd is not None:
        in_states = (held_out.miss(weight_Dd) / held_out.yy) ** 0.5
        target_rms = (held_out.yy / held_out.tokens / width) ** 0.5
    return Fit(
        weight_Dd,
        in_weights=reconstruction_error(base_VD, own_Vd, weight_Dd, xx_dd=identity_dd),
        in_logits=reconstruction_error(base_VD, own_Vd, weight_Dd, xx_dd=held_out.xx_dd),
        in_states=in_states,
        strength=strength,
        state_rms=(held_out.square_of(weight_Dd) / held_out.tokens / width) ** 0.5,
        target_rms=target_rms,
    )


def frequencies(text: Iterable[Tensor], vocabulary: int, evenly: float = EVENLY) -> Tensor:
    """Return the share of each token in the text, (V,). No model is run.

    Args:
        text: rows of token ids.
        vocabulary: V, the number of tokens.
        evenly: part of all shares that is spread evenly over the vocabulary.

    Raises:
        ConfigError: there is no text.
    """
    counts_V = torch.zeros(vocabulary, dtype=torch.float64)
    for ids_BT in text:
        counts_V += torch.bincount(ids_BT.flatten(), minlength=vocabulary).cpu()
    tokens = int(counts_V.sum())
    _refuse_no_text(tokens)
    return (1 - evenly) * counts_V / tokens + evenly / vocabulary


def pinv(base_VD: Tensor, own_Vd: Tensor) -> Tensor:
    """Return pinv(W_base) W, as published: least squares over the weights, with all rows weighted the same.

    Args:
        base_VD: the base's head.
        own_Vd: the smaller model's head.

    Returns:
        P, (D, d), in float64.
    """
    uniform_V = torch.ones(len(base_VD), dtype=torch.float64, device=_exact(base_VD.device))
    gram_DD, cross_Dd, _, _ = _sums(base_VD, own_Vd, uniform_V)
    return _solve(gram_DD, cross_Dd)


def weighted(base_VD: Tensor, own_Vd: Tensor, frequency_V: Tensor) -> Tensor:
    """Return the least squares in which each row has the weight of its token's frequency.

    A constant added to all logits changes no probability, so it may differ between the heads for each state
    x. The best constant is the weighted mean, so each head is centred by its own.

    Args:
        base_VD: the base's head.
        own_Vd: the smaller model's head.
        frequency_V: weights of the rows, none negative; only their ratios matter.

    Returns:
        P, (D, d), in float64.
    """
    share_V = frequency_V.to(_exact(base_VD.device), torch.float64)
    share_V = share_V / share_V.sum()
    gram_DD, cross_Dd, mean_D, mean_d = _sums(base_VD, own_Vd, share_V)
    return _solve(gram_DD - torch.outer(mean_D, mean_D), cross_Dd - torch.outer(mean_D, mean_d))


def ridge(text: Moments, held_out: Moments) -> tuple[Tensor, float]:
    """Return the ridge regression from the smaller model's states to the states that the base's head reads.

    It has no intercept, as P has none. The strength is a share of the mean square of x: of a few, the one
    with the least error on the held-out text.

    Args:
        text: sums over the text to fit on, with the base run beside it.
        held_out: the same over other text.

    Returns:
        P, (D, d), in float64, and the strength.
    """
    assert text.yx_Dd is not None
    size = text.xx_dd.diagonal().mean()
    # One decomposition serves all strengths: each adds the same number to all eigenvalues.
    values_d, vectors_dd = torch.linalg.eigh(text.xx_dd)
    turned_Dd = text.yx_Dd @ vectors_dd
    best, chosen, least = None, 0.0, float("inf")
    for strength in _STRENGTHS:
        eased_d = values_d + strength * size
        # Fewer tokens than widths leave eigenvalues of 0, up to rounding. What has such a value is left out.
        kept_d = eased_d > values_d[-1] * len(values_d) * torch.finfo(torch.float64).eps
        weight_Dd = (turned_Dd * torch.where(kept_d, 1 / eased_d, 0)) @ vectors_dd.T
        miss = held_out.miss(weight_Dd)
        if miss < least:
            best, chosen, least = weight_Dd, strength, miss
    assert best is not None
    return best, chosen


def reconstruction_error(base_VD: Tensor, own_Vd: Tensor, weight_Dd: Tensor, xx_dd: Tensor) -> float:
    """Return ||W_base P x - W x|| / ||W x|| over states x, the mean logit of each position subtracted.

    It is exact, though no logits are computed: with E = W_base P - W, centred by its mean row, the sum of
    squares over all states is tr(E X E^T).

    Args:
        base_VD: the base's head.
        own_Vd: the smaller model's head.
        weight_Dd: P.
        xx_dd: X, the second moments of the states; the identity gives the error of the weights.
    """
    device = weight_Dd.device
    missed = meant = 0.0
    mean_D, mean_d = (_mean(head).to(device) for head in (base_VD, own_Vd))
    shift_d = mean_D @ weight_Dd - mean_d
    for base_vD, own_vd in _blocks(base_VD, own_Vd, device):
        error_vd = base_vD @ weight_Dd - own_vd - shift_d
        own_vd = own_vd - mean_d
        missed += ((error_vd @ xx_dd) * error_vd).sum().item()
        meant += ((own_vd @ xx_dd) * own_vd).sum().item()
    return (missed / meant) ** 0.5


def head_weight(model: PreTrainedModel) -> Tensor:
    """Return the weight of a model's head, tied or not.

    Raises:
        UnsupportedModelError: it is quantised or not in memory.
    """
    weight = arch.head_of(model).weight
    if not weight.is_floating_point() or weight.itemsize < 2 or weight.is_meta or arch.is_packed(weight):
        raise UnsupportedModelError(
            "a warm start reads the heads of both models as plain numbers, and one is quantised or not in "
            "memory; load it unquantised"
        )
    return weight.detach()


def _refuse_no_text(tokens: int) -> None:
    if not tokens:
        raise ConfigError("a warm start needs text, and there is none: give at least one row")


def _sums(base_VD: Tensor, own_Vd: Tensor, share_V: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum over the vocabulary, each row with its share: (W_b^T W_b, W_b^T W, W_b^T 1, W^T 1)."""
    device, width, narrow = share_V.device, base_VD.shape[1], own_Vd.shape[1]
    gram_DD, cross_Dd, mean_D, mean_d = (
        torch.zeros(*shape, dtype=torch.float64, device=device)
        for shape in ((width, width), (width, narrow), (width,), (narrow,))
    )
    heads = _blocks(base_VD, own_Vd, device)
    for (base_vD, own_vd), share_v in zip(heads, share_V.split(_ROWS), strict=True):
        scaled_Dv = (share_v[:, None] * base_vD).T
        gram_DD += scaled_Dv @ base_vD
        cross_Dd += scaled_Dv @ own_vd
        mean_D += scaled_Dv.sum(1)
        mean_d += share_v @ own_vd
    return gram_DD, cross_Dd, mean_D, mean_d


def _solve(gram_DD: Tensor, cross_Dd: Tensor) -> Tensor:
    """Solve gram P = cross by eigenvalues.

    If a head has fewer independent columns than its width, there are many solutions; the smallest is
    returned.
    """
    values_D, vectors_DD = torch.linalg.eigh(gram_DD)
    kept_D = values_D > values_D[-1] * len(values_D) * torch.finfo(torch.float64).eps
    return vectors_DD @ (torch.where(kept_D, 1 / values_D, 0)[:, None] * (vectors_DD.T @ cross_Dd))


def _blocks(base_VD: Tensor, own_Vd: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for base_vD, own_vd in zip(base_VD.split(_ROWS), own_Vd.split(_ROWS), strict=True):
        yield base_vD.to(device, torch.float64), own_vd.to(device, torch.float64)


def _mean(head_VD: Tensor) -> Tensor:
    total_D = sum(
        (rows_vD.to(_exact(head_VD.device), torch.float64).sum(0) for rows_vD in head_VD.split(_ROWS)),
        torch.tensor(0.0),
    )
    return total_D / len(head_VD)


def _states(model: PreTrainedModel, ids_BT: Tensor, device: torch.device) -> Tensor:
    """Run a decoder and return what its head reads, (N, width)."""
    table = arch.token_embedding_of(model).weight
    out = arch.decoder_of(model)(input_ids=ids_BT.to(table.device), use_cache=False)
    return out.last_hidden_state.flatten(0, 1).to(device, torch.float64)


def _exact(device: torch.device) -> torch.device:
    """Return a device that has float64: the same but on Apple's GPUs."""
    if device.type == "mps":
        return torch.device("cpu")
    return device
