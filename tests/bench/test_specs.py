"""The names of what is measured, read from the command line."""

import pytest
from helpers.benches import spec

from shadowpeft.bench.specs import Spec, parse
from shadowpeft.errors import ConfigError


@pytest.mark.parametrize("name", ["lora", "shadow:triton", "shadow@1/2", "lora@18", "shadow:compile@3"])
def test_a_name_is_read_and_written_the_same(name):
    """Catches a part of a name that is lost, so that two lines of a table cannot be distinguished."""
    assert spec(name).name == name
    assert spec(name)._replace(compiled=True).name == f"{name}+compiled"


def test_the_first_block_is_a_block_or_a_share_of_them():
    """Catches a share that is rounded up, and a depth past the last block."""
    assert spec("lora").block(28) is None
    assert spec("lora@18").block(28) == 18
    assert (spec("shadow@1/2").block(28), spec("shadow@3/4").block(5)) == (14, 3)
    with pytest.raises(ConfigError, match="lora@4: inject_from must be below the model's 4 blocks, got 4"):
        spec("lora@4").block(4)


def test_what_can_be_compiled_is_also_measured_compiled():
    """Catches `all` that takes PEFT's methods, or an implementation that compiles by itself."""
    found = parse("lora,dora,shadow,shadow:triton", compiled="all", kind="train")
    assert found[:4] == [Spec("lora"), Spec("dora"), Spec("shadow", "auto"), Spec("shadow", "triton")]
    assert found[4:] == [Spec("lora", compiled=True), Spec("shadow", "auto", compiled=True)]
    assert parse("dora", compiled="shadow", kind="forward")[1] == Spec("shadow", "auto", compiled=True)
