"""The settings of a training run: one typed field per flag, and the file that repeats the run."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from shadowpeft.checked_fields import as_yaml, check, within
from shadowpeft.config import LARGEST, DistilLoss, Impl, ShadowConfig
from shadowpeft.errors import ConfigError

Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]

# Attention code that takes a mask, which separates packed documents in any number of rows. The flash kernels
# read the positions of one row.
_MASKED = (None, "sdpa", "eager", "flex_attention")


@dataclass(frozen=True)
class DraftConfig:
    """Settings of teaching a shadow to draft: a small head of its own learns from the attached model's
    answers to prompts of the training data. The attached and the detached model do not change.

    Raises:
        ConfigError: a value is out of range, or has no effect.
    """

    steps: int = within(0, least=0)
    """Optimizer steps on a head for drafts alone, after the training; 0 for no such head."""
    rank: int = within(64, least=1, below=LARGEST)
    """Rank of the head, `W_down` and `W_up` of d = s^(0) + W_up W_down s^(0)."""
    loss: DistilLoss = "lk"
    """What is minimised between the attached answer p and the drafts' q: `lk` for -log sum min(p, q), or `kl`
    for KL(p || q)."""
    prompts: int = within(512, least=2)
    """Prompts of the training data that the attached model answers, at most; a tenth of them measures."""
    max_new_tokens: int = within(256, least=1)
    """The most tokens of an answer."""
    temperature: float = within(0.0, least=0)
    """0 for greedy answers, above 0 for sampled ones."""
    answer_batch_size: int = within(32, least=1)
    """Prompts that are answered at a time."""
    batch_size: int = within(16, least=1)
    """Answers per optimizer step."""
    learning_rate: float = within(1e-3, above=0)
    """Peak learning rate (AdamW); it falls to 0 in a straight line."""

    def __post_init__(self) -> None:
        check(self)
        values = dataclasses.asdict(self)
        changed = [entry.name for entry in dataclasses.fields(self) if values[entry.name] != entry.default]
        if changed and not self.steps:
            raise ConfigError(
                f"draft.{changed[0]} says how a shadow learns to draft, and draft.steps is 0; set it above "
                f"0, or leave draft.{changed[0]} out"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str
    """The base: a folder or hub id of a causal language model, or of a multimodal model, whose language model
    is taken; it stays frozen."""
    data: str
    """What to train on: a .jsonl or .jsonl.gz file, a data set folder or a hub id."""
    output: str
    """Folder of the run; gets adapter/, checkpoints/, run.yaml and metrics.jsonl."""
    eval_data: str | None = None
    """Rows to evaluate on; by default a part of `data` is held out."""
    eval_fraction: float = within(0.05, least=0, below=1)
    """Share of `data` held out where there is no `eval_data`; 0 for no evaluation."""
    shadow: ShadowConfig = field(default_factory=ShadowConfig)
    """The adapter's settings."""
    draft: DraftConfig = field(default_factory=DraftConfig)
    """How the shadow learns to draft, after the training."""
    shadow_model: str | None = None
    """What the shadow starts from: folder of a pretrained shadow, or folder or hub id of a pretrained model;
    by default a small random one is built."""
    draft_vocabulary: int | None = within(None, least=1)
    """How many tokens the shadow drafts: those that occur most often in what is learnt, beside the special
    ones. By default all. Fewer make a draft cheaper, and miss tokens; no text changes by it."""
    epochs: float = within(3.0, above=0)
    """Passes over the data."""
    max_steps: int | None = within(None, least=1)
    """Optimizer steps, in place of `epochs`."""
    batch_size: int = within(8, least=1)
    """Rows per forward pass."""
    eval_batch_size: int = within(8, least=1)
    """Rows per forward pass of the evaluation."""
    gradient_accumulation: int = within(1, least=1)
    """Forward passes per optimizer step; 1 x 8 gives the same result as 8 x 1."""
    learning_rate: float = within(1e-3, above=0)
    """Peak learning rate (AdamW)."""
    backbone_learning_rate: float | None = within(None, above=0)
    """Peak learning rate of the shadow's backbone and projection; by default `learning_rate`. A large
    pretrained shadow needs a lower one. Of a frozen backbone only the projection has it."""
    scheduler: Scheduler = "cosine"
    """How the learning rate changes after the warm-up."""
    warmup: float = within(0.03, least=0)
    """Steps of linear warm-up, or a share of all steps if below 1."""
    weight_decay: float = within(0.0, least=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = within(1.0, least=0)
    """Gradients are scaled down to this norm; 0 for no limit."""
    max_length: int | None = within(None, least=2)
    """Tokens a row may have before it is cut; by default what the model takes."""
    packing: bool = False
    """Fill rows of `max_length` tokens with several examples each. Examples of one row do not attend to each
    other, and a batch is `batch_size` full rows."""
    bf16: bool = False
    """Load the base in bfloat16 and compute in it; the adapter itself is trained in float32 either way."""
    load_in_4bit: bool = False
    """Keep the base's linear layers in 4 bits (NF4, by bitsandbytes, on a GPU); the adapter fits the
    unquantised base, too."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    attn_implementation: str | None = None
    """Attention code of transformers, such as sdpa or flash_attention_2; by default its own choice."""
    impl: Impl = "auto"
    """Implementation of the boundaries: `triton` for fused kernels on a GPU, `reference` for plain torch,
    `compile` for torch.compile of that, or `auto` for `triton` where it can run and `reference` elsewhere."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` for the first GPU, if there is one, or `cpu`."""
    deterministic: bool = False
    """Use only GPU operations that give the same bits every time. A resumed run then ends with the same bits
    as an uninterrupted one, but every step is slower. On a CPU this holds without the setting."""
    seed: int = within(0, least=0)
    """Seed of the shadow's initial weights, the order of rows, the choice of held-out rows and dropout."""
    eval_steps: int = within(500, least=1)
    """Steps between two evaluations. The run also evaluates at its end."""
    save_steps: int = within(500, least=1)
    """Steps between two checkpoints. The run also saves one at its end."""
    save_total_limit: int = within(2, least=1)
    """The most checkpoints to keep; older ones are deleted."""
    logging_steps: int = within(10, least=1)
    """Steps between two entries of the log."""
    report_to: str = "none"
    """Tracker that transformers reports to, such as `tensorboard` or `wandb`. With `none` the run writes
    metrics.jsonl alone."""
    resume: bool | str = False
    """`true` to continue the run in `output` from its newest complete checkpoint, or the folder of a
    checkpoint."""

    def __post_init__(self) -> None:
        check(self)
        if not isinstance(self.shadow, ShadowConfig):
            raise ConfigError(f"shadow must hold settings, got {self.shadow!r}")
        if not isinstance(self.draft, DraftConfig):
            raise ConfigError(f"draft must hold settings, got {self.draft!r}")
        if self.packing and self.max_length is None:
            raise ConfigError("packing needs max_length, the length that rows are filled to; set it")
        if self.packing and self.batch_size > 1 and self.attn_implementation not in _MASKED:
            raise ConfigError(
                f"with packing, attn_implementation {self.attn_implementation} separates the documents of a "
                "single row: set batch_size to 1 (raise max_length or gradient_accumulation), or choose sdpa"
            )

    def to_yaml(self) -> str:
        """Write every field as YAML that `shadowpeft train --config` reads."""
        values = {**dataclasses.asdict(self), "resume": False}
        return (
            "# A run of shadowpeft; to continue it: shadowpeft train --config THIS_FILE --resume\n"
            + as_yaml(values)
        )
