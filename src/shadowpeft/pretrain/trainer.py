"""transformers' Trainer for pretraining.

It saves the shadow alone, with the place in the text, and logs the losses and the speed.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shadowpeft import arch
from shadowpeft.errors import CheckpointError
from shadowpeft.pretrain.objective import Objective, parts_trained
from shadowpeft.pretrain.pace import Pace, rate_factor
from shadowpeft.pretrain.text_rows import Place, Rows, collate
from shadowpeft.storage import shadow_folder
from shadowpeft.storage.base_facts import BaseFacts
from shadowpeft.train.trainer import SafeTrainer

PROGRESS = "progress.json"


class PretrainTrainer(SafeTrainer):
    """Train the shadow of an objective on a stream of rows.

    Args:
        objective: shadow, base and losses.
        args: the Trainer's own settings.
        rows: what to train on.
        held_out: rows to evaluate on.
        pace: how far the run has come.
        schedule: form of the learning rate after the warm-up.
        callbacks: called beside the Trainer's own.

    Attributes:
        tokens: how many tokens were trained on, earlier sessions included.
    """

    def __init__(
        self,
        objective: Objective,
        args: TrainingArguments,
        rows: Rows,
        held_out: list[np.ndarray],
        pace: Pace,
        schedule: str,
        callbacks: list[TrainerCallback],
    ) -> None:
        # With several GPUs in one process the Trainer would copy the model to each of them.
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(
            model=objective,
            args=args,
            data_collator=collate,
            train_dataset=rows,
            eval_dataset=held_out,
            callbacks=[_Clock(pace, self._begin), *callbacks],
        )
        self.remove_callback(PrinterCallback)  # prints to stdout, which belongs to results
        # Not `objective`, which the Trainer has for its search of hyperparameters.
        self.shadow_objective = objective
        self.rows, self.held_out = rows, held_out
        self.pace, self.schedule = pace, schedule
        self._facts = BaseFacts.of(objective.base)
        self._place: Tensor = torch.tensor(rows.start)
        self.tokens = 0
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._stopwatch = _Stopwatch()

    def _begin(self) -> None:
        """Start the clocks. All that is loaded and measured beforehand does not count as training."""
        self.pace.start()
        self._stopwatch.start(self.tokens)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the weighted losses, keep each for the log, and the place in the text after the batch."""
        with self.compute_loss_context_manager():
            out = model(inputs["input_ids"])
        for name, value in out.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0) + value
        self._batches += 1
        # Its values are read only when they are saved: reading them here would make the host wait for the
        # batch.
        self._place = inputs["places"][-1]
        self.tokens += inputs["input_ids"].numel()
        if return_outputs:
            return out["loss"], out
        return out["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss, the means of its parts over the same steps, and the speed since the last entry."""
        if "loss" in logs and self._batches:
            logs.update({name: value.item() / self._batches for name, value in self._sums.items()})
            logs["tokens"] = self.tokens
            logs["tokens_per_second"] = round(self._stopwatch.rate(self.tokens), 1)
            self._sums, self._batches = {}, 0
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the next-token loss of the detached shadow on the held-out rows."""
        with self._stopwatch.paused():
            metrics = perplexity_metrics(
                metric_key_prefix, self.held_out_loss(self.shadow_objective.shadow_losses)
            )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def held_out_loss(self, losses_of: Any) -> float:
        """Return the mean over all held-out tokens of the losses that `losses_of` computes for ids (B, T)."""
        total, count = 0.0, 0
        size = self.args.per_device_train_batch_size
        for start in range(0, len(self.held_out), size):
            # They have one length, or there is only one: `Rows.head` has seen to it.
            rows = self.held_out[start : start + size]
            with torch.no_grad(), self.accelerator.autocast():
                losses_N = losses_of(torch.from_numpy(np.stack(rows)).to(self.args.device))
            total += losses_N.sum(dtype=torch.float64).item()
            count += len(losses_N)
        return total / count

    def plain_rate(self, passes: int = 3) -> float | None:
        """Time plain forward and backward passes of the shadow on a batch, in tokens a second.

        All parts but the embeddings are trained and the logits are in memory, whatever this run trains. Any
        training of the same model would cost this without an optimizer, so the run's own speed is compared
        with it.

        Returns:
            The best of `passes` passes; `None` if the logits of a batch do not fit into memory.
        """
        batch = [self.rows.head(1)[0]] * self.args.per_device_train_batch_size
        ids_BT = torch.from_numpy(np.stack(batch)).to(self.args.device)
        try:
            with parts_trained(self.shadow_objective.shadow, "all-but-embeddings") as chosen:
                seconds = [self._plain_pass(ids_BT, chosen) for _ in range(passes + 1)]
        except torch.OutOfMemoryError:
            return None
        # The first pass warms the device up.
        return round(ids_BT.numel() / min(seconds[1:]), 1)

    def _plain_pass(self, ids_BT: Tensor, chosen: list[nn.Parameter]) -> float:
        """Run a forward and a backward pass, and return their seconds."""
        began = time.perf_counter()
        with self.accelerator.autocast():
            loss = self.shadow_objective.plain_loss(ids_BT)
        torch.autograd.grad(loss, chosen)
        if ids_BT.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def session_rate(self) -> float | None:
        """Return the tokens a second of this session's training; `None` if there was none."""
        return self._stopwatch.overall()

    def place(self) -> Place:
        """Return the place in the text that training has reached."""
        return Place(*self._place.tolist())

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Make the learning rate follow the steps, or the clock if the run has a time limit."""
        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            assert chosen is not None
            warmup, schedule, pace = self.args.warmup_steps, self.schedule, self.pace
            self.lr_scheduler = LambdaLR(chosen, lambda step: rate_factor(pace, schedule, warmup, step))
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        assert output_dir is not None
        folder = Path(output_dir)
        with self._stopwatch.paused():
            run = {"steps": self.state.global_step, "tokens": self.tokens}
            shadow_folder.save(self.shadow_objective.shadow, self._facts, folder, run)
            progress = {
                "place": self.place()._asdict(),
                "tokens": self.tokens,
                "seconds": self.pace.seconds(),
            }
            (folder / PROGRESS).write_text(json.dumps(progress) + "\n", encoding="utf-8")

    def save_shadow(self, folder: str | Path, run: Mapping[str, Any]) -> None:
        """Write the shadow's folder with facts of the run. With bf16 its weights are in bfloat16.

        Checkpoints are in float32 all the same.
        """
        # The type that the base is loaded in and that the run computes in.
        if self.args.bf16:
            self.shadow_objective.shadow.to(torch.bfloat16)
        auto = arch.auto_class(self.shadow_objective.base.config, "causal-lm").__name__
        shadow_folder.save(self.shadow_objective.shadow, self._facts, folder, run, auto)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = shadow_folder.load(self.shadow_objective.base, resume_from_checkpoint)
        self.shadow_objective.shadow.load_state_dict(saved.state_dict(), strict=True)
        path = Path(resume_from_checkpoint) / PROGRESS
        try:
            progress = json.loads(path.read_text(encoding="utf-8"))
            self.rows.start = Place(**progress["place"])
            self.tokens, self.pace.before = progress["tokens"], progress["seconds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is missing or damaged ({error}); delete its folder to resume from the checkpoint "
                "before it"
            ) from error
        self._place = torch.tensor(self.rows.start)


def perplexity_metrics(prefix: str, loss: float) -> dict[str, float]:
    """Return loss and perplexity by name."""
    # math.exp would raise where the result is too large for a float; torch returns infinity.
    perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()
    return {f"{prefix}_loss": loss, f"{prefix}_perplexity": perplexity}


class _Stopwatch:
    """The speed of training in tokens a second, without evaluation and saving."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, tokens: int) -> None:
        """Begin a session."""
        self._began, self.left_out = time.monotonic(), 0.0
        self._marks = [(0.0, tokens)]

    def rate(self, tokens: int) -> float:
        """Return the rate since the last call."""
        self._marks.append((time.monotonic() - self._began - self.left_out, tokens))
        return self._between(self._marks[-2], self._marks[-1])

    def overall(self) -> float | None:
        """Return the rate up to the last call of `rate`, or `None` if there was none."""
        if len(self._marks) < 2:
            return None
        # With several marks the first stretch is left out, as it holds the warm-up of the device.
        first = min(1, len(self._marks) - 2)
        return round(self._between(self._marks[first], self._marks[-1]), 1)

    def _between(self, first: tuple[float, int], last: tuple[float, int]) -> float:
        return (last[1] - first[1]) / max(last[0] - first[0], 1e-9)

    def paused(self) -> "_Pause":
        """Return a context whose time is left out."""
        return _Pause(self)


class _Pause:
    def __init__(self, stopwatch: _Stopwatch) -> None:
        self._stopwatch = stopwatch

    def __enter__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels that were launched before belong to training
        self._began = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._stopwatch.left_out += time.monotonic() - self._began


class _Clock(TrainerCallback):
    """Call a function when a session begins, and end a run whose time is up."""

    def __init__(self, pace: Pace, begin: Callable[[], None]) -> None:
        self._pace, self._begin = pace, begin

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call the function."""
        self._begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop when the time is up."""
        if self._pace.is_over():
            control.should_save, control.should_log, control.should_training_stop = True, True, True


class PretrainProgress(TrainerCallback):
    """A bar on stderr while someone watches, else one line per log entry."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar where training starts from."""
        done = round(100 * self._pace.share(state.global_step))
        self._bar = tqdm(total=100, initial=done, desc="pretrain", unit="%", disable=None, file=sys.stderr)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        self._bar.update(round(100 * self._pace.share(state.global_step)) - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show losses and speed."""
        names = ("loss", "next_token", "distil", "match", "eval_loss", "tokens", "tokens_per_second")
        shown = {name: _shown(name, logs[name]) for name in names if logs and name in logs}
        if not shown:
            return
        self._bar.set_postfix(shown)
        if self._bar.disable:
            line = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
            share = self._pace.share(state.global_step)
            print(f"step {state.global_step} ({share:.0%})  {line}", file=sys.stderr, flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the finished bar."""
        self._bar.close()


def _shown(name: str, value: float) -> str:
    if "tokens" in name:
        return f"{value:,.0f}"
    return f"{value:.4g}"
