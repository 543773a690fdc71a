"""A tiny base, an adapter for it and rows, which no test of the command line changes, and a small study."""

from pathlib import Path

import pytest
from helpers.bars import nobody_watches  # noqa: F401 - a fixture
from helpers.families import perturb
from helpers.noted_studies import data, small  # noqa: F401 - fixtures
from helpers.runs import one_thread, save_base, write_rows  # noqa: F401 - a fixture
from transformers import AutoModelForCausalLM

from shadowpeft import ShadowConfig, attach


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapter_folder(base_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = attach(AutoModelForCausalLM.from_pretrained(base_folder), ShadowConfig(alpha=0.5))
    perturb(model).save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path) -> Path:
    rows = [{"prompt": "what is", "completion": " two"}, {"prompt": "hello", "completion": " four"}]
    return write_rows(tmp_path / "rows.jsonl", rows)
