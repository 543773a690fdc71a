"""The model card of an export: of a detached model, which no longer needs this library."""

from pathlib import Path

from transformers import PreTrainedModel

import shadowpeft
from shadowpeft.export.source import Source
from shadowpeft.reporting.provenance import frameworks
from shadowpeft.storage.card import base_line

_CARD = """---
library_name: {library}
pipeline_tag: {pipeline}
{base_line}tags: [shadowpeft]
---
# The shadow of {base}, detached

A stock `{kind}` of {parameters:,} parameters in {dtype}: {what}
frozen base {base}, with the base's {copied} folded in. It needs neither the base nor shadowpeft, and answers
worse than base and shadow together; the licence of the base holds for its copied weights.

{use}
{run}
Written by shadowpeft {version} (torch {torch}, transformers {transformers}).
"""
_LIBRARY = {"hf": "transformers", "gguf": "gguf"}
_OF_TASK = {
    "causal-lm": {
        "pipeline": "text-generation",
        "auto": "AutoModelForCausalLM",
        "copied": "embeddings and head",
    },
    "sequence-classification": {
        "pipeline": "text-classification",
        "auto": "AutoModelForSequenceClassification",
        "copied": "embeddings",
    },
}
_USE = {
    "hf": """```python
from transformers import {auto}, AutoTokenizer

model, tokenizer = {auto}.from_pretrained("<this folder>"), AutoTokenizer.from_pretrained("<this folder>")
```""",
    "gguf": """```
llama-cli -m <this file>
```""",
}


def model_card(source: Source, model: PreTrainedModel, to: str, dtype: str) -> str:
    """Return the card as Markdown.

    Args:
        source: the shadow and its base.
        model: the detached model.
        to: the format it is written in.
        dtype: the type of its weights, by the name that a user gives it.
    """
    of_task = _OF_TASK[source.task]
    trained = "the pretrained shadow" if source.pretrained else "the shadow network of the adapter"
    return _CARD.format(
        library=_LIBRARY[to],
        pipeline=of_task["pipeline"],
        base=source.base,
        base_line=base_line(source.base),
        kind=type(model).__name__,
        parameters=model.num_parameters(),
        dtype=dtype,
        what=f"{trained} `{source.folder.name}`, which was trained beside the",
        copied=of_task["copied"],
        use=_USE[to].format(auto=of_task["auto"]),
        run=_run(source.folder / "README.md"),
        version=shadowpeft.__version__,
        **frameworks(),
    )


def _run(card: Path) -> str:
    """Return what the shadow's card says of its training, empty if there is no such card."""
    try:
        _, heading, rest = card.read_text(encoding="utf-8").partition("\n## The run\n")
    except (OSError, UnicodeDecodeError):
        return ""
    run, _, _ = rest.partition("\nWritten by shadowpeft")
    return heading + run
