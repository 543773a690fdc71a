"""A study of cells that only note that they ran, and its tiny data sets."""

from pathlib import Path

import pytest

from helpers.noted_cells import TEXT, write
from shadowpeft.compare.study import Study
from shadowpeft.embedded import MODEL


@pytest.fixture
def data(tmp_path) -> Path:
    """Tiny data sets in the layout of a data folder."""
    folder = tmp_path / "data"
    for number, split in enumerate(("train", "validation", "test")):
        requests = [{"text": f"request {number} {i}", "intent": ("alarm", "oos")[i % 2]} for i in range(4)]
        sums = [
            {"question": f"{number} + {i}?", "answer": f"Add.\n#### {number + i}", "final": str(number + i)}
            for i in range(30)
        ]
        write(folder / "clinc150" / f"{split}.jsonl", requests)
        if split != "validation":
            write(folder / "gsm8k" / f"{split}.jsonl", sums)
    write(folder / "wiki_en" / "validation.jsonl", [{"text": TEXT}])
    return folder


@pytest.fixture
def small(data, tmp_path) -> Study:
    settings = {
        "methods": "base,lora,shadow",
        "seeds": 2,
        "trials": 2,
        "extensions": 0,
        "data_dir": str(data),
        "ood": False,
        "device": "cpu",
    }
    return Study(str(MODEL), "clinc150,gsm8k", str(tmp_path / "out"), **settings)
