"""The settings of a training run: one typed field per flag, and the file that repeats the run."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import yaml

from shadowpeft.config import Impl, ShadowConfig
from shadowpeft.errors import ConfigError
from shadowpeft.settings import refuse_below, refuse_gaps

Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
_LEAST: dict[str, float] = {
    "epochs": 0, "max_steps": 1, "batch_size": 1, "eval_batch_size": 1, "gradient_accumulation": 1, "learning_rate": 0, "warmup": 0,
    "weight_decay": 0, "max_grad_norm": 0, "max_length": 2, "eval_fraction": 0, "eval_steps": 1, "save_steps": 1, "save_total_limit": 1,
    "logging_steps": 1, "seed": 0,
}  # fmt: skip


# Attention that is given a mask, which tells packed documents apart in any number of rows; the flash kernels look at one row's positions.
_MASKED = (None, "sdpa", "eager", "flex_attention")
_OPTIONAL = (
    "eval_data",
    "shadow_model",
    "max_steps",
    "max_length",
    "attn_implementation",
    "backbone_learning_rate",
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Args:
        model: the base: a folder or hub id of a causal language model; it stays frozen.
        data: what to train on: a .jsonl or .jsonl.gz file, a data set folder or a hub id.
        output: folder of the run; gets adapter/, checkpoints/, run.yaml and metrics.jsonl.
        eval_data: rows to evaluate on; by default a part of `data` is held out.
        eval_fraction: share of `data` held out where there is no `eval_data`; 0 for no evaluation.
        shadow: the adapter's settings.
        shadow_model: what the shadow starts from: folder of a pretrained shadow, or folder or hub id of a pretrained model; by default a
            small random one is built.
        epochs: passes over the data.
        max_steps: optimizer steps, in place of `epochs`.
        batch_size: rows per forward pass.
        eval_batch_size: rows per forward pass of the evaluation.
        gradient_accumulation: forward passes per optimizer step; 1 x 8 gives the same result as 8 x 1.
        learning_rate: peak learning rate (AdamW).
        backbone_learning_rate: peak learning rate of the shadow's backbone and projection; by default `learning_rate`. A large
            pretrained shadow wants less.
        scheduler: how the learning rate goes on after the warm-up.
        warmup: steps of linear warm-up, or a share of all steps if below 1.
        weight_decay: weight decay of AdamW.
        max_grad_norm: gradients are scaled down to this norm; 0 for no limit.
        max_length: tokens a row may have before it is cut; by default what the model takes.
        packing: fill rows of `max_length` tokens with several examples each, which do not see each other; a batch is so many full rows.
        bf16: load the base in bfloat16 and compute in it; the adapter itself is trained in float32 either way.
        load_in_4bit: keep the base's linear layers in 4 bits (NF4, by bitsandbytes, on a GPU); the adapter fits the unquantised base, too.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        attn_implementation: attention code of transformers, such as sdpa or flash_attention_2; by default its own choice.
        impl: what computes the boundaries: triton for fused kernels on a GPU, reference for plain torch, compile for torch.compile of it,
            or auto for triton where it can serve and reference elsewhere.
        device: auto for the first GPU if there is one, or cpu.
        deterministic: choose only GPU operations that give the same bits every time, so that a resumed run ends as an
            uninterrupted one to the last bit; slower. On a CPU it is so anyway.
        seed: decides the shadow's initial weights, the order of rows, the held-out rows and dropout.
        eval_steps: evaluate every so many steps, and at the end.
        save_steps: save a checkpoint every so many steps, and at the end.
        save_total_limit: how many checkpoints to keep.
        logging_steps: log the losses every so many steps.
        report_to: where transformers reports to, such as tensorboard or wandb; none for nowhere but metrics.jsonl.
        resume: true to continue the run in `output` from its newest complete checkpoint, or the folder of a checkpoint.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str
    data: str
    output: str
    eval_data: str | None = None
    eval_fraction: float = 0.05
    shadow: ShadowConfig = field(default_factory=ShadowConfig)
    shadow_model: str | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 8
    eval_batch_size: int = 8
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    backbone_learning_rate: float | None = None
    scheduler: Scheduler = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int | None = None
    packing: bool = False
    bf16: bool = False
    load_in_4bit: bool = False
    gradient_checkpointing: bool = False
    attn_implementation: str | None = None
    impl: Impl = "auto"
    device: Literal["auto", "cpu"] = "auto"
    deterministic: bool = False
    seed: int = 0
    eval_steps: int = 500
    save_steps: int = 500
    save_total_limit: int = 2
    logging_steps: int = 10
    report_to: str = "none"
    resume: bool | str = False

    def __post_init__(self) -> None:
        refuse_gaps(self, _OPTIONAL)
        if not isinstance(self.shadow, ShadowConfig):
            raise ConfigError(f"shadow must hold settings, got {self.shadow!r}")
        refuse_below(self, _LEAST, ("learning_rate", "backbone_learning_rate", "epochs"))
        if self.packing and self.max_length is None:
            raise ConfigError("packing needs max_length, the length that rows are filled to; set it")
        if self.packing and self.batch_size > 1 and self.attn_implementation not in _MASKED:
            raise ConfigError(
                f"with packing, attn_implementation {self.attn_implementation} tells documents apart in one row only: set batch_size to 1 "
                "(and raise max_length or gradient_accumulation), or choose sdpa"
            )
        if self.eval_fraction >= 1:
            raise ConfigError(f"eval_fraction must be below 1, got {self.eval_fraction}")

    def to_yaml(self) -> str:
        """Write every field as YAML that `shadowpeft train --config` reads."""
        values = {**dataclasses.asdict(self), "resume": False}
        return (
            "# A run of shadowpeft; to continue it: shadowpeft train --config THIS_FILE --resume\n"
            + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        )
