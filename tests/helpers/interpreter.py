"""Where there is no GPU, Triton kernels run in Triton's interpreter. To be imported before anything that imports Triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
