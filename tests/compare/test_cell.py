"""Cells and their keys."""

from dataclasses import replace

from shadowpeft.compare.cell import Cell


def test_keys_name_the_backbones_rate_only_where_it_is_set():
    """Catches recorded studies whose cells would all run again, and two trials that count as one."""
    cell = Cell("search", "m", "clinc150", "shadow-explicit", 16, 1000, 1e-3, 0.3)
    assert cell.key == "search m clinc150 shadow-explicit rank=16 seed=1000 lr=0.001 alpha=0.3"
    assert replace(cell, backbone_learning_rate=1e-4).key == f"{cell.key} backbone_lr=0.0001"
    assert replace(cell, head_learning_rate=3e-3).key == f"{cell.key} head_lr=0.003"
    assert replace(cell, head_learning_rate=3e-3).setting.head_learning_rate == 3e-3
    assert Cell("final", "m", "gsm8k", "lora", 8, 0, 5e-4).key == "final m gsm8k lora rank=8 seed=0 lr=0.0005"
