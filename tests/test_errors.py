"""The errors of users: one type each, all of them one."""

import pytest
import torch

from shadowpeft import errors


@pytest.mark.parametrize("name", ["ConfigError", "UnsupportedModelError", "CheckpointError", "DataError"])
def test_every_mistake_of_a_user_is_a_user_error(name):
    """Catches a type that the command line would show with its trace."""
    kind = vars(errors)[name]
    assert issubclass(kind, errors.UserError)
    assert issubclass(kind, ValueError)


def test_torch_says_of_a_full_disk_what_is_looked_for():
    """Catches a torch that words it otherwise: a full disk would show a trace. `/dev/full` is always full."""
    with pytest.raises(RuntimeError) as caught:
        torch.save(torch.zeros(10_000), "/dev/full")
    assert errors.is_torch_write_failure(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.save(torch.zeros(1), "/dev/full")
    assert errors.is_torch_write_failure(caught.value)
    assert not errors.is_torch_write_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
