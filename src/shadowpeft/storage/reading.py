"""Strict reading of a folder: its files are checked before a module is built or memory is allocated."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PretrainedConfig

from shadowpeft import arch
from shadowpeft.checked_fields import nearest
from shadowpeft.errors import CheckpointError, UserError

_FLOATS = ("F16", "BF16", "F32", "F64")
# What transformers raises for sizes and names from which it cannot build a model.
_UNBUILDABLE = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, StrictDataclassError)
Shapes = dict[str, tuple[int, ...]]
Module = TypeVar("Module", bound=nn.Module)


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that should hold an object; any other value reads as an object without keys.

    Raises:
        CheckpointError: it is missing, cannot be read or is not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        return {}
    return content


def read_meta(path: Path, formats: Collection[int], known: Collection[str]) -> dict[str, Any]:
    """Read a description that is of one of the formats given.

    Args:
        path: the file, JSON.
        formats: the formats that can be read.
        known: the keys that the description may have.

    Raises:
        CheckpointError: it cannot be read, as in `read_object`, it is of another format, or has another key.
    """
    meta = read_object(path)
    if meta.get("format") not in formats:
        raise CheckpointError(
            f"{path} has format {meta.get('format')!r}, this version of shadowpeft reads format "
            f"{' or '.join(map(str, formats))}; make it again, or read it with the version that wrote it"
        )
    refuse_unknown(path, meta, known)
    return meta


def refuse_unknown(path: Path, found: Iterable[str], known: Collection[str], within: str = "") -> None:
    """Raise if a description has a key that nothing here reads, since what it asks for would not be done.

    Args:
        path: the file, for messages.
        found: the keys found.
        known: the keys there may be.
        within: the key they stand under, such as `base.`.

    Raises:
        CheckpointError: names the first such key, and the known one nearest to it.
    """
    for key in found:
        if key not in known:
            raise CheckpointError(
                f"{path} has the unknown key {within}{key}{nearest(key, known)}; it may hold "
                f"{', '.join(known)}: remove the key, or read the file with the version that wrote it"
            )


def stock_config(values: Mapping[str, Any], whose: str) -> PretrainedConfig:
    """Turn stored values into a configuration of a supported family; code that they name is ignored.

    Args:
        values: the configuration as JSON holds it.
        whose: what the values describe, for messages.

    Raises:
        CheckpointError: the family is not supported, or does not take a value.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in arch.FAMILIES:
        raise CheckpointError(
            f"{whose} is of the family {model_type!r}, which is not supported; supported: {arch.supported()}"
        )
    # `auto_map` names code to import.
    values = {name: value for name, value in values.items() if name != "auto_map"}
    try:
        return CONFIG_MAPPING[model_type].from_dict(values)
    except _UNBUILDABLE as error:
        raise CheckpointError(
            f"{whose} has a configuration that {model_type} does not take: {' '.join(str(error).split())}"
        ) from error


def shapes_of(
    build: Callable[[], nn.Module], description: Path, weights: Path, layers: Any, tensors: int
) -> Shapes:
    """Compute names and shapes of the tensors that a description asks for, without allocating them.

    Args:
        build: makes the module.
        description: the file that asks for it.
        weights: the file that should hold its tensors.
        layers: how many blocks the description asks for.
        tensors: how many tensors the weights file holds.

    Raises:
        CheckpointError: no such module can be built.
    """
    # Even without memory for tensors, a million modules take long to make.
    if not isinstance(layers, int) or layers > tensors:
        raise CheckpointError(
            f"{description} asks for {layers} shadow blocks, {weights} holds {tensors} tensors in all"
        )
    try:
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    except UserError:
        raise
    except _UNBUILDABLE as error:
        raise CheckpointError(
            f"{description} does not describe a shadow that can be built: {' '.join(str(error).split())}"
        ) from error


def read_header(path: Path) -> Shapes:
    """Read the names and shapes of a safetensors file, whose tensors must all be floating-point.

    Raises:
        CheckpointError: it is missing or damaged, or holds tensors of another type.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            odd = [name for name, part in slices.items() if part.get_dtype() not in _FLOATS]
            found = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({error}); copy it again or use an earlier checkpoint"
        ) from error
    if odd:
        raise CheckpointError(f"{path}: {odd[0]} is not of a floating-point type ({', '.join(_FLOATS)})")
    return found


def read_ids(path: Path) -> Tensor:
    """Read a safetensors file that holds one list of ids, by the name `ids`.

    Raises:
        CheckpointError: it is missing or damaged, or holds anything else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if list(file.keys()) != ["ids"] or file.get_slice("ids").get_dtype() not in ("I32", "I64"):
                raise CheckpointError(f"{path} must hold whole numbers by the name 'ids', and nothing else")
            ids: Tensor = file.get_tensor("ids")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); copy it again") from error
    return ids


def compare(path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the names and shapes found in a weights file are exactly those wanted.

    Raises:
        CheckpointError: they differ; the message names the first three differences.
    """
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"extra {name}" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{path} does not fit its configuration: {'; '.join(problems[:3])}{more}")


def load_module(build: Callable[[], Module], description: Path, weights: Path, layers: Any) -> Module:
    """Build the module that a description asks for, with the tensors of one weights file.

    The file must hold exactly the module's tensors. Names and shapes are compared before memory is allocated.

    Args:
        build: makes the module.
        description: the file that asks for it.
        weights: the file that holds its tensors, under the module's own names.
        layers: how many blocks the description asks for.

    Raises:
        CheckpointError: the weights file is missing or damaged, no such module can be built, or the tensors
            of the file are not exactly those of the module.
    """
    found = read_header(weights)
    compare(weights, shapes_of(build, description, weights, layers=layers, tensors=len(found)), found)
    with safe_open(weights, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in found}
    return fill(build, state)


def fill(build: Callable[[], Module], state: Mapping[str, Tensor]) -> Module:
    """Build a module and give it exactly the tensors of `state`, which were compared with it before."""
    module = build()
    # Assigning keeps the precision of the file, where copying would round to that of the new module. The
    # caller chooses the final one.
    module.load_state_dict(state, strict=True, assign=True)
    return module
