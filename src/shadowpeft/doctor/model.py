"""What can be known of a model from its configuration alone: its row and what it can, or the row it needs."""

import copy
import dataclasses
from typing import Any

import torch
from transformers import PretrainedConfig

from shadowpeft import arch
from shadowpeft.arch.look import BY_HAND, Look, look
from shadowpeft.errors import UserError
from shadowpeft.model import ShadowedModel, attach
from shadowpeft.storage import stock_models

# Fields beside those of a row that real checkpoints leave out or set to null.
_OFTEN_OPEN = ("layer_types", "pad_token_id", "tie_word_embeddings")


def examine(source: str) -> dict[str, Any]:
    """Collect the facts as plain values.

    Args:
        source: folder or hub id of a model; its config.json alone is read.

    Returns:
        `model`, `model_type`; `multimodal`, the kind of a multimodal model that is known; `family`, the name
        of the model's row, `None` if it has none; `causal` and `classifier`, the classes; `misfits`, a
        sentence each. With a row also `row`, its fields; `can`, true or a sentence for each ability; `base`
        and `shadow`, sizes; `open_fields`, a sentence for each field that the file leaves out or sets to
        null. Without one `found`, what was found by looking, `proposed`, a row to paste, and `by_hand`, its
        fields that no look finds.

    Raises:
        UserError: there is no such model, or it cannot be read or reached.
    """
    whole = stock_models.whole_config(source)
    kind = arch.multimodal_of(whole)
    facts = {
        "model": source,
        "model_type": whole.model_type,
        "multimodal": None if kind is None else kind.name,
        "family": None,
    }
    try:
        text = arch.text_config_of(whole)
        family = arch.family_of_config(text)
    except UserError:
        return {**facts, **_unknown(whole)}
    row = {field.name: value for field, value in _fields_of(family) if isinstance(value, bool | str | tuple)}
    return {
        **facts,
        "family": family.name,
        "causal": family.causal if kind is None else kind.causal,
        "classifier": family.classifier if kind is None else kind.classifier,
        "row": {**row, "dense": [name for name, _ in family.dense]},
        **_known(whole, text, family),
        "open_fields": _open_fields(source, text, family),
    }


def _fields_of(family: arch.Family) -> list[tuple[Any, Any]]:
    values = vars(family)
    return [(field, values[field.name]) for field in dataclasses.fields(family)]


def _known(whole: PretrainedConfig, text: PretrainedConfig, family: arch.Family) -> dict[str, Any]:
    """Say what a model of the table can do, and attach a shadow of default sizes to it without weights."""
    misfits, base, shadow = [], None, None
    try:
        arch.refuse_no_language_model(whole)
    except UserError as error:
        misfits.append(str(error))
    try:
        with torch.device("meta"):
            model = attach(arch.build(copy.deepcopy(text), "causal-lm"))
        base, shadow = _sizes_of(model)
    except UserError as error:
        misfits.append(str(error))
    except Exception as error:  # what transformers raises for values that it cannot use
        misfits.append(f"{family.causal} cannot be built: {' '.join(str(error).split())}")
    can = {
        "train": not misfits or "it does not fit, see below",
        "classify": _classifies(whole, family),
        "packing": family.packs or "its decoder does not keep the documents of a packed row apart",
        "full_graph": family.passes_kwargs or "its decoder drops unknown arguments (torch.compile fullgraph)",
        "assisted": arch.takes_tokens_back(family) or "its blocks keep a recurrent state",
        "gguf": _writes_gguf(text),
    }
    return {"can": can, "base": base, "shadow": shadow, "misfits": list(dict.fromkeys(misfits))}


def _sizes_of(model: ShadowedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    base, settings = model.base, model.adapter.settings
    assert base is not None
    trained, total = model.get_nb_trainable_parameters()
    return (
        {
            "parameters": total - sum(weight.numel() for weight in model.adapter.parameters()),
            "blocks": arch.depth_of(base.config),
            "width": base.config.hidden_size,
        },
        {
            "parameters": trained,
            "backbone": sum(weight.numel() for weight in model.adapter.shadow.parameters()),
            **{name: value for name, value in settings.to_dict().items() if value is not None},
        },
    )


def _classifies(whole: PretrainedConfig, family: arch.Family) -> bool | str:
    try:
        arch.auto_class(whole, "sequence-classification")
        family.class_name("sequence-classification")
    except UserError as error:
        return str(error)
    return True


def _writes_gguf(text: PretrainedConfig) -> bool | str:
    try:
        from shadowpeft.export import gguf_layout
    except ImportError:
        return "unknown: the extra gguf is not installed"
    shadow = copy.deepcopy(text)
    try:
        arch.make_shadow(shadow, 1)
        gguf_layout.layout_of(shadow)
    except UserError as error:
        return str(error)
    return True


def _open_fields(source: str, text: PretrainedConfig, family: arch.Family) -> list[str]:
    """Name the fields that config.json leaves out or sets to null, and the values they have then."""
    written = stock_models.written_config(source)
    if text.model_type != written.get("model_type") and isinstance(written.get("text_config"), dict):
        written = written["text_config"]
    values, said = text.to_dict(), []
    for field in (family.mlp, family.kv_heads, family.head_dim, family.context, *_OFTEN_OPEN):
        if field is None:
            continue
        own = text.attribute_map.get(field, field)
        if own not in values or written.get(own, written.get(field)) is not None:
            continue
        how = "null" if own in written or field in written else "missing"
        said.append(f"{field} is {how} in config.json; its value is {_short(values[own])}")
    return said


def _short(value: Any) -> str:
    if isinstance(value, list):
        kinds = ", ".join(f"{value.count(kind)} {kind}" for kind in dict.fromkeys(value))
        return f"a list of {kinds}"
    return str(value)


def _unknown(whole: PretrainedConfig) -> dict[str, Any]:
    """Look at a model that is not in the table, and at the language model of a multimodal one."""
    seen, text = look(whole), whole.get_text_config(decoder=True)
    misfits = list(seen.misfits)
    if text.model_type != whole.model_type:
        inner = _inside(text)
        misfits += [f"its language model, {text.model_type}: {line}" for line in inner.misfits]
        seen.found, proposed = inner.found, inner.row()
    else:
        proposed = seen.row()
    return {
        "causal": seen.causal,
        "classifier": seen.classifier,
        "found": {name: value for name, value in seen.found.items() if name != "dense"},
        "proposed": proposed,
        "by_hand": [*BY_HAND],
        "misfits": misfits,
    }


def _inside(text: PretrainedConfig) -> Look:
    """Look at the language model of a multimodal model that is not known."""
    if text.model_type in arch.FAMILIES:
        name = arch.FAMILIES[text.model_type].name
        return Look(text.model_type, misfits=[f"it has a row, {name}, so the line alone is missing"])
    return look(text)
