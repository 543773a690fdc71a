"""Hashes of what a policy was made from."""

import pytest

from shadowpeft.errors import CheckpointError
from shadowpeft.route.identity import hash_of_files, hash_of_rows


def test_a_hash_is_of_names_and_contents(tmp_path):
    """Catches a hash that two files can share by moving bytes or names between them."""
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"12")
    other.write_bytes(b"3")
    first = hash_of_files([one, other])
    assert first == hash_of_files([str(one), str(other)])
    assert first != hash_of_files([other, one])
    one.write_bytes(b"1")
    assert first != hash_of_files([one, other])
    with pytest.raises(CheckpointError, match="cannot be read"):
        hash_of_files([tmp_path / "c"])


def test_rows_have_one_hash_whatever_the_order_of_their_columns():
    assert hash_of_rows([{"a": 1, "b": "é"}]) == hash_of_rows([{"b": "é", "a": 1}])
    assert hash_of_rows([{"a": 1}, {"a": 2}]) != hash_of_rows([{"a": 2}, {"a": 1}])
