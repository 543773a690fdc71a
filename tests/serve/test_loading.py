"""The models of this process by the names that callers give."""

import pytest
import torch

from shadowpeft.errors import UserError
from shadowpeft.serve.loading import models_of
from shadowpeft.serve.settings import Serve

IDS = torch.tensor([[5, 9, 30]])


def logits(local):
    given = {} if local.adapter is None else {"adapter": local.adapter}
    with torch.no_grad():
        return local.model(IDS, **given).logits


def test_one_adapter_is_attached_detached_and_its_base(base_folder, adapter_folder, models):
    """Catches a name that stands for another model."""
    found = models_of(Serve(str(base_folder), str(adapter_folder), device="cpu"))
    assert list(found) == ["attached", "detached", "base"]
    for name, local in found.items():
        torch.testing.assert_close(logits(local), logits(models[name]))
    assert found["attached"].limit == 128


def test_several_adapters_have_their_names(base_folder, adapter_folder):
    words = [f"one={adapter_folder}", f"two={adapter_folder}"]
    settings = Serve(str(base_folder), words, draft="shadow", draft_tokens=2, device="cpu")
    found = models_of(settings)
    assert list(found) == ["one", "one-detached", "two", "two-detached", "base"]
    assert found["two"].adapter == "two"
    assert found["two"].drafts == {"draft": "shadow", "draft_tokens": 2}
    assert found["two-detached"].drafts is None


def test_a_model_alone_has_the_name_of_its_folder(base_folder):
    assert list(models_of(Serve(str(base_folder), device="cpu"))) == [base_folder.name]


@pytest.mark.parametrize(
    ("settings", "said"), [({"draft": "ngram"}, "must be"), ({"adapter": "nowhere/at/all"}, "no adapter")]
)
def test_what_cannot_be_loaded_is_told_first(settings, said, base_folder, adapter_folder):
    with pytest.raises(UserError, match=said):
        models_of(Serve(**{"model": str(base_folder), "adapter": str(adapter_folder), **settings}))
