"""transformers' Trainer, taught what an adapter's checkpoint is: strict loading, complete or not at all, stopped without loss."""

import json
import os
import pickle
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from shadowpeft.data.encode import Collator, Example
from shadowpeft.decoder import sharded
from shadowpeft.errors import CheckpointError
from shadowpeft.evaluation.evaluate import finite, token_losses
from shadowpeft.model import ShadowedModel
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import adapter_folder


class SafeTrainer(Trainer):
    """The Trainer with checkpoints that are complete or do not count, and that never cost an earlier one."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed at its end, the Trainer would go one step too far before it looks.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # What marks a checkpoint as complete goes first, so that one being overwritten never looks complete.
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, CheckpointError) as error:
            # torch reports a full disk as a RuntimeError of its own file writer; any other is not ours to translate.
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            cause = error.__cause__ if isinstance(error, CheckpointError) and error.__cause__ is not None else error
            raise CheckpointError(
                f"could not save {folder}: {_first_line(cause)}; earlier checkpoints are unchanged: make room, then continue with resume"
            ) from cause

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            if checkpoint is None or self.args.world_size == 1:
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            # Of several processes, transformers 5.17 cannot read a state back on a CPU, and no version the one saved here under FSDP.
            assert self.optimizer is not None
            assert self.lr_scheduler is not None
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(sharded.divided(state, self.optimizer))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            # torch reports a file that was cut short as a RuntimeError of its reader; any other is not ours to translate.
            if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
                raise
            raise CheckpointError(
                f"{checkpoint} is damaged: the state of its optimizer cannot be read ({_first_line(error)}); "
                "delete it to resume from the checkpoint before it"
            ) from error


class BackboneRateTrainer(Trainer):
    """The Trainer with a learning rate of its own for the shadow network of a shadowed model's active adapter: backbone and projection.

    Attributes:
        backbone_learning_rate: its peak; `None` for the Trainer's own optimizer, unchanged.
    """

    backbone_learning_rate: float | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer as the Trainer does, then set the backbone apart."""
        is_new = self.optimizer is None  # the Trainer keeps one that is there
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.backbone_learning_rate is not None:
            assert isinstance(self.model, ShadowedModel), "only a shadowed model has a backbone to set apart"
            _set_backbone_apart(optimizer, self.model, self.backbone_learning_rate)
        return optimizer


def _set_backbone_apart(optimizer: torch.optim.Optimizer, model: ShadowedModel, learning_rate: float) -> None:
    """Move the weights of backbone and projection to groups of their own, which differ in the learning rate from those they were in.

    The projection of a pretrained shadow goes with its backbone, for which it was made. The new groups come last: the Trainer logs the rate
    of the first, which stays that of the rest.
    """
    adapter = model.adapters[model.active_adapter]
    assert isinstance(adapter, Adapter)
    backbone = {id(weight) for weight in adapter.shadow.parameters()}
    for group in list(optimizer.param_groups):
        apart = [weight for weight in group["params"] if id(weight) in backbone]
        group["params"] = [weight for weight in group["params"] if id(weight) not in backbone]
        if apart:
            optimizer.add_param_group({**group, "params": apart, "lr": learning_rate})


