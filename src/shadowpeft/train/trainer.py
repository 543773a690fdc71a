"""transformers' Trainer for shadows: checkpoints of the adapter alone, whole or not at all, loaded strictly.

`SafeTrainer` saves and resumes, `BackboneRateTrainer` gives the shadow network a learning rate of its own,
and `ShadowTrainer` is both of them for a shadowed language model.
"""

import pickle
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from shadowpeft.data.encode import Example
from shadowpeft.data.packing import Collator
from shadowpeft.decoder import sharded
from shadowpeft.errors import CheckpointError, ConfigError, is_torch_write_failure
from shadowpeft.evaluation.evaluate import measure_losses
from shadowpeft.model import ShadowedModel
from shadowpeft.storage import adapter_folder
from shadowpeft.train import fsdp


class SafeTrainer(Trainer):
    """The Trainer with checkpoints that are complete or do not count, and that never harm an earlier one."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run resumed at its end would make one more step before the Trainer compares the steps.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # This file marks a checkpoint as complete, so one that is being overwritten loses it first.
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, CheckpointError) as error:
            # torch reports a full disk as a RuntimeError; any other one is a fault of the program.
            if isinstance(error, RuntimeError) and not is_torch_write_failure(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            cause: BaseException = error
            if isinstance(error, CheckpointError):
                cause = error.__cause__ or error
            raise CheckpointError(
                f"could not save {folder}: {_first_line(cause)}; "
                "earlier checkpoints are unchanged: make room, then continue with resume"
            ) from cause

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            if checkpoint is None or self.args.world_size == 1:
                super()._load_optimizer_and_scheduler(checkpoint)
            else:
                self._load_in_processes(Path(checkpoint))
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            # torch reports a truncated file as a RuntimeError; any other one is a fault of the program.
            if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
                raise
            raise CheckpointError(
                f"{checkpoint} is damaged: the state of its optimizer cannot be read ({_first_line(error)}); "
                "delete it to resume from the checkpoint before it"
            ) from error

    def _load_in_processes(self, checkpoint: Path) -> None:
        """Load optimizer and scheduler in each of several processes.

        transformers 5.17 cannot read a state back in several processes on a CPU, and no version can read the
        state that is saved here under FSDP.
        """
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        state = torch.load(checkpoint / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(sharded.divided(state, self.optimizer))
        self.lr_scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER_NAME, weights_only=True))


class BackboneRateTrainer(Trainer):
    """The Trainer with a learning rate of its own for the shadow network (backbone and projection).

    It is that of the active adapter of a shadowed model.

    Attributes:
        backbone_learning_rate: its peak; `None` for the Trainer's own optimizer, unchanged.
    """

    backbone_learning_rate: float | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer as the Trainer does, then put the backbone into groups of its own."""
        # The Trainer keeps an optimizer that it has already; its groups have been made.
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.backbone_learning_rate is not None:
            assert isinstance(self.model, ShadowedModel), "only a shadowed model has a backbone to set apart"
            _set_backbone_apart(optimizer, self.model, self.backbone_learning_rate)
        return optimizer


def _set_backbone_apart(optimizer: torch.optim.Optimizer, model: ShadowedModel, learning_rate: float) -> None:
    """Move the weights of backbone and projection to groups of their own, with another learning rate.

    The projection of a pretrained shadow goes with the backbone, for which it was made.

    Raises:
        ConfigError: neither is trained.
    """
    set_apart(optimizer, {id(weight) for weight in model.adapter.shadow.parameters()}, learning_rate)
    if not any(weight.requires_grad for weight in model.adapter.shadow.parameters()):
        raise ConfigError(
            "backbone_learning_rate is the rate of the shadow's backbone and projection, and here neither "
            "trains: the backbone is frozen, and a shadow of the base's width has no projection; leave it out"
        )


