"""The tasks of a study: one module for each data set; docs/reference/tasks.md has the table.

`base` says what a task is, `source` finds its rows, `splits` divides them, and `scoring` has the metrics that
several tasks share. May import `data`, `reporting`, `checked_fields` and `errors`, and nothing else of
`compare`.
"""

from shadowpeft.checked_fields import nearest
from shadowpeft.compare.tasks import arc, clinc, gsm8k, mawps, mmlu, newsgroups, squad, stars
from shadowpeft.compare.tasks.base import Item, Scores, Task
from shadowpeft.compare.tasks.source import RowSource, held_out_text
from shadowpeft.errors import ConfigError

__all__ = ["TASKS", "Item", "RowSource", "Scores", "Task", "find", "held_out_text"]

TASKS = {
    task.name: task
    for task in (
        *(gsm8k.TASK, mawps.TASK, squad.TASK, squad.SUBJQA_TASK, mmlu.TASK, arc.EASY, arc.CHALLENGE),
        *(stars.AMAZON_TASK, stars.SST_TASK, newsgroups.TASK, clinc.TASK),
    )
}


def find(name: str) -> Task:
    """Return the task of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}{nearest(name, TASKS)}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]
