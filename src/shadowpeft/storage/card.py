"""The model cards of an adapter and of a pretrained shadow, written from the run that made them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shadowpeft
from shadowpeft.config import ShadowConfig
from shadowpeft.reporting.provenance import frameworks

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

_SHADOW_TEMPLATE = """---
library_name: shadowpeft
{base_line}tags: [shadowpeft, shadow]
---
# Pretrained shadow for {base}

{kind}, {total:,} parameters. Start an adapter on the same base from it:

```python
from transformers import AutoModelForCausalLM
from shadowpeft import attach

base = AutoModelForCausalLM.from_pretrained("{base}")
model = attach(base, shadow="<this folder>")
small = model.detached()  # the shadow alone, a stock transformers model
```

or on the command line: `shadowpeft train --model {base} --shadow THIS_FOLDER ...`

## Sizes

{sizes}

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
        settings=_table(
            {name: value for name, value in config.resolved().to_dict().items() if value is not None}
        ),
        run=_table(run) if run else "Not recorded: saved outside `shadowpeft train`.",
        version=shadowpeft.__version__,
        **frameworks(),
    )


def shadow_card(
    base: str, borrows: bool, sizes: Mapping[str, int | None], total: int, run: Mapping[str, Any]
) -> str:
    """Write the card of a shadow folder as Markdown.

    Args:
        base: name or path of the base.
        borrows: whether the shadow is implicit, so reads the base's embeddings.
        sizes: its sizes by name; those that its family does not have are left out.
        total: number of saved values.
        run: what to tell of the pretraining, by name; nothing is told that is not in it.
    """
    return _SHADOW_TEMPLATE.format(
        base_line=base_line(base),
        base=base or "(a model built in memory)",
        kind="Implicit: it reads the base's embeddings"
        if borrows
        else "Explicit: another model's decoder, with embeddings of its own",
        total=total,
        sizes=_table({name: value for name, value in sizes.items() if value is not None}),
        run=_table(run) if run else "Not recorded.",
        version=shadowpeft.__version__,
        **frameworks(),
    )


def base_line(base: str) -> str:
    """Return the header's line on the base, empty if it is not of the hub: there, the path of a folder means nothing."""
    return "" if not base or Path(base).is_absolute() or Path(base).is_dir() else f"base_model: {base}\n"


def _table(values: Mapping[str, Any]) -> str:
    rows = [
        f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in values.items()
    ]
    return "\n".join(["| | |", "| --- | --- |", *rows])
