"""Train a shadow on rows of text: everything that can be checked is checked first, then transformers' Trainer runs.

torch and transformers are imported inside functions, so that a mistake is told before they are waited for.
"""

import dataclasses
import importlib.util
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowpeft.config import refuse_depth
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.reporting import provenance
from shadowpeft.train import arguments, run_folder
from shadowpeft.train.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainingArguments

    from shadowpeft.data.encode import Example
    from shadowpeft.model import ShadowedModel
    from shadowpeft.train.callbacks import StopOnSignal
    from shadowpeft.trainer import ShadowTrainer

ADAPTER = "adapter"
# What may differ between a run and its continuation; everything else would make it another run.
_FREE_ON_RESUME = (
    "resume",
    "epochs",
    "max_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "device",
)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        output: the run's folder.
        adapter: the folder of the trained adapter; `None` if the run was stopped.
        checkpoint: the newest complete checkpoint.
        stopped: whether a signal stopped the run before its end; it can be resumed.
        steps: optimizer steps, those of earlier sessions included.
        epochs: passes over the data.
        train_loss: last logged loss (eq. 9).
        shadow_loss: last logged loss of the shadow's head.
        eval_loss: cross-entropy per token of the attached model on the evaluation rows, at the end.
        eval_shadow_loss: the same of the shadow's head.
        seconds: how long this session trained.
    """

    output: str
    adapter: str | None
    checkpoint: str | None
    stopped: bool
    steps: int
    epochs: float
    train_loss: float | None
    shadow_loss: float | None
    eval_loss: float | None
    eval_shadow_loss: float | None
    seconds: float


def train(config: TrainConfig, command: str = "shadowpeft.train.train(...)") -> TrainResult:
    """Train an adapter and save it.

    Everything that can be checked without the model's weights is checked before they are loaded. On Ctrl-C or SIGTERM the step is
    finished and saved, and the result says `stopped`.

    Args:
        config: the settings.
        command: how the run was started, for the model card.

    Raises:
        UserError: settings, data, model or output folder cannot be used; its type and message say which.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise UserError("training needs the accelerate library; pip install 'shadowpeft[train]'")
    if config.load_in_4bit:
        _check_4bit(config)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        _check_fsdp(config)
    if config.impl != "auto":
        _check_impl(config)
    start = run_folder.prepare(config, ADAPTER, _FREE_ON_RESUME)
    tokenizer, examples, held_out = _read_data(config)
    args = _training_arguments(config)
    trainer, stop = _build_trainer(_build_model(config), args, tokenizer, examples, held_out, config)

    from shadowpeft.train.attention import sound_attention

    trainer.accelerator.wait_for_everyone()  # of several processes, none may find what the first is about to write
    if trainer.args.should_save:
        run_folder.begin(config, start)
    began = time.perf_counter()
    with stop.listening(), sound_attention():
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    result = _summarise(config, trainer, stop, time.perf_counter() - began)
    if result.adapter is not None:
        facts = {
            "command": command,
            **_facts(config, result, len(examples), len(held_out), start, trainer.args),
        }
        run = {name: str(value).replace("|", "\\|") for name, value in facts.items()}
        trainer.shadowed.save_pretrained(result.adapter, run=run, is_main_process=trainer.args.should_save)
    return result


