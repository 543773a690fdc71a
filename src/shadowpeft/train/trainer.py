"""transformers' Trainer for shadows: checkpoints of the adapter alone, whole or not at all, loaded strictly.

`SafeTrainer` saves and resumes, `BackboneRateTrainer` gives the shadow network a learning rate of its own,
and `ShadowTrainer` is both of them for a shadowed model.
"""

import pickle
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from shadowpeft.decoder import sharded
from shadowpeft.errors import CheckpointError, ConfigError, UserError, is_torch_write_failure
from shadowpeft.evaluation.evaluate import measure_losses
from shadowpeft.model import ShadowedModel
from shadowpeft.storage import adapter_folder
from shadowpeft.train import both_heads, fsdp


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
    """transformers' Trainer for a shadowed model, with any dataset and collator that the Trainer takes.

    Its checkpoints hold the adapter alone and are loaded strictly, and it logs the shadow's loss. The logged
    `loss` is L of eq. 9 and `shadow_loss` the unweighted loss of the shadow's head; `eval_loss` is the loss
    of the attached model alone, to be compared with that of other models. A language model's is per token,
    whatever the batch size.

    `label_smoothing_factor` and `compute_loss_func` are computed of each head's logits, and joined as in
    eq. 9.

    Args:
        model: the shadowed model; its active adapter is trained.
        args: the Trainer's own settings; of several GPUs one is used, unless the run is distributed.
        data_collator: turns rows into batches; by default the Trainer's.
        train_dataset: what to train on.
        eval_dataset: what to evaluate on, or several by name; `None` for no evaluation.
        backbone_learning_rate: peak learning rate of the shadow's backbone and projection; `None` for that of
            `args`.
        **stock: the Trainer's other arguments.

    Raises:
        UserError: the model is no shadowed model, its active adapter was loaded for use alone, or a setting
            would compute another loss than it says.
    """

    def __init__(
        self,
        model: ShadowedModel,
        args: TrainingArguments,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        backbone_learning_rate: float | None = None,
        **stock: Any,
    ) -> None:
        if not isinstance(model, ShadowedModel):
            raise ConfigError(
                f"ShadowTrainer trains what attach() returns, got {type(model).__name__}; use transformers' "
                "Trainer for other models"
            )
        own_loss = args.label_smoothing_factor != 0 or stock.get("compute_loss_func") is not None
        both_heads.refuse(args, model.adapter, own_loss)
        if not model.adapter.is_trainable:
            raise UserError(
                f"the adapter {model.active_adapter!r} was loaded for use, its weights frozen; load it with "
                "is_trainable=True to train it on"
            )
        # Given several GPUs, the Trainer would copy the model to each of them, which a lent base forbids.
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **stock,
        )
        fsdp.prepare(self.accelerator, model)
        self.shadowed = model
        self.backbone_learning_rate = backbone_learning_rate
        self._shadow_sum = torch.zeros((), device=args.device)
        self._shadow_steps: set[int] = set()

    @property
    def _computes_loss(self) -> bool:
        """Whether the Trainer computes the loss of the answers itself."""
        return self.label_smoother is not None or self.compute_loss_func is not None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute L, or in evaluation the loss of the attached model alone, normalised as by the Trainer."""
        devices = 1
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            devices = self.accelerator.num_processes
        if self._computes_loss and "labels" in inputs:
            outputs = self._losses_of_answers(model, inputs, num_items_in_batch, devices)
            loss = outputs["loss"] * devices
        else:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if self.shadowed.training:
            self._shadow_sum += outputs["shadow_loss"].detach()
            self._shadow_steps.add(self.state.global_step)
        else:
            loss = outputs["attached_loss"] * devices
        return (loss, outputs) if return_outputs else loss

    def _losses_of_answers(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None,
        devices: int,
    ) -> both_heads.Output:
        """Compute label smoothing, or the user's function, of both heads' logits."""
        stock: Any = super().compute_loss

        def stock_loss(answered: nn.Module) -> Tensor:
            # The Trainer takes the labels out of what it is given, and multiplies by the number of devices.
            return stock(answered, dict(inputs), num_items_in_batch=num_items_in_batch) / devices

        base = self.shadowed.base
        assert base is not None
        if self.compute_loss_func is None:
            both_heads.refuse_unsmoothable(inputs["labels"], self.shadowed)
        batch = {name: value for name, value in inputs.items() if name != "labels"}
        return both_heads.joint(model, stock_loss, batch, self.shadowed.adapter, type(base).__name__)

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
        """Measure the losses, those of a language model per token, whatever the batch size.

        The Trainer itself averages over batches; it does so here for a classifier, and for a loss that it
        computes itself.

        Raises:
            UserError: there is no dataset to evaluate on, or it has no labels.
        """
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict) or self.shadowed.task != "causal-lm" or self._computes_loss:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if isinstance(dataset, str):
            datasets: Any = self.eval_dataset
            dataset = datasets[dataset]
        if dataset is None:
            raise ConfigError("there is nothing to evaluate on; pass eval_dataset")
        with self.accelerator.autocast():
            measured = measure_losses(self.shadowed, self._whole_batches(dataset))
        assert measured.shadow_loss is not None
        metrics = {
            f"{metric_key_prefix}_loss": measured.loss,
            f"{metric_key_prefix}_shadow_loss": measured.shadow_loss,
        }
        if self.compute_metrics is not None:
            loader = self.get_eval_dataloader(dataset)
            stock = self.evaluation_loop(loader, "Evaluation", None, ignore_keys, metric_key_prefix)
            metrics = {**(stock.metrics or {}), **metrics}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _whole_batches(self, dataset: Any) -> Iterator[dict[str, Any]]:
        """Yield the batches of a whole dataset in every process, so that no row counts twice."""
        collator = self._get_collator_with_removed_columns(self.data_collator, description="evaluation")
        for batch in DataLoader(dataset, self.args.per_device_eval_batch_size, collate_fn=collator):
            yield self._prepare_inputs(batch)

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
        if model is None:
            self._load_adapter(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        self._load_adapter(best)

    def _load_adapter(self, folder: str) -> None:
        """Load the active adapter's weights from a folder of this very run, cut up as they are here."""
        assert self.shadowed.base is not None
        saved = adapter_folder.load(self.shadowed.base, folder)
        own = self.shadowed.adapter
        if saved.settings != own.settings:
            raise CheckpointError(
                f"{folder} has other settings than this run: {saved.settings}, not {own.settings}"
            )
        own.load_state_dict(sharded.like(saved.state_dict(), own.state_dict()), strict=True)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
