"""Rows of every task in the two layouts: a local folder's and the hub's."""

import gzip
import json
from pathlib import Path

from shadowpeft.compare.tasks import TASKS, Item, RowSource, clinc, find, newsgroups
from shadowpeft.compare.tasks.splits import squeezed

SPLITS = ("train", "validation", "test")
SUBJECTS = ("abstract_algebra", "virology")


def texts(split: str, count: int) -> list[str]:
    return [f"{split} text number {index}" for index in range(count)]


def word_problems(split: str, count: int) -> list[dict]:
    return [
        {"question": text, "answer": f"He has 2*{n}=<<2*{n}={2 * n}>>{2 * n}.\n#### {2 * n}"}
        for n, text in enumerate(texts(split, count))
    ]


def passages(split: str, count: int) -> list[dict]:
    return [
        {
            "title": f"{split} article {index // 5}",
            "context": f"The passage of {split} {index // 5}.",
            "question": text,
            "answers": {
                "text": ["the passage", "passage"] if index % 2 else [],
                "answer_start": [4, 8] if index % 2 else [],
            },
        }
        for index, text in enumerate(texts(split, count))
    ]


def questions(split: str, count: int, letters: int = 4) -> list[dict]:
    return [
        {
            "subject": SUBJECTS[n % 2],
            "question": text,
            "choices": [f"choice {n} {letter}" for letter in range(letters)],
            "answer": n % letters,
        }
        for n, text in enumerate(texts(split, count))
    ]


def labelled(split: str, count: int, labels, text: str, label: str) -> list[dict]:
    return [{text: line, label: labels[n % len(labels)]} for n, line in enumerate(texts(split, count))]


def local_rows() -> dict[str, dict[str, list[dict]]]:
    numbers = [
        {"question": text, "answer": "2.5" if n % 2 else 4.0} for n, text in enumerate(texts("any", 40))
    ]
    halves = [{**row, "cs224n_part": part} for part in ("dev", "test") for row in passages(part, 50)]
    intents = [*clinc.LABELS[:5], "oos"]
    return {
        "gsm8k": {"train": word_problems("train", 40), "test": word_problems("test", 10)},
        "mawps": {"train": numbers[:25], "validation": numbers[25:32], "test": numbers[32:]},
        "squad_v2": {"validation": halves},
        "subjqa": {split: passages(split, 10) for split in SPLITS},
        "mmlu": {
            "dev": questions("dev", 4),
            "validation": questions("validation", 30),
            "test": questions("test", 10),
        },
        "arc_easy": {split: questions(split, 20, 3) for split in ("train", "test")},
        "arc_challenge": {split: questions(split, 20, 5) for split in ("train", "test")},
        "amazon5": {
            split: [{**row, "title": "Fine"} for row in labelled(split, 50, (1, 2, 3, 4, 5), "text", "stars")]
            for split in ("train", "test")
        },
        "sst5": {split: labelled(split, 50, (1, 2, 3, 4, 5), "text", "label") for split in SPLITS},
        "newsgroups20": {
            split: labelled(split, 60, newsgroups.LABELS, "text_stripped", "group")
            for split in ("train", "test")
        },
        "clinc150": {split: labelled(split, 12, intents, "text", "intent") for split in SPLITS},
        "wiki_en": {"validation": [{"text": "short"}, {"text": "long " * 60}, {"text": "longer " * 60}]},
    }


def hub_rows() -> dict[tuple, list[dict]]:
    """Rows as the hub has them: (id, configuration, split) -> rows."""
    five = (0, 1, 2, 3, 4)
    science = [
        {
            "question": row["question"],
            "choices": {"text": row["choices"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        }
        for row in questions("any", 60, 3)
    ]
    sums = [{"question": text, "result": "5/2", "result_float": 2.5} for text in texts("any", 60)]
    found: dict[tuple, list[dict]] = {}
    for start, split in enumerate(SPLITS):
        part = slice(20 * start, 20 * start + 20)
        found["MU-NLPC/Calc-mawps", None, split] = sums[part]
        found["allenai/ai2_arc", "ARC-Easy", split] = found["allenai/ai2_arc", "ARC-Challenge", split] = (
            science[part]
        )
        for name in ("SetFit/amazon_reviews_multi_en", "SetFit/sst5"):
            found[name, None, split] = [
                {**row, "label_text": "named"} for row in labelled(split, 20, five, "text", "label")
            ]
        found["clinc/clinc_oos", "plus", split] = labelled(split, 12, (0, 1, 2), "text", "intent")
        found["megagonlabs/subjqa", None, split] = [
            {**row, "context": row["context"] + " ANSWERNOTFOUND"} for row in passages(split, 10)
        ]
    for split in ("train", "test"):
        found["openai/gsm8k", "main", split] = word_problems(split, 20)
        found["SetFit/20_newsgroups", None, split] = labelled(
            split, 60, newsgroups.LABELS, "text", "label_text"
        )
    for split in ("train", "validation"):
        found["rajpurkar/squad_v2", None, split] = passages(split, 50)
    for split in ("auxiliary_train", "dev", "validation", "test"):
        found["cais/mmlu", "all", split] = questions(split, 10)
    found["cais/mmlu", "all", "auxiliary_train"] = [
        {**row, "subject": ""} for row in questions("auxiliary", 10)
    ]
    found["Salesforce/wikitext", "wikitext-2-raw-v1", "validation"] = [
        {"text": ""},
        {"text": " = Title = \n"},
        {"text": "long " * 60},
    ]
    return found


def write_sets(folder: Path, sets: dict[str, dict[str, list[dict]]], suffix: str = ".jsonl") -> RowSource:
    for name, splits in sets.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            (folder / name / f"{split}{suffix}").write_bytes(
                gzip.compress(content) if suffix.endswith("gz") else content
            )
    return RowSource(str(folder))


def everything(name: str, source: RowSource) -> dict[str, list[Item]]:
    return {split: find(name).load(split, source) for split in SPLITS}


def all_names(items: dict[str, list[Item]]) -> dict[str, set[str]]:
    return {split: {squeezed(item.prompt) for item in items[split]} for split in items}


def assert_sound(name: str, items: dict[str, list[Item]]) -> None:
    """A task's splits share nothing and are answerable: right answers score 1 in every metric."""
    task, prompts = TASKS[name], all_names(items)
    assert all(prompts.values())
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["test"] & (prompts["train"] | prompts["validation"])
    for split in SPLITS:
        oracle = [item.answer if task.kind == "generation" else item.target for item in items[split]]
        scores = task.score(items[split], oracle)
        assert set(scores.metrics.values()) == {1.0}
        assert task.metric in scores.metrics
        assert scores.correct == [1] * len(items[split])
        if task.kind == "choice":
            assert all(item.answer == item.choices[item.target] for item in items[split])
        if task.kind == "classification":
            assert all(0 <= item.target < len(task.labels) and not item.answer for item in items[split])
