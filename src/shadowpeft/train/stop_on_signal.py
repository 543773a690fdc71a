"""Ctrl-C or SIGTERM during a run: the step is finished and saved, and the run can be resumed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnSignal(TrainerCallback):
    """The end of a run by a signal: the first finishes the step, saves and stops; the second acts at once.

    Attributes:
        requested: True once Ctrl-C or SIGTERM came.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the context lasts; outside the main thread Python forbids that."""
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
        # Not `print`: the signal may have come in the middle of another write to the same buffer.
        os.write(2, b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the Trainer to save and stop, unless this was its last step; log the losses either way."""
        if self.requested or state.global_step >= state.max_steps:
            # A run shorter than `logging_steps` would log no loss at all.
            control.should_log = True
        if self.requested and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
