"""liger-kernel's patches on one model of Qwen3, taken back from what other models share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from shadowpeft.errors import UserError


def patch(base: PreTrainedModel) -> Callable[[], Any]:
    """Let a model compute its norms, its MLPs, its rotations and its loss with liger-kernel.

    Norms, MLPs and loss are replaced in the model. The rotation is a function that all models share, so it is
    replaced while a context lasts; around a forward pass is enough.

    Returns:
        makes that context.

    Raises:
        ImportError: liger-kernel is not installed.
        UserError: the model is none of Qwen3.
    """
    from liger_kernel.transformers import apply_liger_kernel_to_qwen3
    from transformers.models.qwen3 import modeling_qwen3

    if not isinstance(base, modeling_qwen3.Qwen3ForCausalLM):
        raise UserError(f"lora-liger is measured on Qwen3, got {type(base).__name__}; leave it out")
    stock = modeling_qwen3.apply_rotary_pos_emb
    classes = modeling_qwen3.Qwen3RMSNorm, modeling_qwen3.Qwen3MLP
    try:
        apply_liger_kernel_to_qwen3(model=base)
        patched = modeling_qwen3.apply_rotary_pos_emb
    finally:
        modeling_qwen3.apply_rotary_pos_emb = stock
        modeling_qwen3.Qwen3RMSNorm, modeling_qwen3.Qwen3MLP = classes  # type: ignore[misc]

    @contextmanager
    def rotated() -> Iterator[None]:
        modeling_qwen3.apply_rotary_pos_emb = patched
        try:
            yield
        finally:
            modeling_qwen3.apply_rotary_pos_emb = stock

    return rotated
