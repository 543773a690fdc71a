"""The models of this process, loaded as the settings name them."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.data.encode import stated_limit
from shadowpeft.errors import CheckpointError
from shadowpeft.generate import drafting_of
from shadowpeft.model import ShadowedModel, preflight
from shadowpeft.reporting.devices import pick_device
from shadowpeft.serve.local import LocalModel
from shadowpeft.serve.settings import Serve
from shadowpeft.storage import adapter_folder, hub_folder, stock_models


def models_of(settings: Serve) -> dict[str, LocalModel]:
    """Load the base and its adapters; return the models by the names that callers give, the default first.

    Raises:
        UserError: something cannot be loaded.
    """
    drafting_of(settings.draft, settings.draft_tokens)  # raises if one of them is not what it may be
    assert settings.model is not None
    folders = {name: folder_of(source) for name, source in settings.adapters().items()}
    base, tokenizer = _load(settings, settings.model)
    if not folders:
        return {Path(settings.model).name or settings.model: _stock(base, tokenizer)}
    shadowed: ShadowedModel | None = None
    for name, folder in folders.items():
        if shadowed is None:
            shadowed = ShadowedModel.from_pretrained(base, folder, adapter=name or "default")
        else:
            shadowed.load_adapter(folder, name or "default")
    assert shadowed is not None
    found: dict[str, LocalModel] = {}
    for name in folders:
        attached, detached = ("attached", "detached") if name is None else (name, f"{name}-detached")
        found[attached] = _attached(shadowed, tokenizer, name or "default", settings)
        found[detached] = _stock(shadowed.detached(name or "default").eval(), tokenizer)
    return {**found, "base": _stock(base, tokenizer)}


def model_of_folder(settings: Serve, source: str) -> LocalModel:
    """Load one stock model, such as an exported shadow.

    Raises:
        UserError: it cannot be loaded.
    """
    return _stock(*_load(settings, source))


def _load(settings: Serve, source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    device = pick_device(settings.device)
    tokenizer = preflight.inspect(source, needs_family=False).tokenizer
    dtype: Any = settings.dtype
    return stock_models.load_model(source, dtype).to(device).eval(), tokenizer  # type: ignore[arg-type]


def folder_of(source: str) -> str:
    """Return the folder of an adapter, which a hub id is fetched to.

    Raises:
        CheckpointError: there is none.
    """
    folder = str(hub_folder.local(source, adapter_folder.FILES))
    if not Path(folder).is_dir():
        raise CheckpointError(f"no adapter folder at {folder}")
    return folder


def _stock(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LocalModel:
    return LocalModel(model, tokenizer, stated_limit(arch.context_of(model.config), tokenizer))


def _attached(
    model: ShadowedModel, tokenizer: PreTrainedTokenizerBase, adapter: str, settings: Serve
) -> LocalModel:
    base, shadow, _ = model.cache_is_for(adapter) or (model.config, model.config, adapter)
    limits = [limit for config in (base, shadow) if (limit := arch.context_of(config)) is not None]
    limit = stated_limit(min(limits, default=None), tokenizer)
    drafts = None
    if settings.draft is not None:
        drafts = {"draft": settings.draft, "draft_tokens": settings.draft_tokens}
    return LocalModel(model, tokenizer, limit, adapter, drafts)
