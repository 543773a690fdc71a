"""What `generate` and `eval` share: loading a model the way the flags say, and printing results."""

import json
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.model import ShadowedModel
from shadowpeft.reporting.devices import pick_device
from shadowpeft.storage import stock_models
from shadowpeft.storage.adapter_folder import CONFIG
from shadowpeft.storage.jsonable import finite

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load(
    model: str, adapter: str | None, detached: bool, base: bool, dtype: str, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load base and adapter: attached, the shadow alone (`detached`), or the base alone (`base`, or no adapter).

    Raises:
        UserError: the flags contradict each other, or something cannot be loaded.
    """
    if detached and base:
        raise ConfigError("--detached and --base exclude each other: the shadow alone, or the base alone")
    if detached and adapter is None:
        raise ConfigError("--detached needs --adapter; to run an exported model, give its folder as --model")
    if adapter is not None and not Path(adapter).is_dir():
        raise CheckpointError(f"no adapter folder at {adapter}")
    refuse_swapped(model, adapter)
    target = pick_device(device)
    stock_models.load_config(model)  # a model that cannot be reached is found out with one request
    tokenizer = stock_models.load_tokenizer(model)
    loaded = stock_models.load_model(model, dtype).to(target).eval()  # type: ignore[arg-type]
    if adapter is None or base:
        return loaded, tokenizer
    shadowed = ShadowedModel.from_pretrained(loaded, adapter)
    return (shadowed.detached() if detached else shadowed), tokenizer


def refuse_swapped(model: str, adapter: str | None) -> None:
    """Refuse an adapter's folder given as the model, and a model's given as the adapter, before anything is loaded.

    Raises:
        ConfigError: they are swapped; the message says how to give them.
    """
    if (Path(model) / CONFIG).is_file():
        raise ConfigError(
            f"{model} is an adapter folder; give it as --adapter and its base{_base_name(Path(model) / CONFIG)} as --model"
        )
    if (
        adapter is not None
        and (Path(adapter) / "config.json").is_file()
        and not (Path(adapter) / CONFIG).is_file()
    ):
        raise ConfigError(
            f"{adapter} is a model; give it as --model, and as --adapter the folder of an adapter"
        )


def _base_name(path: Path) -> str:
    try:
        return f" ({json.loads(path.read_text(encoding='utf-8'))['base']['name'] or 'the model it was trained on'})"
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # damaged; what matters here is that it is an adapter's
        return ""


def print_result(values: dict[str, Any], as_json: bool) -> None:
    """Print a result to stdout, as JSON or as aligned lines."""
    if as_json:
        print(json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False))
        return
    width = max(map(len, values))
    for name, value in values.items():
        shown = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{name.replace('_', ' '):<{width}}  {shown}")
