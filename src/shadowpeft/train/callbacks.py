"""What a run does beside its steps: it shows a bar, and writes its metrics to a file."""

import json
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shadowpeft.storage.jsonable import finite


class Progress(TrainerCallback):
    """A bar on standard error where that is a terminal, else one line per log entry."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar at the step that training starts from."""
        # With `None`, tqdm shows the bar where standard error is a terminal.
        disable = None if state.is_world_process_zero else True
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="train",
            unit="step",
            disable=disable,
            file=sys.stderr,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the losses."""
        losses = {
            name: f"{value:.4g}"
            for name, value in (logs or {}).items()
            if name.endswith("loss") and name != "train_loss"
        }
        if not losses:
            return
        self._bar.set_postfix(losses)
        if self._bar.disable and state.is_world_process_zero:
            shown = "  ".join(f"{name} {value}" for name, value in losses.items())
            print(f"step {state.global_step}/{state.max_steps}  {shown}", file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar, which stays on the screen."""
        self._bar.close()


class MetricsFile(TrainerCallback):
    """The log as a file, one line of JSON per entry.

    A resumed run drops the entries that came after the checkpoint it resumes from.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the file from the entries of the checkpoint, if any."""
        if state.is_world_process_zero:
            self._path.write_text("".join(_line(entry) for entry in state.log_history), encoding="utf-8")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the newest entry."""
        if state.is_world_process_zero:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(finite(entry), allow_nan=False) + "\n"
