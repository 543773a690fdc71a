"""The model card of an export."""

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
frozen base {base}, with the base's {copied} folded in. It needs neither the base nor shadowpeft, and answers worse than
base and shadow together; the licence of the base holds for its copied weights.

{use}
{run}
Written by shadowpeft {version} (torch {torch}, transformers {transformers}).
"""
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
    """Write the card as Markdown.

    Args:
        source: where the shadow comes from.
        model: the detached model.
        to: the format it is written in.
        dtype: the type of its weights, as a user would say it.
    """
    generates = source.task == "causal-lm"
    trained = "the pretrained shadow" if source.pretrained else "the shadow network of the adapter"
    return _CARD.format(
        library="transformers" if to == "hf" else "gguf",
        pipeline="text-generation" if generates else "text-classification",
        base=source.base,
        base_line=base_line(source.base),
        kind=type(model).__name__,
        parameters=model.num_parameters(),
        dtype=dtype,
        what=f"{trained} `{source.folder.name}`, which was trained beside the",
        copied="embeddings and head" if generates else "embeddings",
        use=_USE[to].format(
            auto="AutoModelForCausalLM" if generates else "AutoModelForSequenceClassification"
        ),
        run=_run(source.folder / "README.md"),
        version=shadowpeft.__version__,
        **frameworks(),
    )


def _run(card: Path) -> str:
    """Take over what the shadow's card tells of its training, if there is such a card."""
    try:
        _, heading, rest = card.read_text(encoding="utf-8").partition("\n## The run\n")
    except (OSError, UnicodeDecodeError):
        return ""
    return f"{heading}{rest.partition(chr(10) + 'Written by shadowpeft')[0]}"
