"""The steps of every export: check, detach, write beside the output, rename into place, upload."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from safetensors import SafetensorError

from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.export import folder, hub
from shadowpeft.export.card import model_card
from shadowpeft.export.source import Source

Format = Literal["hf", "gguf"]
# Room for tokenizer, card and configurations beside the weights: a share of these, and at least so many
# bytes.
_BESIDE, _BESIDE_AT_LEAST = 0.05, 1 << 20


@dataclass(frozen=True)
class ExportResult:
    """An export that was written.

    Attributes:
        output: the folder, or the GGUF file.
        model_class: the transformers class of the model.
        parameters: how many it has.
        size_bytes: size of all files.
        pushed: address on the hub, `None` if it was not uploaded.
    """

    output: str
    model_class: str
    parameters: int
    size_bytes: int
    pushed: str | None = None


def export(
    base: str | Path,
    adapter: str | Path | None,
    output: str | Path,
    dtype: torch.dtype | str = "auto",
    to: Format = "hf",
    shadow: str | Path | None = None,
    max_shard_size: str | None = None,
    push: str | None = None,
) -> ExportResult:
    """Detach a shadow and write it, with the base's tokenizer and generation settings and a card.

    Args:
        base: folder or hub id of the base that the shadow was trained beside.
        adapter: the adapter's folder or hub id.
        output: folder to write, for `gguf` the file; it appears only once it is complete.
        dtype: type of the weights; the base's by default. For `gguf` also `q8_0`.
        to: `hf` for a folder that stock transformers loads, `gguf` for one file that llama.cpp runs.
        shadow: folder of a pretrained shadow, in place of `adapter`.
        max_shard_size: largest file of weights in a folder, such as `2GB`; by default transformers' own
            limit.
        push: repository on the Hugging Face hub (`user/name`) to upload to afterwards.

    Raises:
        ConfigError: the output exists, arguments contradict each other, or nothing can be uploaded.
        CheckpointError: the adapter cannot be used, the output cannot be written, or there is no room for it.
        UserError: the base cannot be loaded.
    """
    output = Path(output)
    quantise = dtype == "q8_0"
    _refuse_contradictions(to, quantise, max_shard_size)
    _refuse_taken(output, to)
    folder.refuse_shard_size(max_shard_size)
    source = Source.inspect(str(base), adapter, shadow)
    if to == "gguf":
        gguf_file = _gguf()
        gguf_file.refuse_unknown(source.backbone, source.task, source.tokenizer)
    client = None
    if push is not None:
        client = hub.logged_in(push)
    model = source.detach("auto" if quantise else dtype)
    stored = str(model.dtype if dtype == "auto" else dtype)
    card = model_card(source, model, to, dtype=stored.removeprefix("torch."))
    _refuse_full(output, _room_for(folder.bytes_of(model)))
    with _aside(output) as partial:
        if to == "hf":
            folder.write(model, source.tokenizer, card, folder=partial, max_shard_size=max_shard_size)
        else:
            gguf_file.write(model, source.tokenizer, partial, quantise=quantise)
    pushed = None
    if push is not None and client is not None:
        pushed = hub.upload(client, push, output, card=card)
    return ExportResult(
        output=str(output),
        model_class=type(model).__name__,
        parameters=model.num_parameters(),
        size_bytes=_size_of(output),
        pushed=pushed,
    )


def _refuse_contradictions(to: Format, quantise: bool, max_shard_size: str | None) -> None:
    if to == "hf" and quantise:
        raise ConfigError(
            "q8_0 is a type of GGUF files: give --to gguf, or one of float32, bfloat16 and float16"
        )
    if to == "gguf" and max_shard_size is not None:
        raise ConfigError("max_shard_size is of a model folder, and a GGUF export is one file; leave it out")


def _size_of(output: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if output.is_file():
        return output.stat().st_size
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


def _gguf() -> ModuleType:
    """Import the module that writes GGUF, whose library is an extra.

    Raises:
        ConfigError: the library is not installed.
    """
    try:
        from shadowpeft.export import gguf_file
    except ModuleNotFoundError as error:
        raise ConfigError(f"--to gguf needs {error.name}; pip install 'shadowpeft[gguf]'") from error
    return gguf_file


def _refuse_taken(output: Path, to: Format) -> None:
    if to == "gguf":
        if output.suffix != ".gguf":
            raise ConfigError(f"a GGUF export is one file, so the output must end in .gguf, got {output}")
        if output.exists():
            raise ConfigError(f"the output {output} exists; choose another")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"the output {output} exists and is not an empty folder; choose another")


def _room_for(weights: int) -> int:
    """Return an estimate of the bytes of an export, from those of its weights."""
    return weights + max(round(_BESIDE * weights), _BESIDE_AT_LEAST)


def _refuse_full(output: Path, needed: int) -> None:
    """Raise unless the disk has room; called before the first byte is written.

    Raises:
        CheckpointError: it has none; the message says how many bytes are needed and free.
    """
    place = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"there is no room for {output}: it takes about {_shown(needed)}, and {_shown(free)} are free in "
            f"{place}; choose another disk or a smaller --dtype"
        )


def _shown(size: int) -> str:
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB"


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """Yield a path beside the output to write to; renamed into place if the block ends without an error.

    Raises:
        CheckpointError: it could not be written; nothing is left of it.
    """
    partial = output.parent / f".{output.name}.partial"
    try:
        _remove(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, output)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {output}: {error}; nothing is left of it") from error
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
