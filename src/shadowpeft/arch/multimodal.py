"""The text path of multimodal checkpoints: the language model inside one, as a model of the table's families.

A multimodal model of this kind embeds its tokens, writes the features of images among them, and runs a
decoder and a head that a family of the table describes. On text alone the decoder and the head are all of it.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from shadowpeft.arch.configs import build
from shadowpeft.arch.families import FAMILIES
from shadowpeft.arch.family import Task
from shadowpeft.arch.lookup import supported
from shadowpeft.arch.modules import decoder_of
from shadowpeft.errors import UnsupportedModelError


@dataclass(frozen=True)
class Multimodal:
    """Where one kind of multimodal model keeps its language model.

    Attributes:
        name: its usual name.
        model_type: `config.model_type` in transformers; the language model's is that of `config.text_config`.
        causal: class name of the model that writes text (`AutoModelForImageTextToText` loads it).
        classifier: class name of its sequence classifier, `None` where transformers has none.
        decoder: path from either class to the module that loops over the language model's blocks.
        head: path from the causal class to the head; a classifier's is `score`.
        without: fields of the language model's configuration that its own causal class applies to the logits,
            and this class does not.
    """

    name: str
    model_type: str
    causal: str
    classifier: str | None = None
    decoder: str = "model.language_model"
    head: str = "lm_head"
    without: tuple[str, ...] = ()

    def class_name(self, task: Task) -> str:
        """Return the name of the transformers class for a task.

        Raises:
            UnsupportedModelError: transformers has no such class.
        """
        if task == "causal-lm":
            return self.causal
        if self.classifier is None:
            raise UnsupportedModelError(
                f"transformers has no sequence classifier of {self.name} checkpoints, which are multimodal; "
                "train it as a language model, or take a model of text alone"
            )
        return self.classifier

    def is_one_of(self, names: Iterable[str]) -> bool:
        """Return whether one of the names is that of its causal class or of its classifier."""
        return bool({self.causal, self.classifier} & {*names})


MULTIMODAL: dict[str, Multimodal] = {
    kind.model_type: kind
    for kind in (
        Multimodal(
            "Gemma 3", "gemma3", "Gemma3ForConditionalGeneration", "Gemma3ForSequenceClassification",
            without=("final_logit_softcapping",),
        ),
        Multimodal("Gemma 4", "gemma4", "Gemma4ForConditionalGeneration"),
        Multimodal(
            "Llama 4", "llama4", "Llama4ForConditionalGeneration", decoder="language_model.model",
            head="language_model.lm_head",
        ),
        Multimodal("Mistral 3", "mistral3", "Mistral3ForConditionalGeneration"),
        Multimodal(
            "Qwen3.5", "qwen3_5", "Qwen3_5ForConditionalGeneration", "Qwen3_5ForSequenceClassification"
        ),
        Multimodal("Qwen3.5-MoE", "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
        Multimodal("Qwen3-VL", "qwen3_vl", "Qwen3VLForConditionalGeneration"),
    )
}  # fmt: skip
# Language models that have no causal class of their own, and the family that computes the same on text. The
# three positions of a token of text are equal, so Qwen3-VL's interleaved rotary factors are Qwen3's.
_SAME_ON_TEXT = {"qwen3_vl_text": "qwen3"}
# Of the rotary settings: how the three positions share the channels.
_OF_THREE_POSITIONS = ("mrope_section", "mrope_interleaved")

# What carries an image, a video or sound into such a model.
NOT_TEXT = frozenset(
    {
        "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", "image_sizes",
        "image_position_ids", "video_position_ids", "mm_encoder_outputs", "input_features",
        "input_features_mask", "visual_pos_masks", "deepstack_visual_embeds",
    }
)  # fmt: skip
# What marks the tokens of an image: zero for text.
MARKS_OF_IMAGES = frozenset({"token_type_ids", "mm_token_type_ids"})

# By the multimodal model, which a view does not hold.
_views: WeakKeyDictionary[nn.Module, PreTrainedModel] = WeakKeyDictionary()


def multimodal_of(config: PretrainedConfig) -> Multimodal | None:
    """Return the kind of multimodal model that a configuration belongs to, `None` if it is of text alone.

    Args:
        config: of the checkpoint, or of the language model that `text_model_of` found in it.
    """
    # Read once: an attribute of a configuration takes long, and this is asked at every call.
    model_type, architectures = config.model_type, config.architectures or []
    for kind in MULTIMODAL.values():
        if kind.model_type == model_type or kind.is_one_of(architectures):
            return kind
    return None


def auto_class(config: PretrainedConfig, task: Task) -> Any:
    """Return transformers' auto class that loads the whole model of a checkpoint.

    Args:
        config: as for `multimodal_of`.
        task: what the model is for.

    Raises:
        UnsupportedModelError: transformers has no such class.
    """
    kind = multimodal_of(config)
    if task == "sequence-classification":
        if kind is not None:
            kind.class_name(task)
        return AutoModelForSequenceClassification
    return AutoModelForCausalLM if kind is None else AutoModelForImageTextToText


def text_config_of(config: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration of the language model in a multimodal one, as that of a family of the table.

    Any other configuration is returned as it is.

    Raises:
        UnsupportedModelError: the language model is of no family in the table.
    """
    kind = MULTIMODAL.get(config.model_type)
    if kind is None:
        return config
    text = _as_family(kind, config.text_config)
    # The class that holds the head ties it, by its own configuration.
    if "." not in kind.head:
        text.tie_word_embeddings = config.tie_word_embeddings
    for field in kind.without:
        setattr(text, field, None)
    for field in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, field) is None:
            setattr(text, field, getattr(config, field, None))
    text.name_or_path, text.architectures = config.name_or_path, config.architectures
    text.id2label, text.label2id, text.problem_type = config.id2label, config.label2id, config.problem_type
    return text


