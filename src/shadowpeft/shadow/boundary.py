"""The trainable weights at the block boundaries: injections and updates."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from shadowpeft.config import ResolvedConfig
from shadowpeft.ops import InjectionWeights, UpdateWeights

# The next block's input and the state beside it; `None` for one that stays as it is.
Crossed = tuple[Tensor | None, Tensor | None]


class BoundaryWeights(nn.Module):
    """Weights that may only be read while their module is called, because FSDP gathers them for that time."""

    def forward(self, cross: Callable[[Tensor, Tensor], Crossed], h_BTD: Tensor, s_BTD: Tensor) -> Crossed:
        """Return `cross(h_BTD, s_BTD)`, which may read the weights."""
        return cross(h_BTD, s_BTD)


class Injection(BoundaryWeights):
    """W_down and W_up of eq. 3 for one block. W_up starts at zero, so that a fresh shadow changes nothing.

    Args:
        width: D.
        config: the adapter's settings.
        gains_D: factor of each channel's correction (`arch.output_gains`). It follows from the base and is
            not saved.
    """

    gains_D: Tensor | None

    def __init__(self, width: int, config: ResolvedConfig, gains_D: Tensor | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(width, config.r, bias=False)
        self.up = nn.Linear(config.r, width, bias=False)
        # The variant `peft` keeps torch's own start of a linear layer, as PEFT does.
        if config.variant == "paper":
            nn.init.normal_(self.down.weight, std=0.02)
        elif config.variant == "normed":
            nn.init.normal_(self.down.weight, std=width**-0.5)
        nn.init.zeros_(self.up.weight)
        # The gains are computed in float32 at least and rounded once, when the whole adapter is cast to its
        # type. In bfloat16 the error is at most 2^-9 of a gain and the same in every pass; W_up is rounded as
        # coarsely and learns with the gains as they are.
        self.register_buffer("gains_D", gains_D, persistent=False)

    def weights(self) -> InjectionWeights:
        """Return the tensors as the operations take them, with the gains multiplied into W_up."""
        up_DR: Tensor = self.up.weight
        if self.gains_D is not None:
            up_DR = self.gains_D[:, None] * up_DR
        return InjectionWeights(self.down.weight, up_DR)


# The gate of a fresh shadow of the variant `normed` is sigmoid(-1), 0.27. On validation data this was better
# than 0.05 and as good as 0.5, the published value (results/method/search).
GATE_SHIFT = 1.0


class Update(BoundaryWeights):
    """T and G of eq. 5 and 6 for one block: two-layer networks.

    Their activation is SiLU in the variants `paper` and `normed`; in `peft` it is GELU, and there are biases.
    """

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
        """Return the tensors as the operations take them.

        Args:
            norm: the LayerNorm that all blocks share in the variant `paper`, `None` in the others.
        """
        norm_weights = None
        if norm is not None:
            norm_weights = norm.weight, norm.bias, norm.eps
        # Each layer is looked up once: a module's attribute takes long, and this is asked at every boundary.
        t_in, t_out, g_in, g_out = self.transform_in, self.transform_out, self.gate_in, self.gate_out
        return UpdateWeights(
            transform_in_UD=t_in.weight,
            transform_in_U=t_in.bias,
            transform_out_DU=t_out.weight,
            transform_out_D=t_out.bias,
            gate_in_UD=g_in.weight,
            gate_in_U=g_in.bias,
            gate_out_DU=g_out.weight,
            gate_out_D=g_out.bias,
            norm=norm_weights,
            activation=self.activation,
            gate_shift=self.gate_shift,
        )
