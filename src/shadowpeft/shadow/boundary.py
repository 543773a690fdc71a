"""The trainable weights at the block boundaries: one injection per adapted block, one update between two of them."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from shadowpeft.config import ResolvedConfig
from shadowpeft.ops import InjectionWeights, UpdateWeights

# The next block's input and the state beside it; `None` for one that stays as it is.
Crossed = tuple[Tensor | None, Tensor | None]


class BoundaryWeights(nn.Module):
    """Weights that are read while their module is called, and only then: for that long sharded training has gathered them."""

    def forward(self, cross: Callable[[Tensor, Tensor], Crossed], h_BTD: Tensor, s_BTD: Tensor) -> Crossed:
        """Return `cross(h_BTD, s_BTD)`, which may read the weights."""
        return cross(h_BTD, s_BTD)


class Injection(BoundaryWeights):
    """W_down and W_up of eq. 3 for one block; W_up starts at zero, so that a fresh shadow changes nothing.

    Args:
        width: D.
        config: the adapter's settings.
        gains_D: how strongly each channel is corrected (`arch.output_gains`); they follow from the base and are not saved.
    """

    gains_D: Tensor | None

    def __init__(self, width: int, config: ResolvedConfig, gains_D: Tensor | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(width, config.r, bias=False)
        self.up = nn.Linear(config.r, width, bias=False)
        if config.variant != "peft":
            nn.init.normal_(self.down.weight, std=0.02 if config.variant == "paper" else width**-0.5)
        nn.init.zeros_(self.up.weight)
        # Computed in float32 at least and rounded once, to the weights' type, by the cast of the whole adapter. That is at most 2^-9 of
        # each gain in bfloat16, the same in every pass, and W_up beside it is rounded as coarsely and learns with the gains as they are.
        self.register_buffer("gains_D", gains_D, persistent=False)

    def weights(self) -> InjectionWeights:
        """Return the tensors in the form the operations take, the gains multiplied into W_up."""
        up_DR = self.up.weight if self.gains_D is None else self.gains_D[:, None] * self.up.weight
        return InjectionWeights(self.down.weight, up_DR)


# The gate of a fresh shadow of the variant `normed` is sigmoid(-1), 0.27: better than 0.05 on validation data, and level with 0.5, as
# published (results/method/search).
GATE_SHIFT = 1.0


class Update(BoundaryWeights):
    """T and G of eq. 5 and 6 for one block: two-layer networks with SiLU (`paper`, `normed`) or GELU and biases (`peft`)."""

    def __init__(self, width: int, config: ResolvedConfig) -> None:
        super().__init__()
        bias = config.variant == "peft"
        self.activation: Literal["silu", "gelu"] = "gelu" if config.variant == "peft" else "silu"
        self.gate_shift = GATE_SHIFT if config.variant == "normed" else 0.0
        self.transform_in = nn.Linear(width, config.update_width, bias=bias)
        self.transform_out = nn.Linear(config.update_width, width, bias=bias)
        self.gate_in = nn.Linear(width, config.update_width, bias=bias)
        self.gate_out = nn.Linear(config.update_width, width, bias=bias)

    def weights(self, norm: nn.LayerNorm | None) -> UpdateWeights:
        """Return the tensors in the form the operations take; `norm` is the LayerNorm that the variant `paper` shares over depth."""
        return UpdateWeights(
            self.transform_in.weight,
            self.transform_in.bias,
            self.transform_out.weight,
            self.transform_out.bias,
            self.gate_in.weight,
            self.gate_in.bias,
            self.gate_out.weight,
            self.gate_out.bias,
            None if norm is None else (norm.weight, norm.bias, norm.eps),
            self.activation,
            self.gate_shift,
        )