def _as_family(kind: Multimodal, text: PretrainedConfig) -> PretrainedConfig:
    """Copy a language model's configuration, with the model type of the family that describes it."""
    model_type = _SAME_ON_TEXT.get(text.model_type, text.model_type)
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"the language model of this {kind.causal} (model_type {text.model_type!r}) is not supported; "
            f"supported: {supported()}"
        )
    if model_type == text.model_type:
        return copy.deepcopy(text)
    values = copy.deepcopy(text.to_dict())
    del values["model_type"]
    rope = values["rope_parameters"]
    values["rope_parameters"] = {name: rope[name] for name in rope if name not in _OF_THREE_POSITIONS}
    same: PretrainedConfig = AutoConfig.for_model(model_type, **values)
    same._attn_implementation = text._attn_implementation
    return same


def text_model_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the language model in a multimodal model, as a stock model of text that has the same modules.

    It has no weights of its own: decoder and head are the multimodal model's. The same model is returned each
    time. Any other model is returned as it is.

    Raises:
        UnsupportedModelError: the model is of another class than the ones that are known, or its language
            model is of no family in the table.
    """
    kind = MULTIMODAL.get(model.config.model_type) if isinstance(model, PreTrainedModel) else None
    if kind is None:
        return model
    task = _task_of(model, kind)
    config = text_config_of(model.config)
    config.architectures = [kind.class_name(task)]
    decoder = model.get_submodule(kind.decoder)
    head = model.get_submodule(kind.head if task == "causal-lm" else "score")
    view = _views.get(model)
    if view is None or not {decoder, head} <= set(view.children()):
        view = _views[model] = _view(config, task, decoder, head)
    # In place: who holds the view may hold its configuration, too.
    vars(view.config).update(vars(config))
    if task == "causal-lm":
        view.generation_config = model.generation_config
    view.training = decoder.training
    return view


def _task_of(model: PreTrainedModel, kind: Multimodal) -> Task:
    if isinstance(model, getattr(transformers, kind.causal)):
        return "causal-lm"
    if kind.classifier is not None and isinstance(model, getattr(transformers, kind.classifier)):
        return "sequence-classification"
    names = [name for name in (kind.causal, kind.classifier) if name is not None]
    raise UnsupportedModelError(f"expected a {' or '.join(names)}, got {type(model).__name__}")


def _view(config: PretrainedConfig, task: Task, decoder: nn.Module, head: nn.Module) -> PreTrainedModel:
    """Build a model of text around the decoder and the head of another model."""
    family = FAMILIES[config.model_type]
    with torch.device("meta"):
        view: PreTrainedModel = getattr(transformers, family.class_name(task))(config)
    view.set_submodule(family.decoder, decoder)
    view.set_submodule("lm_head" if task == "causal-lm" else "score", head)
    return view


def shadow_decoder(base: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Build an untrained decoder of the base's architecture from a shadow's configuration."""
    decoder = decoder_of(base)
    if decoder.config.model_type == config.model_type:
        return type(decoder)(config)
    with torch.device("meta"):
        stock = decoder_of(build(copy.deepcopy(config), "causal-lm"))
    return type(stock)(config)


def stock_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model's decoder, which can be saved and read again by its family's name.

    One that is not of a class of its family, as Qwen3-VL's, gives its weights to one that is.
    """
    decoder = decoder_of(model)
    if decoder.config.model_type == model.config.model_type:
        return decoder
    stock = shadow_decoder(model, copy.deepcopy(model.config))
    stock.load_state_dict(decoder.state_dict(keep_vars=True), strict=True, assign=True)
    return stock.train(decoder.training)
