"""The rows of every task, in a local folder and in the layout of the hub."""

import datasets
import pytest
from helpers.task_rows import hub_rows, local_rows, write_sets

from shadowpeft.compare.tasks import RowSource


@pytest.fixture
def local(tmp_path) -> RowSource:
    return write_sets(tmp_path, local_rows())


@pytest.fixture
def hub(monkeypatch) -> RowSource:
    stored = hub_rows()

    def load_dataset(path, name=None, *, split, **options):
        dataset = datasets.Dataset.from_list(stored[path, name, split])
        if path == "clinc/clinc_oos":  # the hub's order of intents is its own
            dataset = dataset.cast_column(
                "intent", datasets.ClassLabel(names=["translate", "oos", "accept_reservations"])
            )
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return RowSource()