def set_apart(optimizer: torch.optim.Optimizer, weights: Collection[int], learning_rate: float) -> None:
    """Move weights to groups of their own, with another learning rate.

    The new groups come last: the Trainer logs the learning rate of the first group, which stays that of all
    other weights.

    Args:
        optimizer: changed in place.
        weights: the ids of the weights, trained or not.
        learning_rate: their peak rate.
    """
    for group in list(optimizer.param_groups):
        apart = [weight for weight in group["params"] if id(weight) in weights]
        group["params"] = [weight for weight in group["params"] if id(weight) not in weights]
        if apart:
            optimizer.add_param_group({**group, "params": apart, "lr": learning_rate})


class ShadowTrainer(BackboneRateTrainer, SafeTrainer):
    """The Trainer for a shadowed language model.

    Its checkpoints hold the adapter alone, its evaluation counts every token alike, and it logs the shadow's
    loss. The logged `loss` is L of eq. 9 and `shadow_loss` the unweighted loss of the shadow's head;
    `eval_loss` is the cross-entropy of the attached model alone, to be compared with that of other models.

    Args:
        model: the shadowed model; its active adapter is trained.
        args: the Trainer's own settings; of several GPUs one is used, unless the run is distributed.
        collator: turns examples into batches.
        train_examples: what to train on.
        eval_examples: what to evaluate on, `None` for no evaluation.
        callbacks: called beside the Trainer's own.
        backbone_learning_rate: peak learning rate of the shadow's backbone and projection; `None` for that of
            `args`.
    """

    def __init__(
        self,
        model: ShadowedModel,
        args: TrainingArguments,
        collator: Collator,
        train_examples: Sequence[Example],
        eval_examples: Sequence[Example] | None,
        callbacks: list[TrainerCallback],
        backbone_learning_rate: float | None = None,
    ) -> None:
        # Given several GPUs, the Trainer would copy the model to each of them, which a lent base forbids.
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_examples,
            eval_dataset=eval_examples,
            callbacks=callbacks,
        )
        # It prints to standard output, which is for results.
        self.remove_callback(PrinterCallback)
        fsdp.prepare(self.accelerator, model)
        self.shadowed = model
        self.backbone_learning_rate = backbone_learning_rate
        self._shadow_sum = torch.zeros((), device=args.device)
        self._shadow_steps: set[int] = set()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as the Trainer does, and keep the shadow's part for the log."""
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        self._shadow_sum += outputs["shadow_loss"].detach()
        self._shadow_steps.add(self.state.global_step)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the shadow's loss averaged over the same steps as the loss."""
        if "loss" in logs and self._shadow_steps:
            total = self.accelerator.reduce(self._shadow_sum, "sum")
            logs["shadow_loss"] = total.item() / len(self._shadow_steps)
            self._shadow_sum.zero_()
            self._shadow_steps.clear()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the losses per token, whatever the batch size; the Trainer itself averages over batches."""
        examples: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(self.data_collator, Collator)
        measured = measure_losses(
            self.shadowed, examples, self.data_collator, self.args.per_device_eval_batch_size
        )
        assert measured.shadow_loss is not None
        metrics = {
            f"{metric_key_prefix}_loss": measured.loss,
            f"{metric_key_prefix}_shadow_loss": measured.shadow_loss,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter, under FSDP too, where the Trainer would gather the base as well."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        state = self.shadowed.adapters.state_dict(prefix="adapters.")
        self._save(output_dir, state_dict=sharded.whole(state))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        state = sharded.whole(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        # FSDP is about to cut the weights up: they must be loaded while they are whole.
        if self.is_fsdp_enabled and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            # The user may name a checkpoint of another run; torch compares the number of groups of weights.
            if "parameter group" not in str(error):
                raise
            raise CheckpointError(
                f"{checkpoint} does not fit this run's optimizer ({_first_line(error)}); "
                "backbone_learning_rate must be set where the checkpoint's run had it set, and nowhere else"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Under FSDP the Trainer asks once more, when the weights are cut up; they have been loaded.
        if model is not None:
            return
        assert self.shadowed.base is not None
        saved = adapter_folder.load(self.shadowed.base, resume_from_checkpoint)
        own = self.shadowed.adapter
        if saved.settings != own.settings:
            raise CheckpointError(
                f"{resume_from_checkpoint} has other settings than this run: "
                f"{saved.settings}, not {own.settings}"
            )
        own.load_state_dict(saved.state_dict(), strict=True)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
