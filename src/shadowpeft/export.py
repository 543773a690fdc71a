"""Write the detached model as a complete Hugging Face folder that needs neither the base nor this library."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedModel

import shadowpeft
from shadowpeft import files
from shadowpeft.card import base_line
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.evaluate import stop_ids
from shadowpeft.model import ShadowedModel

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
{base_line}tags: [shadowpeft]
---
# The shadow of {base}, detached

A stock `{kind}` of {parameters:,} parameters in {dtype}: the shadow network of the adapter `{adapter}`, which was trained beside the
frozen base {base}, with the base's embeddings and head folded in. It needs neither the base nor shadowpeft, and answers worse than
base and shadow together; the licence of the base holds for its copied weights.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("<this folder>"), AutoTokenizer.from_pretrained("<this folder>")
```
{run}
Written by shadowpeft {version} (torch {torch}, transformers {transformers}).
"""


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        output: the folder.
        model_class: the transformers class of the model.
        parameters: how many it has.
        size_bytes: size of all files.
    """

    output: str
    model_class: str
    parameters: int
    size_bytes: int


def export(base: str, adapter: str | Path, output: str | Path, dtype: torch.dtype | str = "auto") -> ExportResult:
    """Detach the shadow of an adapter and write it with the base's tokenizer, a generation configuration and a card.

    Args:
        base: folder or hub id of the base that the adapter was trained on.
        adapter: the adapter's folder.
        output: folder to write; it appears only once everything in it is complete.
        dtype: type of the weights; the base's by default.

    Raises:
        ConfigError: the output folder holds something.
        CheckpointError: the adapter cannot be used, or the folder cannot be written.
        UserError: the base cannot be loaded.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"the output {output} exists and is not an empty folder; choose another")
    if not Path(adapter).is_dir():
        raise CheckpointError(f"no adapter folder at {adapter}")
    files.load_config(base)  # a base that cannot be reached is found out with one request
    tokenizer = files.load_tokenizer(base)
    model = ShadowedModel.from_pretrained(files.load_model(base, dtype), adapter).detached()
    model.generation_config.eos_token_id = stop_ids(model, tokenizer)
    partial = output.parent / f".{output.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(_card(model, base, Path(adapter)), encoding="utf-8")
        os.replace(partial, output)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {output}: {error}; nothing is left of it") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return ExportResult(str(output), type(model).__name__, model.num_parameters(), size)


def _card(model: PreTrainedModel, base: str, adapter: Path) -> str:
    return _CARD.format(
        base=base,
        base_line=base_line(base),
        run=_run(adapter / "README.md"),
        kind=type(model).__name__,
        parameters=model.num_parameters(),
        dtype=str(model.dtype).removeprefix("torch."),
        adapter=adapter.name,
        version=shadowpeft.__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def _run(card: Path) -> str:
    """Take over what the adapter's card tells of its training, if there is such a card."""
    try:
        _, heading, rest = card.read_text(encoding="utf-8").partition("\n## The run\n")
    except (OSError, UnicodeDecodeError):
        return ""
    return f"{heading}{rest.partition(chr(10) + 'Written by shadowpeft')[0]}"
