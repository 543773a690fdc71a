"""The model card of an adapter, written from the run that made it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import shadowpeft
from shadowpeft.config import ShadowConfig

_TEMPLATE = """---
library_name: shadowpeft
{base_line}tags: [shadowpeft, adapter]
---
# Shadow adapter for {base}

{total:,} parameters, of which {shadow:,} in the shadow network. Load it onto the same base:

```python
from transformers import AutoModelForCausalLM
from shadowpeft import ShadowedModel

base = AutoModelForCausalLM.from_pretrained("{base}")
model = ShadowedModel.from_pretrained(base, "<this folder>")
small = model.detached()  # the shadow alone, a stock transformers model
```

## Settings

{settings}

## The run

{run}

Written by shadowpeft {version} (torch {torch}, transformers {transformers}).
"""


def model_card(base: str, config: ShadowConfig, sizes: Mapping[str, int], run: Mapping[str, Any]) -> str:
    """Write the card as Markdown.

    Args:
        base: name or path of the base.
        config: the adapter's settings.
        sizes: number of values of each saved tensor, by name.
        run: what to tell of the training, by name; nothing is told that is not in it.
    """
    return _TEMPLATE.format(
        base_line=base_line(base),
        base=base or "(a model built in memory)",
        total=sum(sizes.values()),
        shadow=sum(size for name, size in sizes.items() if name.startswith("shadow.")),
        settings=_table({name: value for name, value in config.resolved().to_dict().items() if value is not None}),
        run=_table(run) if run else "Not recorded: saved outside `shadowpeft train`.",
        version=shadowpeft.__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def base_line(base: str) -> str:
    """Return the header's line on the base, empty if it is not of the hub: there, the path of a folder means nothing."""
    return "" if not base or Path(base).is_absolute() or Path(base).is_dir() else f"base_model: {base}\n"


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows])
