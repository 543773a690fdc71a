"""Parting rows into train, validation and test: the same way in every study, and with nothing in two of them."""

import hashlib
from collections.abc import Callable, Sequence
from itertools import groupby

from shadowpeft.compare.tasks.base import Item, Split
from shadowpeft.compare.tasks.source import Hub, Source
from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError

VALIDATION_SHARE = 0.1
Rows = dict[Split, list[Row]]
Items = dict[Split, list[Item]]
Labelled = tuple[str, str]  # text and label


def official(
    name: str,
    hub: Hub,
    source: Source,
    unit: Callable[[Row], str],
    stratum: Callable[[Row], str] = lambda row: "",
) -> Rows:
    """Read the official splits of a set; where it has no validation split, a tenth of train is cut off for it.

    Args:
        name: name of the data set's folder.
        hub: where it is on the hub.
        source: where to read.
        unit: rows of one unit stay together, such as the questions of an article, or a text that occurs twice.
        stratum: the share is taken of every stratum, such as a label.

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
    """Part rows into (train, validation) by a hash of each unit, whatever the order of rows or the seed of a study.

    Every stratum of more than one unit keeps a unit in train; both parts keep the order of `rows`.

    Raises:
        DataError: there are too few units for both parts.
    """
    home: dict[str, str] = {}
    for row in rows:  # a unit in several strata counts for its first
        home.setdefault(unit(row), stratum(row))
    ordered = sorted(
        home, key=lambda key: (home[key], hashlib.sha256(f"validation of {name}: {key}".encode()).digest())
    )
    held: set[str] = set()
    passed = 0
    for _, members in groupby(ordered, key=lambda key: home[key]):
        units = list(members)
        passed += len(units)
        # The remainder of one stratum is carried to the next, so that small ones add up to the share.
        wanted = max(round(share * passed), 1) - len(held)
        held.update(units[: max(0, min(wanted, len(units) - 1))])
    if not held:
        raise DataError(
            f"{name}: a validation split is cut from the training rows, which needs 2 texts of a kind, got {len(home)} in all; add rows"
        )
    return [row for row in rows if unit(row) not in held], [row for row in rows if unit(row) in held]


def apart(name: str, items: Items, same: Callable[[Item], str]) -> Items:
    """Drop items of train that are in validation or test, and items of validation that are in test; labels are not looked at.

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
                f"{name}: no row of the {split} split is left after dropping empty texts and what later splits hold too; add rows"
            )
    return kept


def loader(
    name: str, read: Callable[[Source], Items], same: Callable[[Item], str] = lambda item: item.prompt
) -> Callable[[Split, Source], list[Item]]:
    """Make a task's `load` of a function that reads all splits.

    Args:
        name: name of the task, for messages.
        read: reads all splits.
        same: what two items have in common that must not be in two splits.
    """

    def load(split: Split, source: Source) -> list[Item]:
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
        DataError: validation or test hold labels that training does not, or training holds ones that are not the task's.
    """
    trained = {label for _, label in texts["train"]}
    for split, pairs in texts.items():
        known, of = (
            (set(labels), f"not among the {len(labels)} of the task")
            if split == "train"
            else (trained, "unseen in training")
        )
        strange = sorted({label for _, label in pairs} - known)
        if strange:
            listed = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
            what = "1 label" if len(strange) == 1 else f"{len(strange)} labels"
            remedy = (
                "rename or drop their rows"
                if split == "train"
                else "add training rows of them or drop theirs"
            )
            raise DataError(f"{name}: the {split} split holds {what} {of} ({listed}); {remedy}")
    index = {label: number for number, label in enumerate(labels)}
    return {
        split: [Item(text, index[label], group=group(label)) for text, label in pairs]
        for split, pairs in texts.items()
    }


def squeezed(text: str) -> str:
    """Fold case and white space, so that trivial variants of a text count as the same."""
    return " ".join(text.lower().split())
