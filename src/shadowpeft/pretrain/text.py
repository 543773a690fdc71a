"""The text of a pretraining run and what can be told before a weight is loaded: tokenizer, positions, rows to train on and to hold out."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shadowpeft.errors import ConfigError
from shadowpeft.pretrain.config import BLOCKS, FRESH, PretrainConfig

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from shadowpeft.pretrain.packing import Rows


@dataclass(frozen=True)
class Text:
    """What a run reads.

    Attributes:
        rows: what to train on.
        held_out: rows to evaluate on.
        evaluated: where these are from, which knows what it passed over.
    """

    rows: "Rows"
    held_out: "list[np.ndarray]"
    evaluated: "Rows"


def read_text(config: PretrainConfig) -> Text:
    """Open the text and read what is held out, so that what cannot be used is found before the model is loaded.

    Raises:
        DataError: there is no such text, or too little of it.
        ConfigError: base, tokenizer and settings do not fit.
    """
    from shadowpeft.data.encode import context_length
    from shadowpeft.pretrain.corpus import Corpus
    from shadowpeft.pretrain.packing import Encoder, Rows
    from shadowpeft.storage import stock_models

    corpus = Corpus(config.data, config.text_field)
    apart = None if config.eval_data is None else Corpus(config.eval_data, config.text_field)
    if apart is None and corpus.holds_tokens:
        raise ConfigError(
            f"{config.data} holds token ids, of which no documents can be held out; give eval_data, too"
        )
    if not any(source is not None and source.has_fields for source in (corpus, apart)):
        config.refuse_unused(
            ("text_field",), "neither .txt nor .npz files have fields", "give rows of .jsonl or .parquet"
        )
    base = stock_models.load_config(config.model)
    _refuse_no_projection(config, base)
    tokenizer = stock_models.load_tokenizer(config.model)
    length = context_length(_positions(config, base, tokenizer), tokenizer, config.max_length)
    encoder = Encoder(tokenizer, base.vocab_size)
    held_out = 0 if apart is not None else config.eval_documents
    rows = Rows(corpus, encoder, length, held_out, config.shuffle_rows, config.seed)
    rows.head(1)
    evaluated = Rows(apart or _First(corpus, held_out, rows.first), encoder, length)  # type: ignore[arg-type]
    return Text(rows, evaluated.head(config.eval_rows), evaluated)


class _First:
    """The first documents of a corpus."""

    def __init__(self, corpus: Any, documents: int, rows: int) -> None:
        self.source, self._corpus, self._rows = (
            f"the first {documents} documents of {corpus.source}",
            corpus,
            rows,
        )

    def read(self, first: int = 0) -> Any:
        import itertools

        return itertools.islice(self._corpus.read(first), max(0, self._rows - first))


def _refuse_no_projection(config: PretrainConfig, base: "PretrainedConfig") -> None:
    """Refuse settings of a projection where the model or folder to start from has none, or has one that is trained already."""
    from shadowpeft.model import sources

    if config.start in (FRESH, BLOCKS):  # the settings alone have told
        return
    if sources.holds(config.start):
        config.refuse_warm_start(f"the shadow in {config.start} goes on from what it is")
    if sources.config_of(config.start, base).hidden_size != base.hidden_size:
        return
    if config.train_parts == "projection":
        raise ConfigError(
            f"{config.start} has the base's width and so no projection to train; choose other train_parts"
        )
    config.refuse_warm_start(f"{config.start} has the base's width and so no projection to fit")


def _positions(
    config: PretrainConfig, base: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase"
) -> int | None:
    """Return how many positions base and shadow both take, and refuse a model to start from that has other tokens."""
    from shadowpeft import arch
    from shadowpeft.model import sources

    limits = [arch.context_of(base)]
    if config.start not in (FRESH, BLOCKS):
        limits.append(arch.context_of(sources.config_of(config.start, base)))
        sources.refuse_other_tokens(config.start, tokenizer)
    return min((limit for limit in limits if limit is not None), default=None)


def warn_of_skipped(rows: "Rows", what: str) -> None:
    """Warn once of the rows that hold no document, by kind."""
    counted = []
    for kind, count in sorted(rows.skipped.items()):
        if count:
            counted.append(
                f"{count} {kind} (the first is {rows.first_skipped.get(kind, 'of an earlier session')})"
            )
    if counted:
        warnings.warn(
            f"rows of the {what} without a document were passed over: {', '.join(counted)}", stacklevel=2
        )
