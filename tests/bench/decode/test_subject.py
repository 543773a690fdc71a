"""The base that is measured, from random weights or from a folder."""

import pytest
import torch
from helpers.benches import CPU

from shadowpeft.bench.decode.settings import DecodeBench
from shadowpeft.bench.decode.subject import Subject, subjects_of
from shadowpeft.embedded import MODEL, SHADOW
from shadowpeft.errors import UserError


def test_one_for_each_shape_or_one_model():
    shapes = subjects_of(DecodeBench(shape="tiny,0.6b", shadow="tiny"))
    assert [subject.name for subject in shapes] == ["tiny", "0.6b"]
    assert shapes[0].facts == {"shape": "tiny", "model": None, "adapter": None, "shadow": "tiny"}
    (pair,) = subjects_of(DecodeBench(model="m", adapter="a"))
    assert pair.facts == {"shape": None, "model": "m", "adapter": "a", "shadow": None}
    assert pair.name == "m"


def test_a_model_is_read_and_a_shape_is_built():
    model = Subject(model=str(MODEL))
    base = model.base(CPU, torch.bfloat16, 0)
    assert base.dtype == torch.bfloat16
    assert base.config.vocab_size == model.config().vocab_size
    assert len(model.tokenizer()) <= base.config.vocab_size
    shape = Subject(shape="tiny")
    one, other = (shape.base(CPU, torch.float32, seed).lm_head.weight for seed in (0, 1))
    assert one.shape == (shape.config().vocab_size, shape.config().hidden_size)
    assert not torch.equal(one, other)
    with pytest.raises(UserError, match="nowhere"):
        Subject(model="nowhere").config()


def test_what_an_untrained_shadow_starts_from():
    assert Subject(shape="tiny").start(CPU, torch.float32, 0) is None
    assert Subject(shape="tiny", shadow="tiny").start(CPU, torch.bfloat16, 0).dtype == torch.bfloat16
    assert Subject(shape="tiny", shadow=str(SHADOW)).start(CPU, torch.float32, 0) == str(SHADOW)
    assert Subject(shape="tiny", shadow=str(MODEL)).start(CPU, torch.float32, 0).num_parameters() > 1e6
