"""The records of a simulated study, and its table read back."""

import numpy as np

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import Study

MODELS = ("org/gemma-270m", "qwen-0.5b")
ITEMS = {"clinc150": 300, "gsm8k": 200, "mawps": 100, "squad_v2": 250}
GAIN = {"base": -0.3, "lora": 0.0, "dora": 0.005, "shadow": 0.03, "shadow-paper": -0.03, "peft-shadow": -0.06}


def study(tmp_path, **changes) -> Study:
    settings = {
        "model": ",".join(MODELS),
        "tasks": "clinc150,gsm8k",
        "methods": "base,lora,shadow",
        "trials": 2,
        "name": "trial",
    }
    return Study(output=str(tmp_path / "study"), **{**settings, **changes})


def record(
    model,
    task,
    method,
    *,
    seed=0,
    rank=16,
    mode="attached",
    trained_on=None,
    stage="final",
    correct="",
    **changes,
):
    trained_on = trained_on or task
    rate, alpha = 1e-3, 0.3 if "shadow" in method else None
    share = correct.count("1") / len(correct) if correct else None
    made = {
        "study": "trial", "stage": stage, "status": "ok", "error": None, "model": model, "task": task,
        "trained_on": trained_on, "method": method, "mode": mode, "rank": rank, "seed": seed,
        "learning_rate": rate, "alpha": alpha, "split": "test", "metric": "accuracy", "value": share,
        "metrics": {"accuracy": share}, "items": len(correct or ""), "correct": correct, "calibration": None,
        "trainable": 1000 * rank, "trainable_with_heads": 1200 * rank, "steps": 300, "train_seconds": 40.0,
        "train_tokens_per_second": 5000.0, "peak_gb": 2.5, "adapter_bytes": 4_000_000, "ms_per_answer": 12.5,
        "forgetting": 0.01, "train_loss": 1.0, "config": {}, "versions": {"torch": "2.13"},
        "commit": "abc1234", "device": "cpu", "workers": 1, "time": "now",
    }  # fmt: skip
    made |= changes
    made["key"] = Cell(stage, model, trained_on, method, rank, seed, made["learning_rate"], made["alpha"]).key
    return made


def study_records(
    methods=("base", "lora", "shadow"), seeds=3, ranks=(16,), models=MODELS, tasks=("clinc150", "gsm8k")
):
    """Simulate a study: items of different difficulty, seeds that differ a little, methods that differ
    by GAIN."""
    rows = []
    for number, (model, task) in enumerate((model, task) for model in models for task in tasks):
        random = np.random.default_rng(number)
        ease = random.beta(2, 1.5, ITEMS[task])
        for method in methods:
            for rank in ranks[:1] if method == "base" else ranks:
                for seed in range(seeds):
                    for mode in ("attached", "detached") if "shadow" in method else ("attached",):
                        gain = (
                            GAIN[method]
                            + 0.02 * np.log2(rank / 16)
                            - (0.15 if mode == "detached" else 0)
                            + random.normal(0, 0.01)
                        )
                        marks = "".join("01"[int(hit)] for hit in random.random(ITEMS[task]) < ease + gain)
                        rows.append(
                            record(
                                model,
                                task,
                                method,
                                mode=mode,
                                rank=rank,
                                seed=seed,
                                correct=marks,
                                **extra(task, method, random),
                            )
                        )
    return rows


def extra(task, method, random):
    confident = np.linspace(0.05, 0.95, 10)
    bins = [
        [int(n), float(c), float(np.clip(c - 0.1 + random.normal(0, 0.02), 0, 1))]
        for n, c in zip(range(10, 110, 10), confident, strict=True)
    ]
    bins[0] = [0, None, None]
    return {
        "calibration": {"ece": 0.08 + random.normal(0, 0.01), "bins": bins} if task == "clinc150" else None,
        "forgetting": 0.02 + random.normal(0, 0.003),
        "train_seconds": {"base": 0.0, "lora": 40.0, "dora": 60.0}.get(method, 50.0) + random.random(),
        "trainable_with_heads": 1,
    }


def table_of(text: str, heading: str) -> list[list[str]]:
    """Read the first table under a heading."""
    lines = text.split(f"## {heading}\n")[1].split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    cells = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    return cells
