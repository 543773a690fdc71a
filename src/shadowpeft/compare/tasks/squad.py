"""SQuAD 2.0 (Rajpurkar et al. 2018) and SubjQA (Bjerva et al. 2020): answers that a passage holds, or not."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from shadowpeft.compare.tasks.base import Item, Scores, Split, Task
from shadowpeft.compare.tasks.scoring import by_group, mean, until_stop
from shadowpeft.compare.tasks.source import Hub, RowSource, get
from shadowpeft.compare.tasks.splits import Items, Rows, cut, loader, official, squeezed
from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError

SQUAD = Hub("rajpurkar/squad_v2", {"train": "train", "validation": "validation"})
SUBJQA_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# The main branch holds a loading script, which datasets 4 does not run; this branch holds the same rows, a
# folder a domain.
SUBJQA = Hub(
    "megagonlabs/subjqa",
    {split: split for split in SUBJQA_SPLITS},
    options={
        "revision": "refs/convert/parquet",
        "data_files": {split: f"*/{split}/*.parquet" for split in SUBJQA_SPLITS},
    },
)
NO_ANSWER = "unanswerable"
NO_ANSWER_MARK = "ANSWERNOTFOUND"
STOP = ("\n",)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Normalise an answer like the official script: lower case, no punctuation or articles, single spaces."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", bare).split())


def exact_and_f1(prediction: str, golds: Sequence[str]) -> tuple[int, float]:
    """Return the best exact match and F1 of an answer over all right ones.

    A question without an answer has no right one, and wants an empty answer.
    """
    wanted = [normalise(gold) for gold in golds if normalise(gold)] or [""]
    given = normalise(prediction)
    if given == NO_ANSWER:
        given = ""
    return max(int(given == gold) for gold in wanted), max(_f1(given, gold) for gold in wanted)


def _f1(given: str, gold: str) -> float:
    if not given or not gold:
        return float(given == gold)
    common = sum((Counter(given.split()) & Counter(gold.split())).values())
    return 2 * common / (len(given.split()) + len(gold.split()))


def score(items: Sequence[Item], answers: Sequence[str]) -> Scores:
    """Score answers by exact match and F1, over all questions, and over those with and without an answer."""
    results = [
        exact_and_f1(until_stop(answer, STOP), item.target)
        for item, answer in zip(items, answers, strict=True)
    ]
    correct, overlap = [exact for exact, _ in results], [f1 for _, f1 in results]
    metrics = {"exact_match": mean(correct), "f1": mean(overlap)}
    metrics |= {f"exact_match_{group}": value for group, value in by_group(items, correct).items()}
    metrics |= {f"f1_{group}": value for group, value in by_group(items, overlap).items()}
    return Scores(correct, metrics)


def _context(row: Row) -> str:
    return get(row, "context", str).strip().removesuffix(NO_ANSWER_MARK).strip()


def _item(row: Row, answers: Sequence[str]) -> Item:
    prompt = f"Context: {_context(row)}\nQuestion: {get(row, 'question', str).strip()}\nAnswer:"
    golds = tuple(dict.fromkeys(answers))
    if not golds:
        return Item(prompt, golds, answer=f" {NO_ANSWER}", group="unanswerable")
    return Item(prompt, golds, answer=f" {golds[0]}", group="answerable")


def _answers(row: Row) -> list[str]:
    texts = get(row, "answers", dict).get("text")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{row.where}: expected 'answers' to hold a list 'text', empty for no answer, "
            f"got {texts!r:.60}; rewrite the row"
        )
    return [text.strip() for text in texts if normalise(text) and text.strip() != NO_ANSWER_MARK]


def _title(row: Row) -> str:
    return get(row, "title", str)


def _squad_rows(source: RowSource) -> Rows:
    dev = source.rows("squad_v2", "validation", SQUAD)
    if source.has("squad_v2", "train", SQUAD):
        train, test = source.rows("squad_v2", "train", SQUAD), dev
    else:
        train, test = (
            [row for row in dev if row.fields.get("cs224n_part") == part] for part in ("dev", "test")
        )
        if not train or not test:
            raise DataError(
                f"the data folder {source.data_dir}/squad_v2 has no split 'train', and its validation rows "
                "no 'cs224n_part' of 'dev' and 'test' to train and test on; "
                "add train.jsonl or leave --data-dir out"
            )
    train, validation = cut("squad_v2", train, unit=_title)
    return {"train": train, "validation": validation, "test": test}


def _read_squad(source: RowSource) -> Items:
    rows = _squad_rows(source)
    return {split: [_item(row, _answers(row)) for row in rows[split]] for split in rows}


def _merged(rows: Sequence[Row]) -> list[Item]:
    """Make one item of all rows about one question on one passage.

    What any annotator marked is right; if none marked anything, there is no answer.
    """
    first: dict[str, Row] = {}
    answers: dict[str, list[str]] = {}
    for row in rows:
        key = squeezed(_item(row, ()).prompt)
        first.setdefault(key, row)
        answers.setdefault(key, []).extend(_answers(row))
    return [_item(first[key], answers[key]) for key in first]


def _read_subjqa(source: RowSource) -> Items:
    rows = official("subjqa", SUBJQA, source, unit=lambda row: squeezed(_context(row)))
    return {split: _merged(rows[split]) for split in rows}


TASK = Task(
    name="squad_v2",
    kind="generation",
    metric="exact_match",
    load=loader("squad_v2", _read_squad),
    score=score,
    partners=("subjqa",),
    max_length=640,
    max_new_tokens=48,
    stop=STOP,
)
SUBJQA_TASK = Task(
    name="subjqa",
    kind="generation",
    metric="exact_match",
    load=loader("subjqa", _read_subjqa),
    score=score,
    max_length=640,
    max_new_tokens=96,
    stop=STOP,
)
