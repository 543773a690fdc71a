"""One adapter: a shadow, the boundary weights, and the two heads of a classifier."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.config import ResolvedConfig, refuse_depth, refuse_frozen
from shadowpeft.decoder.casting import follow_inputs, trained_type
from shadowpeft.decoder.offloaded import in_memory, is_offloaded
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.ops import Crossing, Rule, reference
from shadowpeft.ops.choice import Boundary
from shadowpeft.shadow import Shadow
from shadowpeft.shadow.boundary import Crossed, Injection, Update
from shadowpeft.shadow.draft_head import DraftHead


class Adapter(nn.Module):
    """All that is trained and saved beside one base model.

    Args:
        base: the frozen base model; read, never kept.
        settings: the settings, each with a value.
        shadow: the shadow network, implicit or explicit.
        draft_rank: rank of the draft head; `None` for none.

    Raises:
        ConfigError: `inject_from` leaves no block to adapt, `output_gains` needs norms that the base does not
            have, `distil_loss` is not for its task, or `train_backbone` is false and the shadow implicit.
        UnsupportedModelError: `output_gains` needs weights that are not in memory.

    Attributes:
        gradient_checkpointing: whether the backward pass computes the boundaries again. transformers' switch
            sets it on each module that has it.
        reads_from: index of the first block whose output moves the state.
        is_trainable: false for one that was loaded to be used alone.
        name: what it is called beside its base.
        draft_vocabulary: the tokens that it drafts, (N,), on the CPU; `None` for all.
        draft_head: what is trained for drafts alone, if anything.
    """

    draft_head: DraftHead | None
    name = ""
    draft_vocabulary: Tensor | None = None
    gradient_checkpointing = False
    is_trainable = True

    def __init__(
        self,
        base: PreTrainedModel,
        settings: ResolvedConfig,
        shadow: Shadow,
        draft_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        depth, width = len(arch.blocks_of(base)), base.config.hidden_size
        refuse_depth(self.settings.inject_from, depth)
        refuse_frozen(self.settings, is_explicit=not shadow.borrows)
        if self.settings.distil_loss == "lk" and arch.task_of(base) != "causal-lm":
            raise ConfigError(
                "distil_loss lk raises the share of drafts that are accepted, and a classifier drafts "
                "nothing; leave it out"
            )
        self.shadow = shadow
        shadow.trains_backbone = self.settings.train_backbone
        # As published where `inject_from` is 0 or 1. The state also reads what blocks below the injections
        # put out.
        self.reads_from = min(self.settings.inject_from, 1)
        # No update after the last block: nothing reads its result, so its weights would never receive a
        # gradient.
        updates = depth - 1 - self.reads_from
        self.norm = nn.LayerNorm(width) if self.settings.variant == "paper" and updates else None
        gains: Sequence[Tensor | None] = [None] * depth
        if self.settings.output_gains:
            gains = _gains(base)
        self.injections = nn.ModuleList(
            [Injection(width, self.settings, gains_D) for gains_D in gains[self.settings.inject_from :]]
        )
        self.updates = nn.ModuleList([Update(width, self.settings) for _ in range(updates)])
        self.score, self.shadow_score = _new_head(base), _new_head(base)
        self.draft_head = None if draft_rank is None else DraftHead(width, draft_rank)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights. What is computed has the base's type."""
        return self._injection(0).up.weight.dtype

    def changes_nothing(self) -> bool:
        """Return whether every correction is zero, as it is before training."""
        ups = [self._injection(i).up.weight for i in range(len(self.injections))]
        # A shard tells nothing of the whole, and to ask all processes would take every one of them.
        if any(isinstance(up, DTensor) for up in ups):
            return False
        return not any(bool(up.any()) for up in ups if not up.is_meta)

    def set_trainable(self, trainable: bool) -> None:
        """Make all that can train do so, or nothing.

        The embeddings of an explicit shadow never train, nor do its blocks without `train_backbone`, nor does
        what has no choice in an implicit one. Nothing trains of an adapter that is not trainable. The draft
        head trains by itself (`train.draft.teach`), since no loss of the adapter reads it.
        """
        self.requires_grad_(trainable and self.is_trainable)
        if self.draft_head is not None:
            self.draft_head.requires_grad_(False)
        if not self.shadow.trains_backbone:
            self.shadow.backbone.requires_grad_(False)
        elif not self.shadow.borrows:
            for table in self.shadow.tables():
                table.requires_grad_(False)
        else:
            for router in arch.routers_of(self.shadow.backbone, self.shadow.family):
                router.requires_grad_(False)

    def refuse_offloaded_training(self) -> None:
        """Raise if weights that train are offloaded: their gradients would go to copies, and be lost.

        Raises:
            UserError: names the first such weight.
        """
        for name, weight in self.named_parameters():
            if weight.is_meta and weight.requires_grad:
                raise UserError(
                    f"the adapter's weight {name} is offloaded and would never learn: offload the base alone "
                    "(model.base), or call model.eval() to use the adapter as it is"
                )

    def new_draft_head(self, rank: int) -> DraftHead:
        """Replace the draft head by a fresh one, which trains; its weights are float32 at least."""
        up = self._injection(0).up.weight
        self.draft_head = DraftHead(up.shape[0], rank).to(up.device, trained_type(up.dtype))
        return self.draft_head

    def for_drafts(self, s_BTD: Tensor) -> Tensor:
        """Return what the base's head reads for drafts: s^(0), or what the draft head makes of it."""
        return s_BTD if self.draft_head is None else self.draft_head(s_BTD)

    def start(self, s_BTD: Tensor) -> Tensor:
        """Return the state that the first boundary reads: s^(0), or with `unit_state` s^(0) / rms(s^(0))."""
        return reference.unit(s_BTD) if self.settings.unit_state else s_BTD

    def enter(
        self,
        block: int,
        h_BTD: Tensor,
        s_BTD: Tensor,
        norm: Callable[[Tensor], Tensor],
        boundary: Boundary = reference.boundary,
    ) -> tuple[Tensor, Tensor]:
        """Cross the boundary before a block: (h_out^(l-1), s^(l-2)) -> (h^(l), s^(l-1)).

        Below `inject_from`, h stays as it is.

        Args:
            block: index of the block about to run, from 0.
            h_BTD: the output of the block before (the embeddings for block 0).
            s_BTD: the shadow state before the block before.
            norm: the frozen input norm of the block about to run; only the variant `normed` reads through it.
            boundary: computes the boundary.

        Returns:
            The block's input and the shadow state beside it.
        """
        update: Update | None = None
        injection: Injection | None = None
        if block > self.reads_from:
            update = self._update(block - 1 - self.reads_from)
        if block >= self.settings.inject_from:
            injection = self._injection(block - self.settings.inject_from)
        if update is None and injection is None:
            return h_BTD, s_BTD
        rule = Rule(
            self.settings.variant, self.settings.alpha, self.settings.dropout if self.training else 0.0
        )

        own_norm = self.norm

        def cross(h_BTD: Tensor, s_BTD: Tensor) -> Crossed:
            read = update, injection, own_norm, norm
            if h_BTD.is_meta or not is_offloaded(read):
                return compute(h_BTD, s_BTD)
            with in_memory(read):
                return compute(h_BTD, s_BTD)

        def compute(h_BTD: Tensor, s_BTD: Tensor) -> Crossed:
            update_w = None if update is None else update.weights(own_norm)
            inject_w = None if injection is None else injection.weights()
            new_h_BTD, new_s_BTD = boundary(h_BTD, s_BTD, Crossing(update_w, inject_w, rule, norm))
            # A module's call may return only what was computed in it: FSDP gathers the weights for the
            # backward pass when the gradient of a returned tensor arrives.
            return None if injection is None else new_h_BTD, None if update is None else new_s_BTD

        # The weights are read inside the calls of both modules, because FSDP gathers them for that time only.
        run: Callable[[Tensor, Tensor], Crossed] = cross
        for weights in (update, injection):
            if weights is not None:
                run = partial(weights, run)
        new_h_BTD, new_s_BTD = run(h_BTD, s_BTD)
        return h_BTD if new_h_BTD is None else new_h_BTD, s_BTD if new_s_BTD is None else new_s_BTD

    # Both are asked at every boundary, so they look into torch's own dictionaries, under the names that an
    # `nn.ModuleList` gives its parts: its brackets take the host several times as long.

    def _injection(self, i: int) -> Injection:
        module = _part(self, "injections", i)
        assert isinstance(module, Injection)
        return module

    def _update(self, i: int) -> Update:
        module = _part(self, "updates", i)
        assert isinstance(module, Update)
        return module


def _part(module: nn.Module, name: str, i: int) -> nn.Module | None:
    parts = module._modules[name]
    assert parts is not None
    return parts._modules[str(i)]


def _new_head(base: PreTrainedModel) -> nn.Linear | None:
    """Return a trainable copy of a classifier's head, `None` for a language model, whose head is frozen."""
    if arch.task_of(base) == "causal-lm":
        return None
    head = copy.deepcopy(arch.head_of(base)).requires_grad_(True)
    follow_inputs(head)
    return head


def _gains(base: PreTrainedModel) -> list[Tensor]:
    gains = arch.output_gains(base)
    if gains is None:
        raise ConfigError(
            f"output_gains needs norms behind a block's layers, and {arch.family_of(base).name} has none; "
            "leave it out"
        )
    return gains