def _check_fsdp(config: TrainConfig) -> None:
    """Refuse what `accelerate launch` was set to and cannot work, before a base is loaded under it."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    from shadowpeft.train import fsdp

    if config.load_in_4bit:
        raise ConfigError(
            "a 4-bit base is not sharded: leave out load_in_4bit, or start the run with torchrun, without FSDP"
        )
    fsdp.refuse(FullyShardedDataParallelPlugin())


def _check_impl(config: TrainConfig) -> None:
    """Refuse an implementation that cannot run here; it needs torch, so it is asked only where one is named."""
    from shadowpeft.ops import choice

    choice.boundary_of(config.impl)


def _check_4bit(config: TrainConfig) -> None:
    """Refuse 4 bits where they cannot be trained on: on a CPU, layers of bitsandbytes pass no gradient once they were evaluated."""
    import torch

    if config.device == "cpu" or not torch.cuda.is_available():
        raise ConfigError("load_in_4bit needs a GPU, and the run is on a CPU; leave load_in_4bit out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "load_in_4bit needs the bitsandbytes library; pip install 'shadowpeft[4bit]', or leave load_in_4bit out"
        )


def _read_data(config: TrainConfig) -> "tuple[PreTrainedTokenizerBase, list[Example], list[Example]]":
    """Read and encode all rows, so that a bad one is found before the model is loaded."""
    from shadowpeft import arch
    from shadowpeft.data.encode import context_length, encode_all, pack
    from shadowpeft.data.rows import Row, read_rows, split_rows
    from shadowpeft.model import sources
    from shadowpeft.storage import stock_models

    rows = read_rows(config.data)
    held_out: Sequence[Row] = []
    if config.eval_data is not None:
        held_out = read_rows(config.eval_data, split="test")
    elif config.eval_fraction:
        rows, held_out = split_rows(rows, config.eval_fraction, config.seed)
    base: PretrainedConfig = stock_models.load_config(config.model)
    refuse_depth(config.shadow.resolved().inject_from, arch.depth_of(base))
    shadow = base if config.shadow_model is None else sources.config_of(config.shadow_model, base)
    if config.packing:
        _check_packs(base, shadow)
    positions = arch.context_of(base)
    tokenizer = stock_models.load_tokenizer(config.model)
    if config.shadow_model is not None:
        sources.refuse_other_tokens(config.shadow_model, tokenizer)
    limit = context_length(positions, tokenizer, config.max_length)
    examples = encode_all(rows, tokenizer, limit)
    eval_examples = encode_all(held_out, tokenizer, limit) if held_out else []
    largest = max(max(example["input_ids"]) for example in [*examples, *eval_examples])
    if largest >= base.vocab_size:
        raise ConfigError(
            f"the tokenizer of {config.model} gives the id {largest}, but the model knows only {base.vocab_size} tokens"
        )
    return tokenizer, pack(examples, limit) if config.packing else examples, eval_examples


def _check_packs(base: "PretrainedConfig", shadow: "PretrainedConfig") -> None:
    """Refuse to pack for a model whose documents would see each other."""
    from shadowpeft import arch

    for family in (arch.family_of_config(base), arch.family_of_config(shadow)):
        if not family.packs:
            raise ConfigError(
                f"{family.name} cannot be trained on packed rows: its documents would see each other; leave out packing"
            )


def _training_arguments(config: TrainConfig) -> "TrainingArguments":
    from transformers import TrainingArguments

    # transformers renamed the setting between 5.17 and 5.23.
    known = {entry.name for entry in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    checkpointing: dict[str, Any] = {
        name: config.gradient_checkpointing,
        f"{name}_kwargs": {"use_reentrant": False},
    }
    return arguments.training_arguments(
        config,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_eval_batch_size=config.eval_batch_size,
        lr_scheduler_type=config.scheduler,
        full_determinism=config.deterministic,
        eval_strategy="steps" if config.eval_data is not None or config.eval_fraction else "no",
        ddp_find_unused_parameters=False,  # every trainable tensor gets a gradient: a test holds it
        **checkpointing,
    )


def _build_model(config: TrainConfig) -> "ShadowedModel":
    import torch
    import transformers

    from shadowpeft.model import attach, sources
    from shadowpeft.storage import stock_models

    dtype = torch.bfloat16 if config.bf16 else torch.float32
    base = stock_models.load_model(config.model, dtype, config.attn_implementation, config.load_in_4bit)
    shadow = None
    if config.shadow_model is not None:
        shadow = sources.open_source(config.shadow_model, torch.float32, config.attn_implementation)
    transformers.set_seed(config.seed)
    return attach(base, config.shadow, shadow, dtype=torch.float32, impl=config.impl)


def _build_trainer(
    model: "ShadowedModel",
    args: "TrainingArguments",
    tokenizer: "PreTrainedTokenizerBase",
    examples: "list[Example]",
    held_out: "list[Example]",
    config: TrainConfig,
) -> "tuple[ShadowTrainer, StopOnSignal]":
    from shadowpeft.data.encode import Collator
    from shadowpeft.data.tokenizers import padding_id
    from shadowpeft.train import callbacks, trainer

    stop = callbacks.StopOnSignal()
    beside = [stop, callbacks.MetricsFile(Path(config.output) / run_folder.METRICS), callbacks.Progress()]
    collator = Collator(padding_id(tokenizer), mask=False)
    built = trainer.ShadowTrainer(
        model, args, collator, examples, held_out or None, beside, config.backbone_learning_rate
    )
    return built, stop


def _summarise(
    config: TrainConfig, trainer: "ShadowTrainer", stop: "StopOnSignal", seconds: float
) -> TrainResult:
    from shadowpeft.train.checkpoints import latest_checkpoint

    state, output = trainer.state, Path(config.output)
    stopped = stop.requested and state.global_step < state.max_steps
    if (
        trainer.eval_dataset is not None
        and not stopped
        and not any("eval_loss" in entry for entry in state.log_history[-3:])
    ):
        trainer.evaluate()
    last: dict[str, Any] = {}
    for entry in state.log_history:
        last.update(entry)
    newest = latest_checkpoint(output / run_folder.CHECKPOINTS)
    return TrainResult(
        output=str(output),
        adapter=None if stopped else str(output / ADAPTER),
        checkpoint=None if newest is None else str(newest),
        stopped=stopped,
        steps=state.global_step,
        epochs=round(state.epoch or 0.0, 4),
        train_loss=last.get("loss"),
        shadow_loss=last.get("shadow_loss"),
        eval_loss=last.get("eval_loss"),
        eval_shadow_loss=last.get("eval_shadow_loss"),
        seconds=round(seconds, 3),
    )


def _facts(
    config: TrainConfig,
    result: TrainResult,
    rows: int,
    eval_rows: int,
    start: Path | None,
    args: "TrainingArguments",
) -> dict[str, Any]:
    """Collect what the model card tells of the run."""
    import accelerate

    resumed = {} if start is None else {"resumed from": start.name}
    losses = {
        "train loss": result.train_loss,
        "shadow loss": result.shadow_loss,
        "eval loss": result.eval_loss,
    }
    return {
        "data": config.data,
        "rows": rows,
        "eval rows": eval_rows,
        **({"packed to": f"{config.max_length} tokens a row"} if config.packing else {}),
        "steps": result.steps,
        "epochs": result.epochs,
        **({} if config.max_steps is None else {"max steps": config.max_steps}),
        "batch size x accumulation": f"{config.batch_size} x {config.gradient_accumulation}",
        **({} if args.world_size == 1 else {"processes": args.world_size}),
        "learning rate": f"{config.learning_rate:g}",
        **(
            {}
            if config.backbone_learning_rate is None
            else {"backbone learning rate": f"{config.backbone_learning_rate:g}"}
        ),
        "scheduler": f"{config.scheduler}, warmup {config.warmup:g}",
        "shadow loss weight": config.shadow.resolved().shadow_loss_weight,
        **(
            {"of it learnt from the attached answer": config.shadow.shadow_distil}
            if config.shadow.shadow_distil
            else {}
        ),
        "bf16": config.bf16,
        **({"base": "in 4 bits (NF4)"} if config.load_in_4bit else {}),
        "seed": config.seed,
        **{name: f"{value:.4g}" for name, value in losses.items() if value is not None},
        "seconds": result.seconds,
        **resumed,
        **provenance.where_it_ran(args.device),
        "accelerate": accelerate.__version__,
    }
