"""Attention code that gives wrong gradients, and so must not be used in training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def sound_attention() -> Iterator[None]:
    """Train without cuDNN's attention while the context lasts.

    Its backward pass gives NaN where a mask is passed and the length is 64 more than a multiple of 128, on
    H100 and H200 since torch 2.11 (https://github.com/pytorch/pytorch/issues/196678). Models with attention
    sinks, such as Qwen2.5, run into it. transformers passes a mask with every padded batch.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
