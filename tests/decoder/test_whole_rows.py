"""Whole rows: when a graph may go without a mask, and which blocks then do."""

import pytest
import torch
from helpers.families import WINDOW, tiny_config
from torch import Tensor, nn

from shadowpeft.decoder.whole_rows import WholeRowsBlock, rows_are_whole


class Told(nn.Module):
    """A block that returns what it was given beside the hidden states."""

    def forward(self, h_BTD: Tensor, *args, **kwargs):
        return args, kwargs


def test_only_a_compiled_graph_without_any_hint_has_whole_rows():
    """Catches a mask that is dropped where padding, a cache or packed documents need it, or outside a
    graph.
    """

    def flag(x, *given):
        return x + float(rows_are_whole(*given))

    compiled = torch.compile(flag, backend="eager", fullgraph=True)
    zero, mask = torch.zeros(()), torch.ones(1, 2)
    assert flag(zero, None, None) == 0
    assert compiled(zero, None, None) == 1
    assert compiled(zero, None, mask) == 0


@pytest.mark.parametrize(("tokens", "keeps_mask"), [(WINDOW, False), (WINDOW + 1, True)])
def test_a_block_keeps_the_mask_that_its_window_needs(tokens, keeps_mask):
    """Catches a sliding block that sees beyond its window, and an argument lost on the way."""
    config = tiny_config("mistral")
    config._attn_implementation = "sdpa"
    mask = torch.ones(1, 1)
    run = WholeRowsBlock(nn.ModuleList([Told()]), 0, config)
    args, kwargs = run(torch.zeros(1, tokens, 4), "first", attention_mask=mask, other=3)
    assert args == ("first",)
    assert kwargs == {"attention_mask": mask if keeps_mask else None, "other": 3}


def test_the_block_is_found_at_each_call():
    """Catches a wrapper that runs a block which was since replaced."""
    blocks = nn.ModuleList([nn.Identity()])
    run = WholeRowsBlock(blocks, 0, tiny_config("bloom"))
    blocks[0] = Told()
    assert run(torch.zeros(1, 2, 4), past=1) == ((), {"past": 1})
