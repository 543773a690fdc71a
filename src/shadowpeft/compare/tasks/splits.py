"""Part rows into train, validation and test: the same way in every study, and nothing in two of them."""

import hashlib
from collections.abc import Callable, Sequence
from itertools import groupby

from shadowpeft.compare.tasks.base import Item, Split
from shadowpeft.compare.tasks.source import Hub, RowSource
from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError
from shadowpeft.reporting.tables import plural

VALIDATION_SHARE = 0.1
Rows = dict[Split, list[Row]]
Items = dict[Split, list[Item]]
Labelled = tuple[str, str]  # text and label


def official(
    name: str,
    hub: Hub,
    source: RowSource,
    unit: Callable[[Row], str],
    stratum: Callable[[Row], str] = lambda row: "",
) -> Rows:
    """Read the official splits of a set; if it has no validation split, a tenth of train is cut off for it.

    Args:
        name: name of the data set's folder.
        hub: where it is on the hub.
        source: where to read.
        unit: rows of one unit stay together, such as the questions of an article, or a text that occurs
            twice.
        stratum: the share is taken from every stratum, such as a label.

    Raises:
        DataError: a split is missing or too small.
    """
    train = source.rows(name, "train", hub)
    if source.has(name, "validation", hub):
        validation = source.rows(name, "validation", hub)
    else:
        train, validation = cut(name, train, unit, stratum)
    return {"train": train, "validation": validation, "test": source.rows(name, "test", hub)}


def cut(
    name: str,
    rows: Sequence[Row],
    unit: Callable[[Row], str],
    stratum: Callable[[Row], str] = lambda row: "",
    share: float = VALIDATION_SHARE,
) -> tuple[list[Row], list[Row]]:
    """Part rows into (train, validation) by a hash of each unit, which no order of rows or seed changes.

    Every stratum of more than one unit keeps a unit in train; both parts keep the order of `rows`.

    Raises:
        DataError: there are too few units for both parts.
    """
    home: dict[str, str] = {}
    for row in rows:  # a unit in several strata belongs to its first
        home.setdefault(unit(row), stratum(row))
    ordered = sorted(
        home, key=lambda key: (home[key], hashlib.sha256(f"validation of {name}: {key}".encode()).digest())
    )
    held: set[str] = set()
    passed = 0
    for _, members in groupby(ordered, key=lambda key: home[key]):
        units = list(members)
        passed += len(units)
        # What rounding leaves of one stratum is carried to the next, so that small ones add up to the share.
        wanted = max(round(share * passed), 1) - len(held)
        held.update(units[: max(0, min(wanted, len(units) - 1))])
    if not held:
        raise DataError(
            f"{name}: a validation split is cut from the training rows, which needs 2 texts of a kind, "
            f"got {len(home)} in all; add rows"
        )
    return [row for row in rows if unit(row) not in held], [row for row in rows if unit(row) in held]


def apart(name: str, items: Items, same: Callable[[Item], str]) -> Items:
    """Drop items of train that are in validation or test, and items of validation that are in test.

    Labels are not compared.

    Raises:
        DataError: nothing is left of a split.
    """
    later: set[str] = set()
    kept: Items = {}
    for split in reversed(("train", "validation", "test")):
        kept[split] = [item for item in items[split] if squeezed(same(item)) not in later]
        later |= {squeezed(same(item)) for item in items[split]}
        if not kept[split]:
            raise DataError(
                f"{name}: no row of the {split} split is left after dropping empty texts "
                "and what later splits hold too; add rows"
            )
    return kept


def loader(
    name: str, read: Callable[[RowSource], Items], same: Callable[[Item], str] = lambda item: item.prompt
) -> Callable[[Split, RowSource], list[Item]]:
    """Return a task's `load`, given a function that reads all splits.

    Args:
        name: name of the task, for messages.
        read: reads all splits.
        same: what two items have in common that must not be in two splits.
    """

    def load(split: Split, source: RowSource) -> list[Item]:
        return list(source.once(("task", name), lambda: apart(name, read(source), same))[split])

    return load


def classified(
    name: str,
    labels: Sequence[str],
    texts: dict[Split, list[Labelled]],
    group: Callable[[str], str] = lambda label: "",
) -> Items:
    """Turn texts with labels into items of a classification task.

    Raises:
        DataError: validation or test hold labels that training does not, or training holds ones that are not
            the task's.
    """
    trained = {label for _, label in texts["train"]}
    for split, pairs in texts.items():
        found = {label for _, label in pairs}
        if split == "train":
            _refuse_labels(
                f"{name}: the train split",
                found - set(labels),
                of=f"not among the {len(labels)} of the task",
                remedy="rename or drop their rows",
            )
        else:
            _refuse_labels(
                f"{name}: the {split} split",
                found - trained,
                of="unseen in training",
                remedy="add training rows of them or drop theirs",
            )
    index = {label: number for number, label in enumerate(labels)}
    return {
        split: [Item(text, index[label], group=group(label)) for text, label in pairs]
        for split, pairs in texts.items()
    }


def _refuse_labels(where: str, strange: set[str], of: str, remedy: str) -> None:
    """Refuse labels that a split must not hold, if there are any."""
    if not strange:
        return
    listed = ", ".join(sorted(strange)[:5])
    if len(strange) > 5:
        listed += ", ..."
    raise DataError(f"{where} holds {len(strange)} {plural(len(strange), 'label')} {of} ({listed}); {remedy}")


def squeezed(text: str) -> str:
    """Fold case and white space, so that trivial variants of a text count as the same."""
    return " ".join(text.lower().split())
