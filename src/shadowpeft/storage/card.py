"""Model cards of the folders that are written here: of an adapter, and of a pretrained shadow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shadowpeft
from shadowpeft.config import ShadowConfig
from shadowpeft.reporting.provenance import frameworks

_ADAPTER = """---
library_name: shadowpeft
{base_line}tags: [shadowpeft, adapter]
---
# Shadow adapter for {base}

{total:,} parameters, of which {shadow:,} in the shadow network. Load it onto the same base:

```python
from transformers import {auto}
from shadowpeft import ShadowedModel

base = {auto}.from_pretrained("{base}"{labels})
model = ShadowedModel.from_pretrained(base, "<this folder>")
small = model.detached()  # the shadow alone, a stock transformers model
```

## Settings

{settings}

## The run

{run}

Written by shadowpeft {version} (torch {torch}, transformers {transformers}).
"""

_SHADOW = """---
library_name: shadowpeft
{base_line}tags: [shadowpeft, shadow]
---
# Pretrained shadow for {base}

{kind}, {total:,} parameters. Start an adapter on the same base from it:

```python
from transformers import {auto}
from shadowpeft import attach

base = {auto}.from_pretrained("{base}")
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


_KINDS = {
    True: "Implicit: it reads the base's embeddings",
    False: "Explicit: another model's decoder, with embeddings of its own",
}


def adapter_card(
    base: str,
    config: ShadowConfig,
    sizes: Mapping[str, int],
    run: Mapping[str, Any],
    auto: str = "AutoModelForCausalLM",
    labels: int | None = None,
) -> str:
    """Return the card of an adapter's folder, as Markdown.

    Args:
        base: name or path of the base.
        config: the adapter's settings.
        sizes: number of values of each saved tensor, by name.
        run: facts of the training, by name; the card says nothing of the training beyond these.
        auto: transformers' class that loads the base.
        labels: number of classes of a classifier.
    """
    settings = {name: value for name, value in config.resolved().to_dict().items() if value is not None}
    return _ADAPTER.format(
        total=sum(sizes.values()),
        shadow=sum(size for name, size in sizes.items() if name.startswith("shadow.")),
        settings=_table(settings),
        run=_table(run, empty="Not recorded: saved outside `shadowpeft train`."),
        auto=auto,
        labels="" if labels is None else f", num_labels={labels}",
        **_common(base),
    )


def shadow_card(
    base: str,
    borrows: bool,
    sizes: Mapping[str, int | None],
    total: int,
    run: Mapping[str, Any],
    auto: str = "AutoModelForCausalLM",
) -> str:
    """Return the card of a shadow folder, as Markdown.

    Args:
        base: name or path of the base.
        borrows: whether the shadow is implicit, so that it reads the base's embeddings.
        sizes: its sizes by name; those that its family does not have are `None` and left out.
        total: number of saved values.
        run: facts of the pretraining, by name; the card says nothing of the pretraining beyond these.
        auto: transformers' class that loads the base.
    """
    return _SHADOW.format(
        kind=_KINDS[borrows],
        total=total,
        sizes=_table({name: value for name, value in sizes.items() if value is not None}),
        run=_table(run, empty="Not recorded."),
        auto=auto,
        **_common(base),
    )


def base_line(base: str) -> str:
    """Return the header's line that names the base; empty for a folder, which the hub does not know."""
    if not base or Path(base).is_absolute() or Path(base).is_dir():
        return ""
    return f"base_model: {base}\n"


def _common(base: str) -> dict[str, str]:
    return {
        "base_line": base_line(base),
        "base": base or "(a model built in memory)",
        "version": shadowpeft.__version__,
        **frameworks(),
    }


def _table(values: Mapping[str, Any], empty: str = "") -> str:
    if not values:
        return empty
    lines = ["| | |", "| --- | --- |"]
    for name, value in values.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines)
