"""Which row of the table a model or a configuration belongs to, and what no row describes."""

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft.arch.families import FAMILIES
from shadowpeft.arch.family import Family, Task
from shadowpeft.errors import UnsupportedModelError


def supported() -> str:
    """Return the names of the supported families in one line."""
    return ", ".join(family.name for family in FAMILIES.values())


def family_of(model: PreTrainedModel) -> Family:
    """Return the row of a model.

    Raises:
        UnsupportedModelError: the model's family or class is not in the table, or it is an OPT with projected
            embeddings.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"expected a loaded transformers model, got {type(model).__name__}; load it with "
            "AutoModelForCausalLM.from_pretrained(...)"
        )
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {model.config.model_type!r}) is not supported; "
            f"supported: {supported()}"
        )
    names = [name for name in (family.causal, family.classifier) if name is not None]
    if not isinstance(model, tuple(getattr(transformers, name) for name in names)):
        raise UnsupportedModelError(f"expected a {' or '.join(names)}, got {type(model).__name__}")
    if family.model_type == "opt" and model.config.word_embed_proj_dim != model.config.hidden_size:
        raise UnsupportedModelError(
            "OPT with word_embed_proj_dim != hidden_size (opt-350m) is not supported: its head is narrower "
            "than its blocks"
        )
    return family


def family_of_config(config: PretrainedConfig) -> Family:
    """Return the row of a configuration.

    Raises:
        UnsupportedModelError: the family is not in the table.
    """
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {config.model_type!r} is not supported; supported: {supported()}"
        )
    return FAMILIES[config.model_type]


def task_of(model: PreTrainedModel) -> Task:
    """Return whether a model is a causal language model or a sequence classifier.

    Raises:
        UnsupportedModelError: as `family_of`.
    """
    causal = getattr(transformers, family_of(model).causal)
    return "causal-lm" if isinstance(model, causal) else "sequence-classification"
