"""One method's results over its seeds, and their pairing with LoRA's."""

import numpy as np
import pytest

from shadowpeft.compare.method_result import MethodResult, differences_by_seed, pair, shares_seeds
from shadowpeft.errors import DataError


def result(method: str, marks: dict[int, str], mode: str = "attached", **changes: object) -> MethodResult:
    records = [{"seed": seed, "correct": text, "items": len(text), **changes} for seed, text in marks.items()]
    return MethodResult("m", "clinc150", "clinc150", method, mode, rank=16, records=tuple(records))


def test_a_seed_without_a_number_is_left_out():
    """Catches a mean of NaN, and one that counts a missing seed as 0."""
    found = result("shadow", {0: "01", 1: "11", 2: ""}, mode="detached")
    for record, value in zip(found.records, (0.5, float("nan"), None), strict=True):
        record["value"] = value
    assert (found.name, found.values("value"), found.mean("value")) == ("shadow detached", [0.5], 0.5)
    assert found.by_seed("value") == {0: 0.5, 1: None, 2: None}
    assert found.marks == {0: "01", 1: "11"}
    assert found.mean("nothing") is None


def test_pairs_are_of_the_same_seed_and_item():
    """Catches seed 1 set against seed 2, and a seed that only one of the two has."""
    ours, lora = result("shadow", {2: "110", 1: "011"}), result("lora", {0: "000", 1: "001", 2: "101"})
    assert shares_seeds(ours, lora)
    assert np.array_equal(pair(ours, lora), [[0, 1, 0], [0, 1, -1]])
    assert not shares_seeds(result("shadow", {5: "110"}), lora)
    assert [record["seed"] for record in lora.with_seeds_of(ours).records] == [1, 2]


def test_the_untuned_base_stands_for_every_seed():
    """Catches a base with its one record set against LoRA's first seed alone."""
    base = result("base", {0: "010"}, steps=0, forgetting=0.25)
    lora = result("lora", {3: "110", 4: "011"}, steps=300, forgetting=1.0)
    assert base.is_untuned
    assert not lora.is_untuned
    assert not result("base", {0: "010"}, steps=300).is_untuned
    assert shares_seeds(base, lora)
    assert np.array_equal(pair(base, lora), [[-1, 0, 0], [0, 0, -1]])
    assert differences_by_seed(base, lora, "forgetting") == [-0.75, -0.75]
    assert lora.with_seeds_of(base) is lora


def test_other_items_cannot_be_paired():
    """Catches a paired comparison of item 1 with item 7."""
    where = "shadow and lora, m on clinc150"
    ours, lora = (
        result(method, {0: "01"}, items_digest=digest) for method, digest in (("shadow", "a"), ("lora", "b"))
    )
    with pytest.raises(DataError, match=f"{where}: expected the same items in the same order"):
        pair(ours, lora)
    with pytest.raises(DataError, match=f"^{where}: "):
        pair(result("shadow", {0: "011"}), result("lora", {0: "01"}))
