"""Train a shadow on rows of text: all that can be checked is checked first, then transformers' Trainer runs.

torch and transformers are imported inside functions, so that a mistake is reported without waiting for them.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowpeft.train import arguments, checks, examples, result, run_folder
from shadowpeft.train.config import TrainConfig
from shadowpeft.train.result import ADAPTER, TrainResult

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from shadowpeft.model import ShadowedModel
    from shadowpeft.train.draft import DraftResult
    from shadowpeft.train.examples import Examples
    from shadowpeft.train.stop_on_signal import StopOnSignal
    from shadowpeft.train.trainer import ShadowTrainer

# A run may be continued for longer or shorter; the settings of the model, the data and each step stay. Drafts
# are learnt behind it, and change nothing of it.
_FREE_ON_RESUME = (*run_folder.FREE_ON_RESUME, "epochs", "max_steps", "draft")


def train(config: TrainConfig, command: str = "shadowpeft.train.train(...)") -> TrainResult:
    """Train an adapter and save it.

    Everything that can be checked without the model's weights is checked before they are loaded. On Ctrl-C or
    SIGTERM the step is finished and saved, and the result says `stopped`.

    Args:
        config: the settings.
        command: how the run was started, for the model card.

    Raises:
        UserError: settings, data, model or output folder cannot be used; its type and message say which.
    """
    checks.check(config)
    start = run_folder.prepare(config, ADAPTER, _FREE_ON_RESUME)
    rows = examples.read(config)
    # The arguments come before the model: what they refuse is found before its weights are loaded.
    args = _training_arguments(config)
    model = _build_model(config)
    model.set_draft_vocabulary(rows.draft_vocabulary)
    if config.draft.steps:
        from shadowpeft.train import draft

        draft.refuse(model)
    trainer, stop = _build_trainer(model, args, rows, config)
    seconds = _run(trainer, stop, config, start)
    done = result.summarise(config, trainer, stop, seconds)

    if done.adapter is not None:
        facts = partial(result.facts, config, examples=rows, start=start, args=trainer.args)
        _save(trainer, done, {"command": command, **facts(done)})
        if config.draft.steps:
            # The adapter is safe already, whatever comes of this.
            done = replace(done, drafts=_teach(trainer.shadowed, rows, config))
            _save(trainer, done, {"command": command, **facts(done)})
    return done


def _save(trainer: "ShadowTrainer", done: TrainResult, facts: dict[str, Any]) -> None:
    assert done.adapter is not None
    # A vertical bar would end the cell of the card's table.
    run = {name: str(value).replace("|", "\\|") for name, value in facts.items()}
    trainer.shadowed.save_pretrained(done.adapter, run=run, is_main_process=trainer.args.should_save)


def _teach(model: "ShadowedModel", rows: "Examples", config: TrainConfig) -> "DraftResult":
    from shadowpeft.train import draft

    return draft.teach(model, rows.tokenizer, rows.prompts, config.draft, config.seed, config.max_length)


def _training_arguments(config: TrainConfig) -> "TrainingArguments":
    from shadowpeft.arch import versions

    name = versions.CHECKPOINTING
    checkpointing: dict[str, Any] = {
        name: config.gradient_checkpointing,
        f"{name}_kwargs": {"use_reentrant": False},
    }
    evaluates = config.eval_data is not None or config.eval_fraction > 0
    return arguments.training_arguments(
        config,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_eval_batch_size=config.eval_batch_size,
        lr_scheduler_type=config.scheduler,
        full_determinism=config.deterministic,
        eval_strategy="steps" if evaluates else "no",
        # Every trainable tensor gets a gradient in every step; a test holds this.
        ddp_find_unused_parameters=False,
        **checkpointing,
    )


def _build_model(config: TrainConfig) -> "ShadowedModel":
    """Load the base and attach a shadow, whose weights are float32 whatever the type of the base."""
    import torch
    import transformers

    from shadowpeft.model import attach, sources
    from shadowpeft.storage import stock_models

    dtype = torch.bfloat16 if config.bf16 else torch.float32
    base = stock_models.load_model(
        config.model, dtype, config.attn_implementation, load_in_4bit=config.load_in_4bit
    )
    shadow = None
    if config.shadow_model is not None:
        shadow = sources.open_source(config.shadow_model, torch.float32, config.attn_implementation)
    # After the loading, which may draw random numbers of its own.
    transformers.set_seed(config.seed)
    return attach(base, config.shadow, shadow, impl=config.impl)


def _build_trainer(
    model: "ShadowedModel", args: "TrainingArguments", rows: "Examples", config: TrainConfig
) -> "tuple[ShadowTrainer, StopOnSignal]":
    from transformers import PrinterCallback

    from shadowpeft.data.packing import Collator
    from shadowpeft.data.tokenizers import padding_id
    from shadowpeft.evaluation.evaluate import by_length
    from shadowpeft.train import callbacks, trainer
    from shadowpeft.train.stop_on_signal import StopOnSignal

    stop = StopOnSignal()
    metrics = callbacks.MetricsFile(Path(config.output) / run_folder.METRICS)
    built = trainer.ShadowTrainer(
        model,
        args,
        Collator(padding_id(rows.tokenizer), mask=False),
        train_dataset=rows.train,
        eval_dataset=by_length(rows.held_out) or None,
        callbacks=[stop, metrics, callbacks.Progress()],
        backbone_learning_rate=config.backbone_learning_rate,
    )
    # It prints to standard output, which is for results.
    built.remove_callback(PrinterCallback)
    return built, stop


def _run(trainer: "ShadowTrainer", stop: "StopOnSignal", config: TrainConfig, start: Path | None) -> float:
    """Write the run's settings and train to the end or to a signal; return how many seconds it took."""
    from shadowpeft.train.attention import sound_attention

    # Of several processes, none may find in the folder what the first is about to write.
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        run_folder.begin(config, start)
    began = time.perf_counter()
    with stop.listening(), sound_attention():
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    return time.perf_counter() - began
