"""The text of a pretraining run, opened and checked before a weight is loaded.

Checked are the tokenizer, the length of rows, and that there are rows to train on and to hold out.
"""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shadowpeft.errors import ConfigError
from shadowpeft.pretrain.config import BLOCKS, FRESH, PretrainConfig

if TYPE_CHECKING:
    import numpy as np

    from shadowpeft.model.preflight import Preflight
    from shadowpeft.pretrain.corpus import Corpus, Document, Unusable
    from shadowpeft.pretrain.text_rows import Encoder, Rows


@dataclass(frozen=True)
class Text:
    """The text that a run reads.

    Attributes:
        rows: what to train on.
        held_out: rows to evaluate on.
        evaluated: the stream that `held_out` was read from. It counts the rows of the source that it passed
            over.
    """

    rows: "Rows"
    held_out: "list[np.ndarray]"
    evaluated: "Rows"


def read_text(config: PretrainConfig) -> Text:
    """Open the text and read the held-out rows, so that a wrong text is found before the model is loaded.

    Raises:
        DataError: there is no such text, or too little of it.
        ConfigError: base, tokenizer and settings do not fit.
    """
    from shadowpeft.data.encode import context_length
    from shadowpeft.model import preflight
    from shadowpeft.pretrain.text_rows import Encoder

    corpus, eval_corpus = _open(config)
    start = None if config.start in (FRESH, BLOCKS) else config.start
    found = preflight.inspect(config.model, start, needs_family=True)
    if start is not None:
        _refuse_no_projection(config, found)
    length = context_length(found.positions, found.tokenizer, config.max_length)
    encoder = Encoder(found.tokenizer, found.config.vocab_size)
    return _rows(config, corpus, eval_corpus, encoder=encoder, length=length)


def _open(config: PretrainConfig) -> "tuple[Corpus, Corpus | None]":
    """Open the text to train on and, if it is another, the text to evaluate on."""
    from shadowpeft.pretrain.corpus import Corpus

    corpus, eval_corpus = Corpus(config.data, config.text_field), None
    has_fields = corpus.has_fields
    if config.eval_data is not None:
        eval_corpus = Corpus(config.eval_data, config.text_field)
        has_fields = has_fields or eval_corpus.has_fields
    elif corpus.holds_tokens:
        raise ConfigError(
            f"{config.data} holds token ids, of which no documents can be held out; give eval_data, too"
        )
    if not has_fields:
        config.refuse_unused(
            ("text_field",), "neither .txt nor .npz files have fields", "give rows of .jsonl or .parquet"
        )
    return corpus, eval_corpus


def _rows(
    config: PretrainConfig,
    corpus: "Corpus",
    eval_corpus: "Corpus | None",
    *,
    encoder: "Encoder",
    length: int,
) -> Text:
    from shadowpeft.pretrain.text_rows import Rows

    held_out = config.eval_documents
    if eval_corpus is not None:
        held_out = 0
    rows = Rows(corpus, encoder, length, held_out=held_out, block=config.shuffle_rows, seed=config.seed)
    # Raises if there is too little text to train on.
    rows.head(1)
    evaluated = Rows(eval_corpus or _FirstRows(corpus, held_out, rows.first), encoder, length)
    return Text(rows, evaluated.head(config.eval_rows), evaluated)


class _FirstRows:
    """The rows of a corpus that hold its first documents, read as a corpus of their own."""

    def __init__(self, corpus: "Corpus", documents: int, rows: int) -> None:
        self.source = f"the first {documents} documents of {corpus.source}"
        self._corpus, self._rows = corpus, rows

    def read(self, first: int = 0) -> "Iterator[Document | Unusable]":
        """Read from the row of index `first` to the last of these rows."""
        return itertools.islice(self._corpus.read(first), max(0, self._rows - first))


def _refuse_no_projection(config: PretrainConfig, found: "Preflight") -> None:
    """Refuse settings of a projection where the start has none, or has one that is trained already."""
    from shadowpeft.model import sources

    if sources.holds(config.start):
        config.refuse_warm_start(f"the shadow in {config.start} goes on from what it is")
    if found.shadow.hidden_size != found.config.hidden_size:
        return
    if config.train_parts == "projection":
        raise ConfigError(
            f"{config.start} has the base's width and so no projection to train; choose other train_parts"
        )
    config.refuse_warm_start(f"{config.start} has the base's width and so no projection to fit")


def warn_of_skipped(rows: "Rows", what: str) -> None:
    """Warn once of the rows that hold no document, by kind."""
    counted = []
    for kind, count in sorted(rows.skipped.items()):
        first = rows.first_skipped.get(kind, "of an earlier session")
        if count:
            counted.append(f"{count} {kind} (the first is {first})")
    if counted:
        warnings.warn(
            f"rows of the {what} without a document were passed over: {', '.join(counted)}", stacklevel=2
        )
