"""Progress bars as they are in a process of the command line's own."""

from collections.abc import Iterator

import pytest
from transformers.utils import logging


@pytest.fixture(scope="module", autouse=True)
def nobody_watches() -> Iterator[None]:
    """Hide transformers' bars, which a process of the command line's own hides before their import."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
