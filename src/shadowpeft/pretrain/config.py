"""The settings of a pretraining run: one typed field per flag, and the file that repeats the run."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shadowpeft.checked_fields import as_yaml, changed, check, within
from shadowpeft.errors import ConfigError

TrainParts = Literal["projection", "all-but-embeddings", "everything"]
WarmStart = Literal["none", "pinv", "weighted", "ridge"]
Schedule = Literal["cosine", "linear", "constant"]
FRESH, BLOCKS = "fresh", "blocks"
_SIZES = ("layers", "intermediate_size", "attention_heads", "key_value_heads", "head_dim")


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run. Say how long it lasts with `max_steps` or `max_seconds`.

    Raises:
        ConfigError: a value is out of range or contradicts another.
    """

    model: str
    """The base: a folder or hub id of a causal language model, or of a multimodal model, whose language model
    is taken; it stays frozen."""
    data: str
    """Plain text: a .jsonl, .jsonl.gz, .txt or .parquet file, a .npz file of token ids (array `ids`), a
    folder of these, or a hub id."""
    output: str
    """Folder of the run; gets shadow/, checkpoints/, run.yaml and metrics.jsonl."""
    text_field: str = "text"
    """The field of a row that holds its text."""
    eval_data: str | None = None
    """Text to evaluate on, as `data`; by default the first `eval_documents` of `data`, which are then never
    trained on."""
    eval_documents: int = within(100, least=1)
    """How many documents to hold out where there is no `eval_data`."""
    eval_rows: int = within(200, least=1)
    """The most rows, of `max_length` tokens each, to evaluate on."""
    start: str = FRESH
    """`fresh` for random blocks of the base's kind, `blocks` for copies of some of the base's own, a shadow
    folder to go on from, or the folder or hub id of a smaller model with the base's tokenizer."""
    layers: int | None = None
    """Blocks of a fresh shadow (2 by default), or how many of the base's to copy, spread evenly over its
    depth (2)."""
    blocks: list[int] | None = None
    """Which blocks of the base to copy, such as [0, 7]; in place of `layers`."""
    intermediate_size: int | None = None
    """MLP width of a fresh shadow's blocks; a quarter of the base's by default."""
    attention_heads: int | None = None
    """Attention heads of a fresh shadow's blocks; as many as the base by default."""
    key_value_heads: int | None = None
    """Key and value heads of a fresh shadow's blocks; as many as the base by default."""
    head_dim: int | None = None
    """Width of an attention head of a fresh shadow's blocks; the base's by default."""
    warm_start: WarmStart = "weighted"
    """Initial projection of a smaller model: `pinv` as published, `weighted` by how often tokens occur,
    `ridge` from the hidden states of both models, `none` for random weights."""
    warm_start_rows: int = within(256, least=1)
    """Rows of text that the warm start reads."""
    train_parts: TrainParts = "all-but-embeddings"
    """What is trained: `projection`, `all-but-embeddings` or `everything`. A shadow of the base's own kind
    reads the base's embeddings, which always stay frozen, so the last two are the same for it."""
    next_token: float = within(0.5, least=0)
    """Weight of the next-token loss, computed through the base's head."""
    distil: float = within(0.5, least=0)
    """Weight of the divergence from the base's own next-token probabilities. It needs a forward pass of the
    base."""
    match: float = within(0.0, least=0)
    """Weight of one minus the cosine of the shadow's state and the base's hidden state. It needs a forward
    pass of the base."""
    temperature: float = within(1.0, above=0)
    """Temperature of both models' probabilities in `distil`."""
    top_k: int | None = within(None, least=1)
    """Number of the base's likeliest tokens that `distil` compares one by one. All other tokens count as one
    event. By default every token is compared."""
    match_block: int | None = within(None, least=0)
    """Index (from 0) of the base's block whose output `match` compares with. By default it is the state that
    the base's head reads."""
    max_steps: int | None = within(None, least=1)
    """Optimizer steps."""
    max_seconds: float | None = within(None, above=0)
    """Seconds to train, in place of `max_steps`. The learning rate then follows the clock, so two runs do not
    end with the same bits."""
    batch_size: int = within(8, least=1)
    """Rows per forward pass."""
    gradient_accumulation: int = within(1, least=1)
    """Forward passes per optimizer step."""
    max_length: int = within(512, least=2)
    """Tokens of a row. Documents fill the rows one after another, with the end-of-text token between them,
    and the documents of one row attend to each other."""
    shuffle_rows: int = within(256, least=1)
    """Number of rows that are shuffled together. 1 keeps the order of the text."""
    learning_rate: float = within(1e-3, above=0)
    """Peak learning rate (AdamW)."""
    scheduler: Schedule = "cosine"
    """How the learning rate changes after the warm-up."""
    warmup: float = within(0.02, least=0)
    """Steps of linear warm-up, or a share of the run if below 1."""
    weight_decay: float = within(0.01, least=0)
    """Weight decay of AdamW, of matrices alone."""
    max_grad_norm: float = within(1.0, least=0)
    """Gradients are scaled down to this norm; 0 for no limit."""
    bf16: bool = False
    """Load the base in bfloat16 and compute in it; the shadow is trained in float32 either way."""
    gradient_checkpointing: bool = False
    """Compute the shadow's activations again in the backward pass instead of keeping them."""
    attn_implementation: str | None = None
    """Attention code of transformers; by default its own choice."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` for the first GPU, if there is one, or `cpu`."""
    deterministic: bool = False
    """Use only GPU operations that give the same bits every time. A resumed run then ends with the same bits
    as an uninterrupted one, but every step is slower. On a CPU this holds without the setting."""
    seed: int = within(0, least=0)
    """Seed of the initial weights and of the order of rows."""
    eval_steps: int = within(500, least=1)
    """Steps between two evaluations. The run also evaluates before its first step and at its end."""
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
        if (self.max_steps is None) == (self.max_seconds is None):
            raise ConfigError("say how long to train: max_steps or max_seconds, one of the two")
        if not (self.next_token or self.distil or self.match):
            raise ConfigError(
                "next_token, distil and match are all 0, so there is nothing to learn; "
                "give one of them a weight"
            )
        self._check_start()
        self._check_unused()

    def _check_start(self) -> None:
        """Refuse settings that the chosen start would not apply."""
        if self.start == BLOCKS and self.blocks is not None:
            self._check_blocks(self.blocks)
        applied = {FRESH: _SIZES, BLOCKS: ("blocks", "layers")}.get(self.start, ())
        values = dataclasses.asdict(self)
        unapplied = [name for name in ("blocks", *_SIZES) if values[name] is not None and name not in applied]
        if unapplied:
            kind = self.start
            if kind not in (FRESH, BLOCKS):
                kind = f"the model {kind}"
            raise ConfigError(
                f"{', '.join(unapplied)} cannot be set where the shadow starts from {kind}; leave it out"
            )
        if self.train_parts == "projection" and self.start in (FRESH, BLOCKS):
            raise ConfigError(
                f"a shadow that starts from {self.start} has the base's width and no projection; "
                "choose other train_parts"
            )

    def _check_blocks(self, blocks: list[int]) -> None:
        if not blocks or min(blocks) < 0:
            raise ConfigError(
                f"blocks must name at least one block of the base, counted from 0, got {blocks}"
            )
        if self.layers is not None:
            raise ConfigError(
                "blocks and layers both say which of the base's blocks to copy; give one of them"
            )

    def _check_unused(self) -> None:
        """Refuse settings that have no effect beside the others, as far as no file has to be read for it."""
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
        """Refuse settings of a warm start for the given reason why there is none."""
        self.refuse_unused(("warm_start", "warm_start_rows"), why, "start from a smaller model")

    def refuse_unused(self, names: Iterable[str], why: str, remedy: str) -> None:
        """Refuse settings that have no effect.

        A setting counts as given if its value is not the default. A run that is continued is not refused: it
        must keep the settings that it began with, and it may have begun before they were refused.

        Raises:
            ConfigError: names the first such setting with its value, why it has no effect, and what to do.
        """
        if self.resume:
            return
        for name in changed(self, names):
            value = dataclasses.asdict(self)[name]
            raise ConfigError(f"{name} {value} would change nothing, as {why}; leave {name} out, or {remedy}")

    def to_yaml(self) -> str:
        """Write every field as YAML that `shadowpeft pretrain --config` reads."""
        values = {**dataclasses.asdict(self), "resume": False}
        return (
            "# A run of shadowpeft; to continue it: shadowpeft pretrain --config THIS_FILE --resume\n"
            + as_yaml(values)
        )
