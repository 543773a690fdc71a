"""One adapter: a shadow, the boundary weights, and for classification its two heads. All that is trained, and all that is saved."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.config import ShadowConfig, refuse_depth
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.ops import Crossing, Rule, reference
from shadowpeft.ops.choice import Boundary
from shadowpeft.shadow import Shadow
from shadowpeft.shadow.boundary import Crossed, Injection, Update


class Adapter(nn.Module):
    """Hold what is trained beside one base model.

    Args:
        base: the frozen base model; read, never kept.
        config: the settings.
        shadow: the shadow network, implicit or explicit.

    Raises:
        ConfigError: `inject_from` leaves no block to adapt, or `output_gains` asks for norms that the base does not have.
        UnsupportedModelError: `output_gains` asks for weights that are not in memory.

    Attributes:
        gradient_checkpointing: set by transformers' switch on each module that has it; the boundaries are then computed again, too.
    """

    gradient_checkpointing = False

    def __init__(self, base: PreTrainedModel, config: ShadowConfig, shadow: Shadow) -> None:
        super().__init__()
        self.config = config
        self.settings = config.resolved()
        self.task = arch.task_of(base)
        depth, width = len(arch.blocks_of(base)), base.config.hidden_size
        refuse_depth(self.settings.inject_from, depth)
        self.shadow = shadow
        # The first block whose output moves the state, as published where `inject_from` is 0 or 1; blocks below the injections count, too.
        self.reads_from = min(self.settings.inject_from, 1)
        # No update after the last block: nobody reads its result, so its weights would never receive a gradient.
        updates = depth - 1 - self.reads_from
        self.norm = nn.LayerNorm(width) if self.settings.variant == "paper" and updates else None
        gains = _gains(base) if self.settings.output_gains else [None] * depth
        self.injections = nn.ModuleList(
            [Injection(width, self.settings, gains_D) for gains_D in gains[self.settings.inject_from :]]
        )
        self.updates = nn.ModuleList([Update(width, self.settings) for _ in range(updates)])
        classifies = self.task == "sequence-classification"
        self.score = copy.deepcopy(arch.head_of(base)).requires_grad_(True) if classifies else None
        self.shadow_score = copy.deepcopy(arch.head_of(base)).requires_grad_(True) if classifies else None

    @property
    def dtype(self) -> torch.dtype:
        """The type of the trained weights."""
        return self._injection(0).up.weight.dtype

    def set_trainable(self, trainable: bool) -> None:
        """Let everything train, or nothing; the embeddings of an explicit shadow stay frozen either way."""
        self.requires_grad_(trainable)
        if not self.shadow.borrows:
            self.shadow.embeddings().requires_grad_(False)

    def refuse_mixed_types(self, table_VD: Tensor) -> None:
        """Raise if base (told by its embeddings) and adapter differ in type and nothing casts between them.

        Raises:
            UserError: say, a float32 adapter on a bfloat16 base outside autocast.
        """
        if self.dtype != table_VD.dtype and not torch.is_autocast_enabled(table_VD.device.type):
            raise UserError(
                f"the base is {table_VD.dtype} and the adapter {self.dtype}: run inside torch.autocast, or load the adapter in the "
                "base's type (the default)"
            )

    def start(self, s_BTD: Tensor) -> Tensor:
        """Give the state that the boundaries begin with: s^(0), or with `unit_state` s^(0) / rms(s^(0))."""
        return reference.unit(s_BTD) if self.settings.unit_state else s_BTD

    def enter(
        self,
        block: int,
        h_BTD: Tensor,
        s_BTD: Tensor,
        norm: Callable[[Tensor], Tensor],
        boundary: Boundary = reference.boundary,
    ) -> tuple[Tensor, Tensor]:
        """Cross the boundary before a block: (h_out^(l-1), s^(l-2)) -> (h^(l), s^(l-1)). Below `inject_from`, h stays as it is.

        Args:
            block: index of the block about to run, from 0.
            h_BTD: what the previous block put out (the embeddings for block 0).
            s_BTD: the shadow state before the previous block.
            norm: the frozen input norm of the block about to run; only the variant `normed` reads through it.
            boundary: what computes it.

        Returns:
            The block's input and the shadow state beside it.
        """
        i, j = block - 1 - self.reads_from, block - self.settings.inject_from
        update, injection = self._update(i) if i >= 0 else None, self._injection(j) if j >= 0 else None
        if update is None and injection is None:
            return h_BTD, s_BTD
        rule = Rule(
            self.settings.variant, self.settings.alpha, self.settings.dropout if self.training else 0.0
        )

        def cross(h_BTD: Tensor, s_BTD: Tensor) -> Crossed:
            update_w = None if update is None else update.weights(self.norm)
            inject_w = None if injection is None else injection.weights()
            new_h_BTD, new_s_BTD = boundary(h_BTD, s_BTD, Crossing(update_w, inject_w, rule, norm))
            # Hand out of the modules' calls only what was computed there: sharding ties the gathering for the backward pass to it.
            return None if injection is None else new_h_BTD, None if update is None else new_s_BTD

        run: Callable[[Tensor, Tensor], Crossed] = cross
        for weights in (update, injection):
            run = run if weights is None else partial(weights, run)
        new_h_BTD, new_s_BTD = run(h_BTD, s_BTD)
        return h_BTD if new_h_BTD is None else new_h_BTD, s_BTD if new_s_BTD is None else new_s_BTD

    def _injection(self, i: int) -> Injection:
        module = self.injections[i]
        assert isinstance(module, Injection)
        return module

    def _update(self, i: int) -> Update:
        module = self.updates[i]
        assert isinstance(module, Update)
        return module


def _gains(base: PreTrainedModel) -> list[Tensor]:
    gains = arch.output_gains(base)
    if gains is None:
        raise ConfigError(
            f"output_gains needs norms behind a block's layers, and {arch.family_of(base).name} has none; leave it out"
        )
    return gains
