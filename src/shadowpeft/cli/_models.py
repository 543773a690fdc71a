"""What the verbs share once they need torch: loading the model that the flags name, and printing results."""

import json
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.cli._choice import ModelChoice
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.model import ShadowedModel, preflight
from shadowpeft.reporting.devices import pick_device
from shadowpeft.storage import adapter_folder, hub_folder, stock_models
from shadowpeft.storage.adapter_folder import CONFIG
from shadowpeft.storage.jsonable import finite


def load(choice: ModelChoice) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load what the flags name: the attached model, the shadow alone, or the base alone.

    Args:
        choice: the flags; without an adapter the base alone is loaded.

    Returns:
        the model in evaluation mode, on the device chosen, and its tokenizer.

    Raises:
        UserError: the flags contradict each other, or something cannot be loaded.
    """
    if choice.detached and choice.base:
        raise ConfigError("--detached and --base exclude each other: the shadow alone, or the base alone")
    if choice.detached and choice.adapter is None:
        raise ConfigError("--detached needs --adapter; to run an exported model, give its folder as --model")
    adapter = choice.adapter and str(hub_folder.local(choice.adapter, adapter_folder.FILES))
    if adapter is not None and not Path(adapter).is_dir():
        raise CheckpointError(f"no adapter folder at {adapter}")
    refuse_swapped(choice.model, adapter)
    device = pick_device(choice.device)
    tokenizer = preflight.inspect(choice.model, needs_family=False).tokenizer
    base = stock_models.load_model(choice.model, choice.dtype).to(device).eval()  # type: ignore[arg-type]
    if adapter is None or choice.base:
        return base, tokenizer
    shadowed = ShadowedModel.from_pretrained(base, adapter)
    return (shadowed.detached() if choice.detached else shadowed), tokenizer


def refuse_swapped(model: str, adapter: str | None) -> None:
    """Refuse an adapter's folder given as the model, or a model's as the adapter, before anything is loaded.

    Raises:
        ConfigError: the two are swapped; the message says how to give them.
    """
    if _is_adapter(Path(model)):
        raise ConfigError(
            f"{model} is an adapter folder; "
            f"give it as --adapter and its base{_base_name(Path(model) / CONFIG)} as --model"
        )
    if adapter is not None and (Path(adapter) / "config.json").is_file() and not _is_adapter(Path(adapter)):
        raise ConfigError(
            f"{adapter} is a model; give it as --model, and as --adapter the folder of an adapter"
        )


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _base_name(path: Path) -> str:
    """Return the base that an adapter's settings name, in brackets; empty if the file is damaged."""
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["base"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        # That the folder is an adapter's is all that matters here.
        return ""
    return f" ({name or 'the model it was trained on'})"


def print_result(values: dict[str, Any], as_json: bool) -> None:
    """Print a result to standard output, as JSON or as aligned lines."""
    if as_json:
        # Elsewhere characters that the screen does not have would be escaped as JSON does not know it.
        escaped = not str(sys.stdout.encoding).lower().startswith("utf")
        print(json.dumps(finite(values), indent=2, ensure_ascii=escaped, allow_nan=False))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name.replace('_', ' '):<{width}}  {_shown(value)}")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(part)}" for name, part in value.items())
    return str(value)
