"""One thread, and no progress bars, for all tests of exports."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from helpers.exports import made, save_all
from helpers.families import tiny_config
from transformers.utils import logging


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """One thread is faster for models this small, and transformers' bars tell nothing here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    torch.set_num_threads(before)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is loaded: mistakes are to be found before that."""
    monkeypatch.setattr(
        "shadowpeft.storage.stock_models.load_model",
        lambda *_: pytest.fail("the model was loaded before the check"),
    )


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A base and an adapter as a user has them, in folders."""
    folder = tmp_path_factory.mktemp("ready")
    save_all(made(tiny_config("qwen3")), folder)
    return SimpleNamespace(base=str(folder / "base"), adapter=folder / "adapter")
