"""Which row of the table a model or a configuration belongs to, and what no row describes."""

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft.arch.families import FAMILIES
from shadowpeft.arch.family import Family, Task
from shadowpeft.errors import UnsupportedModelError

# How the names of classes end whose heads are not those of language models.
_OTHER_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "RewardModel",
)


def supported() -> str:
    """Return the names of the supported families in one line."""
    return ", ".join(family.name for family in FAMILIES.values())


def family_of(model: PreTrainedModel) -> Family:
    """Return the row of a model.

    Raises:
        UnsupportedModelError: the model's family or class is not in the table, it is configured as an
            encoder, or it is an OPT with projected embeddings.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"expected a loaded transformers model, got {type(model).__name__}; load it with "
            "AutoModelForCausalLM.from_pretrained(...)"
        )
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise _unlisted(f"{type(model).__name__} (model_type {model.config.model_type!r})", model.config)
    names = [name for name in (family.causal, family.classifier) if name is not None]
    if not isinstance(model, tuple(getattr(transformers, name) for name in names)):
        raise UnsupportedModelError(
            f"expected a {' or '.join(names)}, got {type(model).__name__}, which has {_head_of(model)}; load "
            "it with AutoModelForCausalLM, or a classifier with AutoModelForSequenceClassification"
        )
    if isinstance(model, getattr(transformers, family.causal)):
        refuse_encoder(model.config)
    if family.model_type == "opt" and model.config.word_embed_proj_dim != model.config.hidden_size:
        raise UnsupportedModelError(
            "OPT with word_embed_proj_dim != hidden_size (opt-350m) is not supported: its head is narrower "
            "than its blocks"
        )
    return family


def takes_tokens_back(family: Family) -> bool:
    """Return whether a model can forget its last tokens; a recurrent state cannot be taken back."""
    return not getattr(transformers, family.causal)._is_stateful


def family_of_config(config: PretrainedConfig) -> Family:
    """Return the row of a configuration.

    Raises:
        UnsupportedModelError: the family is not in the table.
    """
    if config.model_type not in FAMILIES:
        raise _unlisted(f"model_type {config.model_type!r}", config)
    return FAMILIES[config.model_type]


def refuse_no_language_model(config: PretrainedConfig) -> None:
    """Raise if a checkpoint's configuration is not that of a causal language model.

    Raises:
        UnsupportedModelError: it is an encoder-decoder, an encoder, or a model with a head of another task.
    """
    if config.is_encoder_decoder:
        raise _unlisted(f"model_type {config.model_type!r}", config)
    refuse_encoder(config)
    heads = [name for name in config.architectures or [] if name.endswith(_OTHER_HEADS)]
    if heads:
        raise UnsupportedModelError(
            f"the checkpoint is a {heads[0]}, whose head is not that of a language model; give the language "
            "model that it was made of"
        )


def refuse_encoder(config: PretrainedConfig) -> None:
    """Raise if a decoder is configured as an encoder, whose tokens see those after them.

    Raises:
        UnsupportedModelError: it is.
    """
    field = encodes(config)
    if field is not None:
        raise UnsupportedModelError(
            f"this {config.model_type} is an encoder ({field}), as embedding models are: each token sees "
            "those after it, and no text can be learned or written; take a language model"
        )


def encodes(config: PretrainedConfig) -> str | None:
    """Name the field of a decoder's configuration that makes it an encoder, `None` if there is none."""
    # Gemma 4 says it with a word; "vision" is of the tokens of images alone.
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "use_bidirectional_attention"
    return "is_causal" if getattr(config, "is_causal", True) is False else None


def _unlisted(what: str, config: PretrainedConfig) -> UnsupportedModelError:
    """Say that a model is of no family in the table."""
    if config.is_encoder_decoder:
        return UnsupportedModelError(
            f"{what} is an encoder-decoder, and a shadow runs beside one decoder; take a causal language "
            "model"
        )
    return UnsupportedModelError(
        f"{what} is not supported (`shadowpeft doctor --model` says what its row would need); supported: "
        f"{supported()}"
    )


def _head_of(model: PreTrainedModel) -> str:
    return "no head" if type(model).__name__.endswith("Model") else "a head of another task"


def task_of(model: PreTrainedModel) -> Task:
    """Return whether a model is a causal language model or a sequence classifier.

    Raises:
        UnsupportedModelError: as `family_of`.
    """
    causal = getattr(transformers, family_of(model).causal)
    return "causal-lm" if isinstance(model, causal) else "sequence-classification"
