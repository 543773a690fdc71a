"""What each process of a distributed run does; the tests of several processes start it with torchrun.

Started as `python -m helpers.distributed_worker`, with one of these arguments:

- `cases OUTPUT`: train every case under DDP and under FSDP2 and write what came of it;
- `fsdp-cli ARGUMENTS`: run the command line, on a CPU too, where accelerate has no FSDP.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from helpers.families import perturb, tiny_config, tiny_model, token_ids
from shadowpeft import ShadowConfig, ShadowedModel, arch, attach, losses
from shadowpeft.cli import main
from shadowpeft.decoder import sharded
from shadowpeft.shadow.boundary import BoundaryWeights
from shadowpeft.train import fsdp
from shadowpeft.train.arguments import recompute_activations

STEPS = 3


@dataclass(frozen=True)
class Case:
    """One model to train in several processes and in one.

    Args:
        model_type: family of the base.
        variant: of the shadow.
        task: of the base.
        explicit: the shadow is another model's decoder.
        bf16: a bfloat16 base with a float32 adapter.
        autocast: under autocast, if `bf16`.
        checkpointing: gradient checkpointing.
        inject_from: first block that is corrected; `None` for the variant's own.
        impl: what computes the boundaries.
        distil: share of the shadow's loss that is learnt from the attached answer.
    """

    model_type: str
    variant: Any
    task: arch.Task = "causal-lm"
    explicit: bool = False
    bf16: bool = False
    autocast: bool = True
    checkpointing: bool = False
    inject_from: int | None = None
    impl: str = "reference"
    distil: float = 0.0


CASES = {
    "normed": Case("llama", "normed"),
    "paper": Case("llama", "paper"),
    "peft": Case("llama", "peft"),
    "tied head": Case("qwen3", "normed"),
    "soft cap": Case("gemma2", "normed"),
    "frame in a context variable": Case("falcon", "normed"),
    "no norm before attention": Case("olmo2", "normed"),
    "classifier": Case("llama", "normed", task="sequence-classification"),
    "explicit shadow": Case("llama", "normed", explicit=True),
    "upper blocks only": Case("llama", "normed", inject_from=2),
    "checkpointing": Case("qwen3", "paper", checkpointing=True),
    "bf16": Case("llama", "normed", bf16=True),
    "bf16 without autocast": Case("llama", "normed", bf16=True, autocast=False),
    "attached answer": Case("qwen3", "normed", distil=0.5),
    "classifier, attached answer": Case("llama", "normed", task="sequence-classification", distil=1.0),
}
if torch.cuda.is_available():
    CASES |= {
        "triton": Case("llama", "normed", impl="triton"),
        "triton, no norm": Case("llama", "paper", impl="triton"),
        "triton, bf16": Case("llama", "normed", bf16=True, impl="triton"),
        "triton, checkpointing": Case("qwen3", "normed", checkpointing=True, impl="triton"),
    }


@dataclass
class Trained:
    """What came of a case.

    Attributes:
        losses: of the whole batch, at each step.
        gradients: of the first step.
        weights: after the last.
        kept: share of all weights that this process holds between the steps.
        gathered: under FSDP2, for each block and boundary of the first step, those whose weights were whole
            when it began.
        swept: how often the loss was computed without logits.
    """

    losses: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    kept: float
    gathered: dict[str, set[str]]
    swept: int


def build(case: Case) -> ShadowedModel:
    """Build the model of a case, the same in every process."""
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    base, shadow = tiny_model(case.model_type, case.task, dtype=dtype), None
    if case.explicit:
        config = tiny_config(case.model_type, num_hidden_layers=2)
        shadow = tiny_model(case.model_type, seed=7, config=config)
    settings = ShadowConfig(
        variant=case.variant,
        dropout=0.0,
        shadow_loss_weight=0.5,
        shadow_distil=case.distil,
        inject_from=case.inject_from,
    )
    torch.manual_seed(0)
    model = perturb(attach(base, settings, shadow, impl=case.impl)).train()
    if case.checkpointing:
        recompute_activations(model)
    return model


def batch(case: Case, step: int) -> tuple[dict[str, Tensor], int]:
    """Make four rows of different lengths, and count the labels that matter.

    With other lengths, a mean of the processes' means is another loss than the mean over all labels.
    """
    ids = token_ids(4, 12, seed=step)
    mask = (torch.arange(12) < torch.tensor([[12], [7], [9], [5]])).long()
    if case.task == "sequence-classification":
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2, 1, 1])}, 4
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, int(mask[:, 1:].sum())


class Alone:
    """Training in this process alone, with the few calls that an Accelerator makes otherwise."""

    num_processes, process_index = 1, 0

    def __init__(self, device: torch.device, bf16: bool) -> None:
        self.device, self.bf16 = device, bf16

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        return model.to(self.device), optimizer

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, weights: Iterable[Tensor], limit: float) -> None:
        torch.nn.utils.clip_grad_norm_(weights, limit)

    def reduce(self, tensor: Tensor, _: str) -> Tensor:
        return tensor


def train(case: Case, device: torch.device, accelerator: Accelerator | None = None) -> Trained:
    """Train a case for a few steps as the Trainer would, in this process alone or in all of them together."""
    shadowed = build(case)
    trained_weights = [weight for weight in shadowed.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained_weights, lr=1e-2)
    if accelerator is not None:
        fsdp.prepare(accelerator, shadowed)
    way: Any = accelerator or Alone(device, case.bf16 and case.autocast)
    # An Accelerator's model runs under its own autocast.
    autocast = nullcontext if accelerator is not None else way.autocast
    model, optimizer = way.prepare(shadowed, optimizer)
    trained, gathered = Trained([], {}, {}, 1.0, gathered={}, swept=0), watch(shadowed)
    with counting_sweeps(trained):
        for step in range(STEPS):
            inputs, count = batch(case, step)
            mine = {name: part[way.process_index :: way.num_processes] for name, part in inputs.items()}
            mine = {name: part.to(device) for name, part in mine.items()}
            with autocast():
                loss = model(**mine, num_items_in_batch=torch.tensor(count, device=device)).loss
            assert loss.dtype == torch.float32
            # DDP and FSDP take the mean of the processes' gradients; wanted is their sum.
            way.backward(loss * way.num_processes)
            weights = {name: weight for name, weight in shadowed.named_parameters() if weight.requires_grad}
            assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in weights.values())
            if step == 0:
                trained.gradients = on_cpu({name: weight.grad for name, weight in weights.items()})
                trained.gathered = {**gathered}
            way.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            trained.losses.append(way.reduce(loss.detach(), "sum").item())
    trained.weights, trained.kept = on_cpu(weights), share_kept(shadowed)
    return trained


@contextmanager
def counting_sweeps(trained: Trained) -> Iterator[None]:
    """Count how often the loss is computed without logits, while the context lasts."""
    sweep = losses.frozen_head_losses

    def counted(*args: Any) -> list[Tensor]:
        trained.swept += 1
        return sweep(*args)

    losses.frozen_head_losses = counted
    try:
        yield
    finally:
        losses.frozen_head_losses = sweep


def share_kept(model: nn.Module) -> float:
    """The share of all weights that this process holds between the steps."""
    whole = held = 0
    for weight in model.parameters():
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        whole, held = whole + weight.numel(), held + local.numel()
    return held / whole


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in sharded.whole(tensors).items()}


def watch(model: ShadowedModel) -> dict[str, set[str]]:
    """Note, whenever a block or boundary weights are called, which of those are gathered just then."""
    blocks = {f"block {i}": block for i, block in enumerate(arch.blocks_of(model.base))}
    boundaries = {
        name: module
        for name, module in model.adapters["default"].named_modules()
        if isinstance(module, BoundaryWeights)
    }
    units = {
        name: module for name, module in {**blocks, **boundaries}.items() if isinstance(module, FSDPModule)
    }
    seen: dict[str, set[str]] = {}

    def whole(module: nn.Module) -> bool:
        # A block's input norm is always whole, so look at all of a unit's weights.
        return not any(isinstance(weight, DTensor) for weight in module.parameters())

    for name, module in units.items():
        module.register_forward_pre_hook(
            lambda *_, name=name: (
                seen.setdefault(name, {other for other, unit in units.items() if whole(unit)}) and None
            )
        )
    return seen


def pass_for_gpus() -> None:
    """Let CPU processes have accelerate's FSDP, which it offers on accelerators only, unlike torch's own."""
    initialise = PartialState.__init__

    def patched(self: PartialState, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = patched  # type: ignore[method-assign]


def run_cases(output: str) -> None:
    """Train all cases in both ways; the first process writes the results."""
    cpu, results = not torch.cuda.is_available(), {}
    for way in ("ddp", "fsdp"):
        if way == "fsdp" and cpu:
            pass_for_gpus()
        for name, case in CASES.items():
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            plugin = None
            if way == "fsdp":
                plugin = FullyShardedDataParallelPlugin(
                    fsdp_version=2, auto_wrap_policy="transformer_based_wrap"
                )
            accelerator = Accelerator(
                cpu=cpu, mixed_precision="bf16" if case.bf16 and case.autocast else "no", fsdp_plugin=plugin
            )
            results[way, name] = vars(train(case, accelerator.device, accelerator))
    if accelerator.is_main_process:
        torch.save(results, output)


if __name__ == "__main__":
    if sys.argv[1] == "cases":
        run_cases(sys.argv[2])
    else:
        pass_for_gpus()
        sys.exit(main(sys.argv[2:]))
