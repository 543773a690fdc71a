"""Small tasks of lm-evaluation-harness, from files."""

import json
from pathlib import Path

ROWS = [
    ("The river runs", [" past the town", " a blue of"], 0),
    ("She said that", [" of", " it was late"], 1),
    ("Where is my card? I have lost it since yesterday and", [" track", " I want to report it"], 1),
    ("One", [" two", " three"], 0),
    ("Please tell me what the weather is like in the old town", [" card", " today"], 1),
]


CHOOSE = """task: choose
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: brier_score}]
"""


ROLL = """task: roll
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""


SAY = """task: say
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def write_tasks(folder: Path, said: list[str], *more: str) -> Path:
    folder.mkdir()
    rows = [
        {"question": q, "choices": c, "answer": a, "said": s} for (q, c, a), s in zip(ROWS, said, strict=True)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")}
    data = (
        f"dataset_path: json\ndataset_kwargs: {json.dumps(files)}\ntest_split: test\n"
        "metadata: {version: 3}\n"
    )
    for content in (CHOOSE, ROLL, SAY, *more):
        (folder / f"{content.split()[1]}.yaml").write_text(content + data, encoding="utf-8")
    return folder
