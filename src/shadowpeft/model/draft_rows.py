"""The head of drafts: all of the base's rows, or a copy of those of a draft vocabulary."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.errors import UserError

# The score of a token that is not in the vocabulary: e to this power is 0. It is finite, so that some token
# is left where a processor forbids all that are in it.
OUTSIDE = -1e4


class DraftRows(nn.Module):
    """A copy of the rows of the base's head that belong to a draft vocabulary.

    It lives with the cache that it drafts over: made when drafting begins, dropped with the cache. The base
    is frozen; if its head were changed all the same, drafts would be worse, and no text wrong.

    Args:
        base: the base.
        ids_N: the tokens.

    Raises:
        UserError: the rows cannot be read.
    """

    ids_N: Tensor

    def __init__(self, base: PreTrainedModel, ids_N: Tensor) -> None:
        super().__init__()
        head = arch.head_of(base)
        weight_VD = head.weight.detach()
        if weight_VD.is_meta or not weight_VD.is_floating_point() or arch.is_packed(weight_VD):
            raise UserError(
                "a draft vocabulary copies rows of the base's head, which is quantised or not in memory: "
                "give draft_vocabulary=False, or load the head as it is"
            )
        # A module's buffers and weights keep their place, so a CUDA graph reads them without a copy.
        self.register_buffer("ids_N", ids_N.to(weight_VD.device))
        self.head = nn.Linear(weight_VD.shape[1], len(ids_N), bias=head.bias is not None, device="meta")
        self.head.weight = nn.Parameter(weight_VD[self.ids_N], requires_grad=False)
        if head.bias is not None:
            self.head.bias = nn.Parameter(head.bias.detach()[self.ids_N], requires_grad=False)


def draft_logits(base: PreTrainedModel, rows: DraftRows | None, s_11D: Tensor) -> Tensor:
    """Return the shadow's logits, (1, V); outside of a draft vocabulary they are `OUTSIDE`."""
    if rows is None:
        return arch.logits(base, s_11D)[:, -1]
    logits_1N = arch.logits(base, s_11D, rows.head)[:, -1]
    outside_1V = logits_1N.new_full((1, arch.head_of(base).out_features), OUTSIDE)
    return outside_1V.scatter(1, rows.ids_N[None], logits_1N)
