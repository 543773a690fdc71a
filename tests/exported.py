"""What the tests of exported files in other programs share: a shadow that writes words, prompts, and transformers' greedy answers."""

from pathlib import Path

import torch
from families import attached
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import ShadowConfig, embedded

ANSWER = 64
PROMPTS = [
    "The history of the city", "In 1984, the first", "She opened the door and", "What is the capital of France?", "The river flows",
    "A list of colours:", "He was born in", "The film was released", "Once upon a time", "Water boils at", "My favourite food is",
    "The population of the town", "It was a dark night", "The company was founded", "To make bread, you", "The war began",
    "Scientists have found", "The song reached number 1", "“Come in,” he said,", "Réunion is an island",
]  # fmt: skip


def save_adapter(folder: Path) -> str:
    """Save an adapter of the embedded model whose shadow is a copy of all its blocks, so that it has something to say; return the base."""
    base_folder = str(Path(embedded.__file__).parent / "model")
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    sizes = {"shadow_layers": base.config.num_hidden_layers, "shadow_intermediate_size": base.config.intermediate_size}
    model, state = attached(base, ShadowConfig(**sizes)), base.model.state_dict()
    with torch.no_grad():
        for name, tensor in model.adapters["default"].shadow.backbone.named_parameters():
            tensor.copy_(state[name])
    model.save_pretrained(folder)
    return base_folder


def greedy(model: PreTrainedModel, ids: list[int]) -> list[int]:
    given = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=ANSWER, do_sample=False, top_p=None, top_k=None, temperature=None
        )
    return out[0, len(ids) :].tolist()


def until_end(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Cut an answer where llama.cpp does: at the model's end token, and at some others that it knows by name."""
    ends = set(tokenizer.convert_tokens_to_ids([tokenizer.eos_token, "<|endoftext|>", "<|im_end|>"]))
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]
