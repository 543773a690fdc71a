"""Exports for other programs: shadows that write words, prompts, and the greedy answers of transformers."""

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from helpers.families import attached
from shadowpeft import ShadowConfig, ShadowedModel, embedded

ANSWER = 64
SHADOWS = ("implicit", "explicit")  # without a projection and with one, which the export folds into the head
WIDER = 32
PROMPTS = [
    "The history of the city",
    "In 1984, the first",
    "She opened the door and",
    "What is the capital of France?",
    "The river flows",
    "A list of colours:",
    "He was born in",
    "The film was released",
    "Once upon a time",
    "Water boils at",
    "My favourite food is",
    "The population of the town",
    "It was a dark night",
    "The company was founded",
    "To make bread, you",
    "The war began",
    "Scientists have found",
    "The song reached number 1",
    "“Come in,” he said,",
    "Réunion is an island",
]


def save_adapter(folder: Path, kind: str) -> str:
    """Save an adapter of the embedded model, and return the folder of that base.

    The shadow is a copy of all blocks of the base, so that its answers are words.

    Args:
        folder: where to.
        kind: one of `SHADOWS`; both say nearly the same.
    """
    base_folder = str(Path(embedded.__file__).parent / "model")
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    model = {"implicit": _copied, "explicit": _widened}[kind](base)
    model.save_pretrained(folder)
    return base_folder


def _copied(base: PreTrainedModel) -> ShadowedModel:
    """A shadow of the base's blocks that reads the base's embeddings."""
    sizes = {
        "shadow_layers": base.config.num_hidden_layers,
        "shadow_intermediate_size": base.config.intermediate_size,
    }
    model, state = attached(base, ShadowConfig(**sizes)), base.model.state_dict()
    with torch.no_grad():
        for name, tensor in model.adapters["default"].shadow.backbone.named_parameters():
            tensor.copy_(state[name])
    return model


def _widened(base: PreTrainedModel) -> ShadowedModel:
    """A shadow that computes what the base does in some channels of a wider stream, with zeros in the others.

    The projection P puts the channels back in their order.
    The last norm stretches channels and P shrinks them again, so that the folded head is another table than
    the embeddings.
    """
    config, state, narrow = copy.deepcopy(base.config), base.model.state_dict(), base.config.hidden_size
    config.hidden_size = wide = narrow + WIDER
    network = AutoModelForCausalLM.from_config(config, dtype=base.dtype)
    channels = torch.randperm(wide, generator=torch.Generator().manual_seed(0))[:narrow]
    stretch = 2.0 ** (torch.arange(wide) % 3)
    with torch.no_grad():
        for name, tensor in network.model.named_parameters():
            _widen(tensor, state[name], channels)
        network.model.norm.weight.mul_(stretch)
        model = attached(base, shadow=network)
        projection = model.adapters["default"].shadow.projection.weight.zero_()
        projection[torch.arange(narrow), channels] = 1 / stretch[channels].to(projection.dtype)
    return model


def _widen(tensor: torch.Tensor, narrow: torch.Tensor, channels: torch.Tensor) -> None:
    """Fill a weight of the wider model."""
    tensor.zero_()
    if tensor.shape == narrow.shape:  # of a head
        tensor.copy_(narrow)
    elif tensor.dim() == 1:  # of a norm: a mean over more channels, the rest of them zero, is smaller
        tensor[channels] = narrow * (len(narrow) / len(tensor)) ** 0.5
    elif len(tensor) != len(narrow):  # what a block writes
        tensor[channels] = narrow
    else:
        tensor[:, channels] = narrow


def greedy(model: PreTrainedModel, ids: list[int]) -> list[int]:
    given = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=ANSWER,
            do_sample=False,
            top_p=None,
            top_k=None,
            temperature=None,
        )
    return out[0, len(ids) :].tolist()


def until_end(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Cut an answer where llama.cpp does: at the model's end token, and at others that it knows by name."""
    ends = set(tokenizer.convert_tokens_to_ids([tokenizer.eos_token, "<|endoftext|>", "<|im_end|>"]))
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]
