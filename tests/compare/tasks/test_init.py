"""All tasks: splits that share nothing, from local folders and in the hub's layouts."""

import pytest
from helpers.task_rows import assert_sound, everything, local_rows, write_sets

from shadowpeft.compare.tasks import TASKS, find
from shadowpeft.errors import ConfigError


@pytest.mark.parametrize("name", TASKS)
def test_every_task_loads_from_a_folder(local, name):
    """Catches rows in two splits, a target that the metric refuses, and a metric that is missing."""
    assert_sound(name, everything(name, local))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_loads_from_the_layout_of_the_hub(hub, name):
    """Catches a field, split or configuration that the hub names otherwise than the folder."""
    assert_sound(name, everything(name, hub))


def test_gzipped_splits_are_the_same(tmp_path, local):
    zipped = write_sets(tmp_path / "zipped", local_rows(), ".jsonl.gz")
    for name in TASKS:
        assert everything(name, zipped) == everything(name, local)


def test_partners_exist_and_are_answered_the_same_way():
    for task in TASKS.values():
        for partner in task.partners:
            assert (find(partner).kind, find(partner).labels) == (task.kind, task.labels)


def test_an_unknown_task_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"unknown task 'gsm8' \(did you mean 'gsm8k'\?\); the tasks are gsm8k, mawps, squad_v2",
    ):
        find("gsm8")
