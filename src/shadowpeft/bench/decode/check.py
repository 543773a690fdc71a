"""The numerical test of decoding: whatever of ours is timed must write what the reference writes.

Two tokens whose logits differ by less than rounding can change places, and what follows is then another text.
How much rounding is, is measured: the reference's own error against the same weights at higher precision.
B rows, T tokens of the prompt, N new tokens, V words.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shadowpeft.arch import versions
from shadowpeft.bench.check import SLACK, NumericalTestFailed, error, refuse_beyond
from shadowpeft.bench.decode.settings import CHECKED

ROWS = 2


@dataclass(frozen=True)
class Reference:
    """What the reference writes behind a prompt.

    Attributes:
        ids_BT: the prompt.
        new_BN: the tokens, greedily chosen.
        logits_BNV: the logits that they were chosen by.
        truth_BNV: the same logits at higher precision.
    """

    ids_BT: Tensor
    new_BN: Tensor
    logits_BNV: Tensor
    truth_BNV: Tensor

    def gap(self) -> float:
        """Return how far apart the logits of two tokens may be that change places.

        The reference is off by at most e, and what is compared with it by `SLACK` e, in both logits.
        """
        worst = float((self.logits_BNV - self.truth_BNV).abs().max())
        step = torch.finfo(self.logits_BNV.dtype).eps * float(self.logits_BNV.abs().max())
        return 2 * (1 + SLACK) * worst + step

    def require_same_text(self, new_BN: Tensor, what: str) -> None:
        """Refuse other tokens, unless the first other one of a row is as likely but for rounding.

        Raises:
            NumericalTestFailed: a row has another token.
        """
        compared = min(new_BN.shape[1], self.new_BN.shape[1])
        allowed = self.gap()
        for row, (got_N, own_N) in enumerate(
            zip(new_BN[:, :compared], self.new_BN[:, :compared], strict=False)
        ):
            other = (got_N != own_N).nonzero()
            if not len(other):
                continue
            place = int(other[0])
            logits_V = self.logits_BNV[row, place]
            found = float(logits_V[own_N[place]] - logits_V[got_N[place]])
            if not found <= allowed:
                raise NumericalTestFailed(
                    f"nothing is reported, since the numerical test is red: {what} writes another token in "
                    f"place {place + 1} of row {row + 1}, whose logit in the reference is {found:.1e} below "
                    f"the likeliest, where rounding explains {allowed:.1e}; leave it out to time the others"
                )

    def require_same_logits(self, model: Any, what: str) -> None:
        """Refuse logits, step by step with a cache, that are further from the truth than they may be.

        Raises:
            NumericalTestFailed: they are.
        """
        noise = error(self.logits_BNV, self.truth_BNV)
        logits_BNV = stepwise(model, self.ids_BT, self.new_BN)
        refuse_beyond(SLACK * noise, logits_BNV, self.truth_BNV, what=f"the logits of {what}")


@torch.no_grad()
def reference(model: Any, ids_BT: Tensor) -> Reference:
    """Write the first rows with a model whose boundaries the reference computes.

    Args:
        model: the attached model.
        ids_BT: the prompt.
    """
    ids_BT = ids_BT[:ROWS]
    out = model.generate(
        input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False,
        min_new_tokens=CHECKED, max_new_tokens=CHECKED,
    )  # fmt: skip
    new_BN = out[:, ids_BT.shape[1] :]
    logits_BNV = stepwise(model, ids_BT, new_BN)
    with _at_higher_precision(model):
        read_BT = torch.cat([ids_BT, new_BN[:, :-1]], 1)
        truth_BNV = model(input_ids=read_BT, use_cache=False, logits_to_keep=CHECKED).logits
    return Reference(ids_BT, new_BN, logits_BNV, truth_BNV)


@contextmanager
def _at_higher_precision(model: Any) -> Iterator[None]:
    """Widen the weights in place and narrow them again, which restores the same and needs no second base.

    A model's buffers (rotary frequencies) are always float32.
    """
    wide = torch.float64 if model.dtype == torch.float32 else torch.float32
    types = {parameter: parameter.dtype for parameter in model.parameters()}
    try:
        for parameter in types:
            parameter.data = parameter.data.to(wide)
        yield
    finally:
        for parameter, dtype in types.items():
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def stepwise(model: Any, ids_BT: Tensor, new_BN: Tensor) -> Tensor:
    """Read a prompt and then token after token; return the logits that each token is chosen by, (B, N, V)."""
    out = model(input_ids=ids_BT, use_cache=True, logits_to_keep=1)
    logits = [out.logits]
    for token_B in new_BN[:, :-1].unbind(1):
        cache = {versions.CACHE: out[versions.CACHE]}
        out = model(input_ids=token_B[:, None], use_cache=True, **cache)
        logits.append(out.logits)
    return torch.cat(logits, 1)
