"""The models that are timed: shapes of published models with random weights, and the embedded model.

Nothing is downloaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shadowpeft.embedded import MODEL

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """The shape of a base, and the sizes of its steps unless the settings say otherwise.

    Args:
        config: makes its configuration.
        batch: rows of a training step.
        prefill_batch: rows of a prefill.
        tokens: tokens of a row.
        prompt: tokens of a prompt that is continued.
    """

    config: Callable[[], "PretrainedConfig"]
    batch: int = 4
    prefill_batch: int = 8
    tokens: int = 1024
    prompt: int = 256


def _qwen3(**sizes: Any) -> Callable[[], "PretrainedConfig"]:
    def make() -> "PretrainedConfig":
        from transformers import Qwen3Config

        common = {
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        }
        return Qwen3Config(**{**common, **sizes})

    return make


def _embedded() -> "PretrainedConfig":
    from shadowpeft.storage import stock_models

    return stock_models.load_config(str(MODEL))


# The sizes are those of the Qwen3 models of these names, as published in their config.json.
SHAPES: dict[str, Shape] = {
    "0.6b": Shape(
        _qwen3(
            hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            tie_word_embeddings=True,
        )
    ),
    "4b": Shape(
        _qwen3(
            hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
            tie_word_embeddings=True,
        )
    ),
    "8b": Shape(
        _qwen3(
            hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
            tie_word_embeddings=False,
        )
    ),
    "embedded": Shape(_embedded, batch=32, prefill_batch=32, tokens=32, prompt=64),  # a batch of the demo
    "tiny": Shape(
        _qwen3(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True,
        ),
        batch=2, prefill_batch=2, tokens=16, prompt=16,
    ),
}  # fmt: skip


def build(name: str, device: "torch.device", dtype: "torch.dtype", seed: int) -> "PreTrainedModel":
    """Build a frozen base on a device; its weights are drawn there, which takes seconds for 8 billion.

    Args:
        name: a shape.
        device: where.
        dtype: type of the weights.
        seed: seed of the random weights; the embedded model has its own weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from shadowpeft.storage import stock_models

    if name == "embedded":
        embedded: Any = stock_models.load_model(str(MODEL), dtype)
        return embedded.to(device).requires_grad_(False)
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(SHAPES[name].config(), dtype=dtype).requires_grad_(False)
