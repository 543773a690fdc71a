"""Padded batches of rows of similar length."""

from shadowpeft.evaluation.batches import like_lengths, padded


def test_every_row_is_in_one_batch_beside_rows_of_its_length():
    """Catches a row that is lost, and a short row padded to a long one without need."""
    rows = [[1] * length for length in (5, 1, 4, 2, 3)]
    assert list(like_lengths(rows, 2)) == [[1, 3], [4, 2], [0]]
    assert list(like_lengths([], 2)) == []


def test_padding_is_on_the_side_that_was_asked_for():
    for side, ids, mask in (
        ("left", [[9, 9, 1], [2, 3, 4]], [[0, 0, 1], [1, 1, 1]]),
        ("right", [[1, 9, 9], [2, 3, 4]], [[1, 0, 0], [1, 1, 1]]),
    ):
        ids_BT, mask_BT = padded([[1], [2, 3, 4]], 9, side)
        assert (ids_BT.tolist(), mask_BT.tolist()) == (ids, mask)
