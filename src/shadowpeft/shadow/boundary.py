"""The trainable weights at the block boundaries: injections and updates."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from shadowpeft.config import ResolvedConfig
from shadowpeft.ops import InjectionWeights, UpdateWeights

# The next block's input and the state beside it; `None` for one that stays as it is.
Crossed = tuple[Tensor | None, Tensor | None]


def _read(layer: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of a linear layer or a norm.

    They are read at every boundary, and a module's attribute takes the host ten times as long as an entry of
    the dictionary in which torch keeps it. What is not kept there is computed when it is asked for, as a
    parametrization does.
    """
    assert layer is not None
    own: dict[str, Any] = layer._parameters
    if "weight" in own and "bias" in own:
        return own["weight"], own["bias"]
    found: Any = layer
    return found.weight, found.bias


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
        (down_RD, _), (up_DR, _) = _read(self._modules["down"]), _read(self._modules["up"])
        gains_D = self._buffers["gains_D"]
        if gains_D is not None:
            up_DR = gains_D[:, None] * up_DR
        return InjectionWeights(down_RD, up_DR)


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
            weight_D, bias_D = _read(norm)
            assert bias_D is not None
            norm_weights = weight_D, bias_D, norm.eps
        layers = self._modules
        transform_in_UD, transform_in_U = _read(layers["transform_in"])
        transform_out_DU, transform_out_D = _read(layers["transform_out"])
        gate_in_UD, gate_in_U = _read(layers["gate_in"])
        gate_out_DU, gate_out_D = _read(layers["gate_out"])
        return UpdateWeights(
            transform_in_UD, transform_in_U, transform_out_DU, transform_out_D,
            gate_in_UD, gate_in_U, gate_out_DU, gate_out_D,
            norm_weights, self.activation, self.gate_shift,
        )  # fmt: skip
