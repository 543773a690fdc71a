"""Write the model card of a trained folder from its `training_log.json`.

python recipes/embedded_model/card.py MODEL
"""

import json
import sys
from pathlib import Path
from typing import Any

SOURCES = {
    "wiki_en": "English Wikipedia articles (CC BY-SA, the Wikipedia contributors)",
    "novels_en": "97 English novels of 1839-1937 (public domain)",
    "utterances": "short quoted speeches of those novels and dolly questions, lower-cased",
    "dolly": "databricks-dolly-15k instructions and responses in ChatML (CC BY-SA 3.0, Databricks)",
    "dolly_lower": "the same, lower-cased",
}
CARD = """\
---
license: cc-by-sa-4.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# shadowpeft embedded model

A {millions:.2f} M parameter English language model ({layers} Qwen3 layers, width {width}, a byte-level
BPE of {vocabulary:,} tokens, tied embeddings, bf16), trained from scratch. It is real but very small:
it is there so that examples and tests can adapt a pretrained model offline in seconds.

## Training

{tokens:,} tokens drawn from {sources:,} in {minutes:.1f} minutes on one {device}, packed
windows of {length} tokens, AdamW; `recipes/embedded_model` in the source repository has the code.
The shares of the sources were set after seeing an earlier run's losses on the same held-out texts.
Held-out texts are whole articles, whole novels and 2 % of dolly (a random share, fixed seed), scored
on the stated number of tokens at their start:

| source | share of training | passes | held-out perplexity | bits per byte | held-out tokens |
| --- | --- | --- | --- | --- | --- |
{rows}

Command: `{command}` with {versions}, seed {seed}. Training ended `{status}`.

## Sources and licence

The weights are offered under CC BY-SA 4.0, since parts of the training text are CC BY-SA:

{credits}

The Wikipedia articles are mostly ones begun around 2018, so sport, biography and places weigh more than in
Wikipedia at large. About a quarter of the articles and of the novels' pieces were lower-cased.

CLINC150, or any other intent-classification set, was not among the training text.

## Limits

The model writes locally fluent English and little more. It knows few facts, states wrong ones, does
not reason, follows instructions poorly, and has seen next to no code and hardly any language but English.
It read each source many times over (`passes`) and can repeat training text.
{risen}Its training context was {length} tokens. The novels carry the views and prejudices of
their time; nothing was filtered for what it says and nothing was aligned.
Adapt it, measure with it, do not serve it.
"""


def risen(history: list[dict[str, float]], names: list[str]) -> str:
    """Name the sources whose held-out loss rose again during training."""
    best = {name: min(row[name] for row in history) for name in names}
    rises = [
        f"`{name}` {best[name]:.2f} to {history[-1][name]:.2f}"
        for name in names
        if history[-1][name] > best[name] + 0.05
    ]
    if not rises:
        return ""
    return f"Held-out loss rose again after its lowest point: {', '.join(rises)}.\n"


def card(log: dict[str, Any], config: dict[str, Any]) -> str:
    """Fill the card in from the training log and the model's configuration."""
    train = [row for row in log["sources"] if row["split"] == "train"]
    sizes, shares = {row["source"]: row["tokens"] for row in train}, log["source_weights"]
    row = "| {} | {:.0%} | {:.0f} | {perplexity:.1f} | {bits_per_byte:.3f} | {tokens:,} |".format
    return CARD.format(
        millions=log["parameters"] / 1e6,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        vocabulary=config["vocab_size"],
        tokens=log["tokens_seen"],
        sources=sum(row["tokens"] for row in train),
        minutes=log["train_seconds"] / 60,
        device=log["device"],
        length=log["length"],
        rows="\n".join(
            row(name, shares[name], shares[name] * log["tokens_seen"] / sizes[name], **score)
            for name, score in log["validation"].items()
        ),
        command=log["command"],
        versions=", ".join(f"{name} {version}" for name, version in log["versions"].items()),
        seed=log["seed"],
        status=log["status"],
        risen=risen(log["history"], list(sizes)),
        credits="\n".join(
            f"- `{row['source']}`: {SOURCES[row['source']]}, {row['tokens']:,} tokens" for row in train
        ),
    )


def main() -> None:
    """Write `README.md` beside the weights."""
    folder = Path(sys.argv[1])
    log, config = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("training_log.json", "config.json")
    )
    (folder / "README.md").write_text(card(log, config), encoding="utf-8")


if __name__ == "__main__":
    main()
