"""Projected models of the authors' package, `shadow-peft`: a decoder, a projection and the base's head.

The decoder is pretrained; the projection is linear, to the base's width. These folders are read as strictly
as our own. Their configuration gives Python paths of classes, which are never imported.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import arch
from shadowpeft.errors import CheckpointError
from shadowpeft.shadow import Shadow
from shadowpeft.shadow.network import explicit_from_config, refuse_misfit
from shadowpeft.storage import reading

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPE = "causal_lm_with_hidden_projection"
_HEAD, _PROJECTION, _BACKBONE = "lm_head.weight", "shadow_hidden_projection.weight", "shadow_model."
# Rows of the head that are compared: enough to distinguish two bases.
_ROWS = 16
# They may differ by this share of the largest value: what rounding to a mantissa of 8 bits can change.
_ROUNDING = 0.02


def holds(folder: str | Path) -> bool:
    """Return whether a path is the folder of a projected model."""
    try:
        values = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # Not a folder, or damaged. It is then read as a stock model, and that reader says what is wrong.
        return False
    return isinstance(values, dict) and values.get("model_type") == MODEL_TYPE


def backbone_config(folder: str | Path) -> PretrainedConfig:
    """Read the configuration of a folder's decoder.

    Raises:
        CheckpointError: it is missing, damaged, or of a family that is not supported.
    """
    path = Path(folder) / CONFIG
    return reading.stock_config(_described(path), f"the shadow in {folder}")


def load(base: PreTrainedModel, folder: str | Path) -> Shadow:
    """Read decoder and projection for a base; the saved head must be that base's, and is not read itself.

    Raises:
        CheckpointError: a file is missing or damaged, a tensor is missing, extra or of another shape, or the
            head is another base's.
        UnsupportedModelError: the shadow does not fit the base.
    """
    folder = Path(folder)
    described, config = _described(folder / CONFIG), backbone_config(folder)
    refuse_misfit(base, config)
    width = base.config.hidden_size
    if config.hidden_size == width:
        raise CheckpointError(
            f"the shadow in {folder} is of the base's width, {width}, where no shadow here has a projection"
        )
    path_of = _files(folder)
    found: reading.Shapes = {}
    for path in sorted(set(path_of.values())):
        found |= reading.read_header(path)
    build = partial(_build, base, described)
    ours = reading.shapes_of(
        build, folder / CONFIG, folder, layers=config.num_hidden_layers, tensors=len(found)
    )
    names = {name: _their_name(name) for name in ours}
    wanted = {names[name]: shape for name, shape in ours.items()}
    # A classifier made of the base no longer has the base's head: width and vocabulary are all that can be
    # compared.
    wanted[_HEAD] = (base.config.vocab_size, width)
    reading.compare(folder, wanted, found)
    _refuse_other_head(base, path_of[_HEAD], folder)
    return reading.fill(build, {name: _read(path_of[theirs], theirs) for name, theirs in names.items()})


def _build(base: PreTrainedModel, described: dict[str, Any]) -> Shadow:
    return explicit_from_config(base, reading.stock_config(described, "the shadow"))


def _their_name(name: str) -> str:
    """Return what the authors' package calls a tensor of ours."""
    if name == "projection.weight":
        return _PROJECTION
    return _BACKBONE + name.removeprefix("backbone.")


def _described(path: Path) -> dict[str, Any]:
    described = reading.read_object(path).get("shadow_model_config")
    if not isinstance(described, dict):
        raise CheckpointError(
            f"{path} does not describe a projected model: 'shadow_model_config' must hold a configuration"
        )
    return described


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor: one file for all, or several that an index lists.

    Raises:
        CheckpointError: a file is missing or damaged, the index names a file outside the folder, or a file
            lacks a tensor that the index says it holds.
    """
    if not (folder / INDEX).is_file():
        return dict.fromkeys(reading.read_header(folder / WEIGHTS), folder / WEIGHTS)
    listed = reading.read_object(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(map(_is_plain_name, listed.values())):
        raise CheckpointError(
            f"{folder / INDEX} does not list the files of the weights: 'weight_map' must name files of its "
            "folder"
        )
    headers = {file: reading.read_header(folder / file) for file in set(listed.values())}
    lost = [name for name, file in listed.items() if name not in headers[file]]
    if lost:
        raise CheckpointError(
            f"{folder / listed[lost[0]]} does not hold {lost[0]}, which {INDEX} says it does; copy the "
            "folder again"
        )
    return {name: folder / file for name, file in listed.items()}


def _is_plain_name(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file


def _refuse_other_head(base: PreTrainedModel, path: Path, folder: Path) -> None:
    """Raise unless a few rows of the saved head are those of the base's head, up to rounding.

    Raises:
        CheckpointError: they are not.
    """
    if arch.task_of(base) != "causal-lm":
        return
    weight_VD = arch.head_of(base).weight
    if weight_VD.is_meta or not weight_VD.is_floating_point() or arch.is_packed(weight_VD):
        return  # quantised or not in memory
    if weight_VD.shape[0] != base.config.vocab_size:
        return  # quantised or sharded
    picked = torch.linspace(0, len(weight_VD) - 1, _ROWS, dtype=torch.float64).long().unique()
    with safe_open(path, framework="pt") as file:
        rows = file.get_slice(_HEAD)
        saved_nD = torch.stack([rows[row : row + 1][0] for row in picked.tolist()]).double()
    ours_nD = weight_VD.detach()[picked.to(weight_VD.device)].double().cpu()
    if (saved_nD - ours_nD).abs().max() > _ROUNDING * ours_nD.abs().max():
        raise CheckpointError(
            f"the shadow in {folder} was pretrained beside another base: the head saved with it is not this "
            "base's; load the base it was pretrained beside"
        )


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