class ShadowTrainer(BackboneRateTrainer, SafeTrainer):
    """The Trainer for a shadowed language model: adapter-only checkpoints, token-weighted evaluation, the shadow's loss logged.

    The logged `loss` is L of eq. 9, `shadow_loss` the unweighted loss of the shadow's head; `eval_loss` is the cross-entropy
    of the attached model alone, to be compared with that of other models.

    Args:
        model: the shadowed model; its active adapter is trained.
        args: the Trainer's own settings; of several GPUs one is used unless the process is one of a distributed run.
        collator: turns examples into batches.
        train_examples: what to train on.
        eval_examples: what to evaluate on, `None` for no evaluation.
        callbacks: called beside the Trainer's own.
        backbone_learning_rate: peak learning rate of the shadow's backbone and projection; `None` for that of `args`.
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
        # With several GPUs in one process the Trainer would copy the model to each, which the lent base does not allow.
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_examples,
            eval_dataset=eval_examples,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # prints to stdout, which belongs to results
        sharded.prepare(self.accelerator, model)
        self.shadowed = model
        self.backbone_learning_rate = backbone_learning_rate
        self._shadow_sum = torch.zeros((), device=args.device)
        self._shadow_steps: set[int] = set()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """Compute the loss as the Trainer does, and keep the shadow's part for the log."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
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

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Measure the losses per token, whatever the batch size (the Trainer's own average is over batches)."""
        examples: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(self.data_collator, Collator)
        measured = token_losses(self.shadowed, examples, self.data_collator, self.args.per_device_eval_batch_size)
        assert measured.shadow_loss is not None
        metrics = {f"{metric_key_prefix}_loss": measured.loss, f"{metric_key_prefix}_shadow_loss": measured.shadow_loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter; under FSDP too, where the Trainer would gather the base as well."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=sharded.whole(self.shadowed.adapters.state_dict(prefix="adapters.")))
        else:
            super().save_model(output_dir, _internal_call)

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

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if self.is_fsdp_enabled and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            # A checkpoint of another run may be named; torch counts its groups of weights.
            if "parameter group" not in str(error):
                raise
            raise CheckpointError(
                f"{checkpoint} does not fit this run's optimizer ({_first_line(error)}); backbone_learning_rate must be set where the "
                "checkpoint's run had it set, and nowhere else"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is not None:
            return  # FSDP: the Trainer asks for it once more, when the weights are cut up
        assert self.shadowed.base is not None
        saved = adapter_folder.load(self.shadowed.base, resume_from_checkpoint)
        own = self.shadowed.adapters[self.shadowed.active_adapter]
        if saved.settings != own.settings:
            raise CheckpointError(f"{resume_from_checkpoint} has other settings than this run: {saved.settings}, not {own.settings}")
        own.load_state_dict(saved.state_dict(), strict=True)


@contextmanager
def sound_attention() -> Iterator[None]:
    """Train without cuDNN's attention while the context lasts.

    Its backward pass gives NaN where a mask is passed and the length is 64 more than a multiple of 128, on H100 and H200 since torch
    2.11 (https://github.com/pytorch/pytorch/issues/196678); models with attention sinks, such as Qwen2.5, run into it. transformers
    passes a mask with every padded batch.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def is_complete(folder: Path) -> bool:
    """Tell whether a checkpoint was written to its end (the Trainer writes its state last) and has lost no file since."""
    if not (folder / OPTIMIZER_NAME).is_file() or not (folder / SCHEDULER_NAME).is_file():
        return False
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest complete checkpoint; warn of a newer one whose saving was cut short."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if is_complete(path):
            return path
        warnings.warn(f"{path} is incomplete (its saving was cut short, or a file was lost) and is skipped", stacklevel=2)
    return None


class StopOnSignal(TrainerCallback):
    """On the first Ctrl-C or SIGTERM finish the step, save and stop; the second one acts at once.

    Attributes:
        requested: whether a signal came.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the context lasts; outside the main thread Python does not allow it, so nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Not print: the signal may have come in the middle of another write to the same buffer.
        os.write(2, b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the Trainer to save and stop, unless it is at its end anyway; either way the last losses are logged."""
        if self.requested or state.global_step >= state.max_steps:
            control.should_log = True  # a run shorter than logging_steps would show none
        if self.requested and state.global_step < state.max_steps:
            control.should_save, control.should_training_stop, control.should_evaluate = True, True, False


class Progress(TrainerCallback):
    """A bar on stderr while someone watches, else one line per log entry."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar at the step that training starts from."""
        shown = None if state.is_world_process_zero else True  # None: where stderr is a terminal
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", disable=shown, file=sys.stderr)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Show the losses."""
        losses = {name: f"{value:.4g}" for name, value in (logs or {}).items() if name.endswith("loss") and name != "train_loss"}
        if not losses:
            return
        self._bar.set_postfix(losses)
        if self._bar.disable and state.is_world_process_zero:
            shown = "  ".join(f"{name} {value}" for name, value in losses.items())
            print(f"step {state.global_step}/{state.max_steps}  {shown}", file=sys.stderr)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the finished bar."""
        self._bar.close()


class MetricsFile(TrainerCallback):
    """Write every log entry as one line of JSON; a resumed run drops what came after the checkpoint it resumes from."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the file from the entries of the checkpoint, if any."""
        if state.is_world_process_zero:
            self._path.write_text("".join(_line(entry) for entry in state.log_history), encoding="utf-8")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the newest entry."""
        if state.is_world_process_zero:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(finite(entry), allow_nan=False) + "\n"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
