"""What a shadow learns from plain text beside the next token and the base's own probabilities (`divergence`): the base's hidden state.

Shape legend: N tokens, D width of the base.
"""

import torch.nn.functional as F
from torch import Tensor


def turns(s_ND: Tensor, h_ND: Tensor) -> Tensor:
    """Compute 1 - cos(s, h) of each token, (N,): what the directions differ by, whatever the sizes."""
    return 1 - F.cosine_similarity(s_ND.float(), h_ND.detach().float(), dim=-1)
