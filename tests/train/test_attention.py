"""Attention code with wrong gradients is switched off in training."""

import contextlib

import pytest
import torch

from shadowpeft.train import attention


@pytest.mark.parametrize("before", [True, False])
def test_training_avoids_an_attention_with_wrong_gradients(before: bool) -> None:
    """Catches cuDNN's attention left on in training, where some lengths give NaN, or left off afterwards."""
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        with contextlib.suppress(ZeroDivisionError), attention.sound_attention():
            seen = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()
            raise ZeroDivisionError
        assert seen == (False, True)
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
