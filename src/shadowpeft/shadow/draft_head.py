"""What the base's head reads of the shadow for drafts alone, so that a shadow can learn to draft afterwards.

The attached model reads s^(0) at its boundaries, and the detached model reads it too. So neither changes,
by a bit, with what is trained here.
"""

from torch import Tensor, nn

from shadowpeft.decoder.casting import follow_inputs


class DraftHead(nn.Module):
    """A low-rank step from s^(0) to what drafts are read from: d = s^(0) + W_up W_down s^(0).

    W_up starts at zero: a fresh one drafts as the shadow does without it.

    Args:
        width: D, the base's width.
        rank: R, columns of W_down.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)
        follow_inputs(self)

    @property
    def rank(self) -> int:
        """R."""
        return self.down.out_features

    def forward(self, s_BTD: Tensor) -> Tensor:
        """Return d, (B, T, D)."""
        step_BTD: Tensor = self.up(self.down(s_BTD))
        return s_BTD + step_BTD
