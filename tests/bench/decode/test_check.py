"""The numerical test of decoding is red for what is wrong, and not for what rounding explains."""

import pytest
import torch
from helpers.benches import CPU

from shadowpeft.bench import shapes
from shadowpeft.bench.check import NumericalTestFailed
from shadowpeft.bench.decode.check import Reference, reference, stepwise
from shadowpeft.bench.decode.methods import Loader
from shadowpeft.bench.decode.settings import CHECKED
from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.subject import Subject
from shadowpeft.bench.decode.weights import SharedWeights


def made(*logits: list[float], noise: float = 0.01) -> Reference:
    """A reference of one row over four words, whose logits are off by the noise."""
    logits_1NV = torch.tensor([logits])
    return Reference(torch.zeros(1, 1), logits_1NV.argmax(-1), logits_1NV, logits_1NV + noise)


def test_tokens_that_rounding_explains_may_change_places():
    """Catches a test that is red by chance in a low precision, or goes on to compare other texts."""
    found = made([0.0, 2.0, 1.95, 0.0], [3.0, 0.0, 0.0, 0.0])
    found.require_same_text(torch.tensor([[1, 0]]), "x")
    found.require_same_text(torch.tensor([[2, 3]]), "x")  # behind the change it is another text
    with pytest.raises(NumericalTestFailed, match="x writes another token in place 1 of row 1"):
        found.require_same_text(torch.tensor([[3, 0]]), "x")
    with pytest.raises(NumericalTestFailed, match="in place 2 of row 1, whose logit"):
        found.require_same_text(torch.tensor([[1, 1]]), "x")
    with pytest.raises(NumericalTestFailed):
        made([0.0, 2.0, 1.95, 0.0], noise=0.001).require_same_text(torch.tensor([[2]]), "x")


def test_a_logit_that_is_no_number_is_red():
    with pytest.raises(NumericalTestFailed):
        made([0.0, 2.0, float("nan"), 0.0]).require_same_text(torch.tensor([[1]]), "x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_writes_greedily_and_leaves_the_weights(dtype):
    """Catches a truth of the same precision, and weights that are other ones after the test."""
    base = shapes.build("tiny", CPU, dtype, 0)
    loader = Loader(SharedWeights(base), Subject(shape="tiny"), None, 0)
    model = loader.shadowed("reference")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids_BT = torch.randint(3, 512, (3, 8), generator=torch.Generator().manual_seed(0))
    found = reference(model, ids_BT)
    assert found.new_BN.shape == (2, CHECKED)
    assert torch.equal(found.logits_BNV.argmax(-1), found.new_BN)
    assert found.truth_BNV.dtype == (torch.float64 if dtype == torch.float32 else torch.float32)
    assert 0 < found.gap() < (1e-3 if dtype == torch.float32 else 1)
    for name, value in model.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, before[name])
    found.require_same_logits(loader.shadowed("auto"), "auto")


def test_another_model_is_red(loader, prompt):
    """Catches a test that cannot fail."""
    model = loader.shadowed("reference")
    found = reference(model, prompt.ids_BT)
    other = Loader(loader.weights, Subject(shape="tiny"), None, seed=1).shadowed("reference")
    with pytest.raises(NumericalTestFailed, match="the logits of other is off by"):
        found.require_same_logits(other, "other")
    base = loader.load(DecodeSpec("base")).model
    text = base.generate(prompt.ids_BT, max_new_tokens=CHECKED, do_sample=False)[:, prompt.ids_BT.shape[1] :]
    with pytest.raises(NumericalTestFailed, match="base writes another token"):
        found.require_same_text(text, "base")


def test_stepwise_logits_are_those_of_one_pass(loader, prompt):
    """Catches logits of another token than the one they are compared at."""
    model = loader.shadowed("reference")
    new_BN = torch.randint(3, 512, (1, 5), generator=torch.Generator().manual_seed(0))
    found = stepwise(model, prompt.ids_BT, new_BN)
    with torch.no_grad():
        want = model(torch.cat([prompt.ids_BT, new_BN[:, :-1]], 1), use_cache=False, logits_to_keep=5).logits
    assert (found - want).norm() < 1e-4 * want.norm()
