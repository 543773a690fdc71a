"""What the kernels are given and compiled for."""

from dataclasses import replace

import pytest
import torch
from helpers.boundary_cases import KINDS, Kind, draw

pytest.importorskip("triton")

from helpers.kernel_arguments import arguments_of

from shadowpeft.ops.triton.case import (
    Arguments,
    BackwardArguments,
    Case,
    case_of,
    kept_widths,
    power_of_2,
)


def case(kind: Kind) -> Case:
    return case_of(arguments_of(draw(kind)))


def test_powers_of_two() -> None:
    assert [power_of_2(size) for size in (0, 1, 2, 3, 16, 17)] == [1, 1, 2, 4, 16, 32]


def test_sizes_and_their_padding() -> None:
    """Catches U taken for R, and a padded size below what a product takes."""
    found = case(Kind(D=72, U=17, R=3))
    assert (found.D, found.U, found.R, found.UP, found.RP) == (72, 17, 3, 32, 16)
    weights = arguments_of(draw(Kind(U=17, R=3))).weights
    assert kept_widths(weights, norm_is_layer=True) == (6 + 6 + 34, 6 + 3 + 68)
    assert kept_widths(weights, norm_is_layer=False) == (6 + 6 + 34, 0)
    for halves, U, R in (("inject", 0, 3), ("update", 17, 0)):
        found = case(Kind(U=17, R=3, halves=halves))
        assert (U, R, U > 0, R > 0) == (found.U, found.R, found.UPDATE, found.INJECT)


@pytest.mark.parametrize(("variant", "norm"), KINDS)
def test_branches_of_each_variant(variant: str, norm: str) -> None:
    """Catches another variant's norm, activation, biases or digits."""
    found = case(Kind(variant, norm, stream=torch.bfloat16))
    assert (variant == "normed") == found.UNIT
    assert found.BIAS == found.GELU == bool(found.FINE) == (variant == "peft")
    assert (2 if variant == "paper" else {"rms": 1, "gemma": 1, "layer": 2, "none": 0}[norm]) == found.NORM
    assert found.trains_norm == (variant == "paper")


def test_digits_are_kept_where_they_are_there() -> None:
    """Catches twice the digits in types that have them, or beside weights that are rounded anyway."""
    kind = Kind("peft", "none", stream=torch.bfloat16)
    fine = [
        case(replace(kind, **types)).FINE
        for types in ({}, {"weights": torch.float32}, {"stream": torch.float32})
    ]
    assert fine == [1, 0, 0]


@pytest.mark.parametrize(
    ("variant", "drop", "down"), [("normed", 1, True), ("paper", 1, True), ("peft", 2, False)]
)
def test_where_dropout_is(variant: str, drop: int, down: bool) -> None:
    """Catches a W_down that meets h and s apart although their difference is dropped out."""
    given = arguments_of(draw(Kind(variant, "none")))
    dropping = given._replace(attributes=given.attributes._replace(dropout=0.4))
    assert (case_of(given).DROP, case_of(given).DOWN) == (0, True)
    assert (drop, down) == (case_of(dropping).DROP, case_of(dropping).DOWN)


@pytest.mark.parametrize(("variant", "norm"), [("normed", "layer"), ("paper", "none"), ("peft", "none")])
def test_flat_arguments_are_grouped_as_they_were(variant: str, norm: str) -> None:
    """Catches a slot that is read as its neighbour."""
    given = arguments_of(draw(Kind(variant, norm)))._replace(seed=torch.tensor([3]))
    h, s, weights, seed, attributes = given
    again = Arguments.grouped((h, s, *weights, seed, *attributes))
    assert all(a is b for a, b in zip((*again.weights, again.seed), (*weights, seed), strict=True))
    assert (again.h is h, again.s is s, again.attributes) == (True, True, attributes)
    backward = BackwardArguments(None, h, given, kept=s, shared=h, wanted=True)
    assert all(
        a is b
        for a, b in zip(BackwardArguments.grouped(backward.flat()).flat(), backward.flat(), strict=True)
    )
    assert BackwardArguments.grouped(backward.flat()).forward.attributes == attributes


@pytest.mark.parametrize(("variant", "norm"), [("normed", "layer"), ("paper", "none"), ("peft", "none")])
def test_gradients_go_to_the_slots_of_their_weights(variant: str, norm: str) -> None:
    """Catches a gradient in another weight's slot, and one for a frozen norm."""
    given = arguments_of(draw(Kind(variant, norm)))
    trainable = given.weights.trainable(given.attributes.trains_norm)
    assert (trainable.norm_w is None) == (variant != "paper")
    assert trainable[:10] == given.weights[:10]
    found = [torch.empty_like(weight) for weight in trainable.present()]
    placed = trainable.placed(found)
    assert [grad for grad in placed if grad is not None] == found
    for grad, weight in zip(placed, trainable, strict=True):
        assert (grad is None) == (weight is None)
        assert grad is None or grad.shape == weight.shape
