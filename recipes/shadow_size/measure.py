"""Train shadows of several sizes on the demo's rows, and score them on the validation split.

    python recipes/shadow_size/measure.py --seeds 0 1 --sizes full mlp/4 mlp/4,heads/4 mlp/12,heads/4

Prints a JSON line for each run, with the scores attached and detached.
"""

import argparse
import json
import tempfile

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from shadowpeft import ShadowConfig, attach
from shadowpeft.data.encode import encode_all
from shadowpeft.data.rows import read_rows
from shadowpeft.demo.labels import likeliest_labels
from shadowpeft.demo.methods import fit
from shadowpeft.demo.run import MAX_LENGTH, count, load_base
from shadowpeft.demo.settings import Settings
from shadowpeft.embedded import CLINC150, MODEL


def sizes(config: PreTrainedConfig, text: str) -> dict[str, int]:
    """Read `mlp/4,heads/4` as settings of ShadowConfig; `full` is the base's own sizes."""
    parts = {}
    if text != "full":
        parts = dict(part.split("/") for part in text.split(","))
    settings = {"shadow_intermediate_size": config.intermediate_size // int(parts.get("mlp", 1))}
    if "heads" in parts:
        settings["shadow_attention_heads"] = max(1, config.num_attention_heads // int(parts["heads"]))
        settings["shadow_key_value_heads"] = max(1, config.num_key_value_heads // int(parts["heads"]))
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sizes", nargs="+", default=["full", "mlp/4", "mlp/4,heads/4", "mlp/12,heads/4"])
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--rows", type=int, default=10**6)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    train = encode_all(read_rows(str(CLINC150 / "train.jsonl"))[: args.rows], tokenizer, MAX_LENGTH)
    held = read_rows(str(CLINC150 / "validation.jsonl"))[: args.rows]
    labels = json.loads((CLINC150 / "labels.json").read_text(encoding="utf-8"))

    def accuracy(model: PreTrainedModel) -> float:
        chosen = likeliest_labels(model, tokenizer, [row.fields["prompt"] for row in held], labels)
        right = sum(labels[best] == row.fields["completion"] for best, row in zip(chosen, held, strict=True))
        return right / len(held)

    for seed in args.seeds:
        for text in args.sizes:
            base = load_base()
            chosen = sizes(base.config, text)
            torch.manual_seed(seed)
            model = attach(base, ShadowConfig(**chosen))
            with tempfile.TemporaryDirectory() as folder:
                run = fit(
                    model,
                    train,
                    tokenizer.pad_token_id,
                    settings=Settings(epochs=2.0, batch=32, seed=seed),
                    learning_rate=args.learning_rate,
                    folder=folder,
                    progress=lambda done, total: None,
                )
            row = {"size": text, "seed": seed, "trainable": count(model), **chosen}
            row["seconds"] = round(run.seconds, 1)
            row |= {"attached": round(accuracy(model), 4), "detached": round(accuracy(model.detached()), 4)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
