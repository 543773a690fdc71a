"""What training makes a model forget: the rise of its loss on held-out text over that of the untuned base."""

import functools
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.compare import measure
from shadowpeft.compare.cell_data import config_of, source_of, tokenizer_of
from shadowpeft.compare.methods import Built
from shadowpeft.compare.tasks.source import held_out_text
from shadowpeft.compare.training import precision
from shadowpeft.data.encode import Example
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.storage import stock_models

WINDOW = 256  # tokens of a text


@dataclass
class Reference:
    """The untuned base on held-out text.

    Attributes:
        headed: the base without its blocks; on the CPU until its head is needed.
        windows: the text.
        pad: id to pad with.
        batch_size: windows at a time.
        device: where models compute.
        bf16: whether they compute in bfloat16.
        loss: the base's loss in nats per token.
    """

    headed: PreTrainedModel
    windows: list[Example]
    pad: int
    batch_size: int
    device: torch.device
    bf16: bool
    loss: float = 0.0

    def forgetting(self, built: Built) -> float:
        """Return how much the loss rose, in nats per token.

        A classifier has no language-model head, so its hidden states are read through the base's.
        """
        if arch.task_of(built.stock) == "causal-lm":
            return self.loss_of(built.model, built.stock) - self.loss
        self.headed.to(self.device)  # type: ignore[arg-type]
        risen = self.loss_of(built.model, self.headed, causal=False) - self.loss
        self.headed.to("cpu")  # type: ignore[arg-type]
        return risen

    def loss_of(self, model: nn.Module, headed: PreTrainedModel, causal: bool = True) -> float:
        """Return the loss of a model's hidden states through the head of another."""
        head = functools.partial(arch.logits, headed)
        with precision(self.device, self.bf16):
            return measure.token_loss(
                model, head, self.windows, pad=self.pad, batch_size=self.batch_size, causal=causal
            )


@functools.lru_cache(maxsize=4)
def reference_of(
    model: str, data_dir: str | None, rows: int, bf16: bool, batch_size: int, device: torch.device
) -> Reference:
    """Measure the untuned base on so many held-out texts."""
    tokenizer = tokenizer_of(model)
    length = min(WINDOW, arch.context_of(config_of(model)) or WINDOW)
    windows = measure.windows(held_out_text(source_of(data_dir), rows), tokenizer, length)
    dtype = torch.bfloat16 if bf16 else torch.float32
    base = stock_models.load_model(model, dtype).to(device).eval()  # type: ignore[arg-type]
    reference = Reference(
        headed=base,
        windows=windows,
        pad=padding_id(tokenizer),
        batch_size=batch_size,
        device=device,
        bf16=bf16,
    )
    reference.loss = reference.loss_of(base, base)
    # From here on only the embeddings and the head are needed, and the device's memory for other models.
    del arch.blocks_of(base)[:]
    base.to("cpu")
    return reference
