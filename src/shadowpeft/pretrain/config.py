"""The settings of a pretraining run: one typed field per flag, and the file that repeats the run."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import yaml

from shadowpeft.errors import ConfigError
from shadowpeft.settings import refuse_below, refuse_gaps

TrainParts = Literal["projection", "all-but-embeddings", "everything"]
WarmStart = Literal["none", "pinv", "weighted", "ridge"]
Schedule = Literal["cosine", "linear", "constant"]
FRESH, BLOCKS = "fresh", "blocks"
_LEAST: dict[str, float] = {
    "max_steps": 1, "max_seconds": 0, "batch_size": 1, "gradient_accumulation": 1, "max_length": 2, "shuffle_rows": 1, "eval_documents": 1,
    "eval_rows": 1, "warm_start_rows": 1, "next_token": 0, "distil": 0, "match": 0, "match_block": 0, "top_k": 1, "warmup": 0,
    "weight_decay": 0, "max_grad_norm": 0, "eval_steps": 1, "save_steps": 1, "save_total_limit": 1, "logging_steps": 1, "seed": 0,
}  # fmt: skip
_ABOVE_0 = ("learning_rate", "temperature", "max_seconds")
_SIZES = ("layers", "intermediate_size", "attention_heads", "key_value_heads", "head_dim")
_OPTIONAL = (
    "blocks",
    "eval_data",
    "max_steps",
    "max_seconds",
    "top_k",
    "match_block",
    "attn_implementation",
    *_SIZES,
)


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run. Say how long it lasts with `max_steps` or `max_seconds`.

    Args:
        model: the base: a folder or hub id of a causal language model; it stays frozen.
        data: plain text: a .jsonl, .jsonl.gz, .txt or .parquet file, a .npz file of token ids
            (array `ids`), a folder of these, or a hub id.
        output: folder of the run; gets shadow/, checkpoints/, run.yaml and metrics.jsonl.
        text_field: the field of a row that holds its text.
        eval_data: text to evaluate on, as `data`; by default the first `eval_documents` of `data`, which are then never trained on.
        eval_documents: how many documents to hold out where there is no `eval_data`.
        eval_rows: evaluate on at most so many rows of `max_length` tokens.
        start: `fresh` for random blocks of the base's kind, `blocks` for copies of some of the base's own, a shadow folder to go on
            from, or the folder or hub id of a smaller model with the base's tokenizer.
        layers: blocks of a fresh shadow (2 by default), or how many of the base's to copy, spread evenly over its depth (2).
        blocks: which blocks of the base to copy, such as [0, 7]; in place of `layers`.
        intermediate_size: MLP width of a fresh shadow's blocks; a quarter of the base's by default.
        attention_heads: attention heads of a fresh shadow's blocks; as many as the base by default.
        key_value_heads: key and value heads of a fresh shadow's blocks; as many as the base by default.
        head_dim: width of an attention head of a fresh shadow's blocks; the base's by default.
        warm_start: how the projection of a model of another width is started: `pinv` as published, `weighted` by how often tokens occur,
            `ridge` from the hidden states of both; none for at random.
        warm_start_rows: rows of text that it reads.
        train_parts: `projection` for it alone, `all-but-embeddings`, or `everything`. A shadow of the base's own kind reads the base's
            embeddings, which stay frozen whatever is chosen, so that the last two are one for it.
        next_token: weight of the loss of the next token, through the base's head.
        distil: weight of the divergence from the base's own next-token probabilities; costs a run of the base.
        match: weight of the angle between the shadow's state and the base's hidden state, whatever their sizes; costs a run of the base.
        temperature: flattens both sides' probabilities in `distil`.
        top_k: in `distil` tell only the base's likeliest so many tokens apart, all others together; by default each is told apart.
        match_block: match the output of this block of the base (from 0); by default what the base's head reads.
        max_steps: optimizer steps.
        max_seconds: train for so long instead; the learning rate then follows the time, so two runs are not equal to the bit.
        batch_size: rows per forward pass.
        gradient_accumulation: forward passes per optimizer step.
        max_length: tokens of a row; documents fill rows one behind another, the end-of-text token between, and see each other in a row.
        shuffle_rows: rows are shuffled within blocks of so many; 1 for the order of the text.
        learning_rate: peak learning rate (AdamW).
        scheduler: how the learning rate goes on after the warm-up.
        warmup: steps of linear warm-up, or a share of the run if below 1.
        weight_decay: weight decay of AdamW, of matrices alone.
        max_grad_norm: gradients are scaled down to this norm; 0 for no limit.
        bf16: load the base in bfloat16 and compute in it; the shadow is trained in float32 either way.
        gradient_checkpointing: compute the shadow's activations again in the backward pass instead of keeping them.
        attn_implementation: attention code of transformers; by default its own choice.
        device: auto for the first GPU if there is one, or cpu.
        deterministic: choose only GPU operations that give the same bits every time, so that a resumed run ends as an
            uninterrupted one to the last bit; slower. On a CPU it is so anyway.
        seed: decides the initial weights and the order of rows.
        eval_steps: evaluate every so many steps, before the first and at the end.
        save_steps: save a checkpoint every so many steps, and at the end.
        save_total_limit: how many checkpoints to keep.
        logging_steps: log the losses every so many steps.
        report_to: where transformers reports to, such as tensorboard or wandb; none for nowhere but metrics.jsonl.
        resume: true to continue the run in `output` from its newest complete checkpoint, or the folder of a checkpoint.

    Raises:
        ConfigError: a value is out of range or contradicts another.
    """

    model: str
    data: str
    output: str
    text_field: str = "text"
    eval_data: str | None = None
    eval_documents: int = 100
    eval_rows: int = 200
    start: str = FRESH
    layers: int | None = None
    blocks: list[int] | None = None
    intermediate_size: int | None = None
    attention_heads: int | None = None
    key_value_heads: int | None = None
    head_dim: int | None = None
    warm_start: WarmStart = "weighted"
    warm_start_rows: int = 256
    train_parts: TrainParts = "all-but-embeddings"
    next_token: float = 0.5
    distil: float = 0.5
    match: float = 0.0
    temperature: float = 1.0
    top_k: int | None = None
    match_block: int | None = None
    max_steps: int | None = None
    max_seconds: float | None = None
    batch_size: int = 8
    gradient_accumulation: int = 1
    max_length: int = 512
    shuffle_rows: int = 256
    learning_rate: float = 1e-3
    scheduler: Schedule = "cosine"
    warmup: float = 0.02
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    attn_implementation: str | None = None
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
        refuse_below(self, _LEAST, _ABOVE_0)
        if (self.max_steps is None) == (self.max_seconds is None):
            raise ConfigError("say how long to train: max_steps or max_seconds, one of the two")
        if not (self.next_token or self.distil or self.match):
            raise ConfigError(
                "next_token, distil and match are all 0, so there is nothing to learn; give one of them a weight"
            )
        self._check_start()
        self._check_unused()

    def _check_start(self) -> None:
        """Refuse settings that the chosen start would not apply."""
        sizes = [name for name in _SIZES if vars(self)[name] is not None]
        if self.start == BLOCKS:
            unapplied = [name for name in sizes if name != "layers"]
            if self.blocks is not None and (not self.blocks or min(self.blocks) < 0):
                raise ConfigError(
                    f"blocks must name at least one block of the base, counted from 0, got {self.blocks}"
                )
            if self.blocks is not None and self.layers is not None:
                raise ConfigError(
                    "blocks and layers both say which of the base's blocks to copy; give one of them"
                )
        else:
            unapplied = (["blocks"] if self.blocks is not None else []) + (
                [] if self.start == FRESH else sizes
            )
        if unapplied:
            kind = self.start if self.start in (FRESH, BLOCKS) else "the model " + self.start
            raise ConfigError(
                f"{', '.join(unapplied)} cannot be set where the shadow starts from {kind}; leave it out"
            )
        if self.train_parts == "projection" and self.start in (FRESH, BLOCKS):
            raise ConfigError(
                f"a shadow that starts from {self.start} has the base's width and no projection; choose other train_parts"
            )

    def _check_unused(self) -> None:
        """Refuse settings that the others leave without effect, as far as no file has to be read for it."""
        if not self.distil:
            self.refuse_unused(
                ("temperature", "top_k"),
                "distil, which it is a setting of, has the weight 0",
                "give distil a weight",
            )
        if not self.match:
            self.refuse_unused(
                ("match_block",), "match, which it is a setting of, has the weight 0", "give match a weight"
            )
        if self.eval_data is not None:
            self.refuse_unused(
                ("eval_documents",),
                "eval_data is evaluated on instead",
                "say with eval_rows how much of it to read",
            )
        if self.start in (FRESH, BLOCKS):
            self.refuse_warm_start(f"a shadow that starts from {self.start} has no projection to fit")
        if self.warm_start in ("none", "pinv"):
            self.refuse_unused(
                ("warm_start_rows",),
                f"warm_start {self.warm_start} reads no text",
                "choose weighted or ridge",
            )

    def refuse_warm_start(self, why: str) -> None:
        """Refuse a choice of warm start where there is none, for the reason given."""
        self.refuse_unused(("warm_start", "warm_start_rows"), why, "start from a smaller model")

    def refuse_unused(self, names: Iterable[str], why: str, remedy: str) -> None:
        """Refuse settings without effect; that one was given shows only in a value other than its default.

        A run that is continued passes: it must be under the settings that it began with, and those may be of before this was refused.

        Raises:
            ConfigError: names the first such setting with its value, why it has no effect, and what to do.
        """
        defaults = {entry.name: entry.default for entry in dataclasses.fields(self)}
        for name in names:
            value = vars(self)[name]
            if value != defaults[name] and not self.resume:
                raise ConfigError(
                    f"{name} {value} would change nothing, as {why}; leave {name} out, or {remedy}"
                )

    @property
    def runs_base(self) -> bool:
        """Whether a loss needs the base's own answer."""
        return self.distil > 0 or self.match > 0

    def to_yaml(self) -> str:
        """Write every field as YAML that `shadowpeft pretrain --config` reads."""
        values = {**dataclasses.asdict(self), "resume": False}
        return (
            "# A run of shadowpeft; to continue it: shadowpeft pretrain --config THIS_FILE --resume\n"
            + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        )
