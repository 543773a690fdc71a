"""Turn the embedded model's text sources into token files that `shadowpeft pretrain` reads.

    python recipes/pretrained_shadow/tokens.py --wiki DIR --novels DIR --dolly DIR --output DIR

Documents, held-out parts and tokenizer are those of the embedded model; the folders are those that
`recipes/embedded_model` reads.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shadowpeft.embedded import MODEL

# The other recipe is no package that could be imported.
sys.path.append(str(Path(__file__).parents[1] / "embedded_model"))
from prepare import dolly_chats, dolly_splits, raw_texts, read, utterance_documents

SEED = 20250101
# More short and instructive text than the base saw: a small model is rarely asked for a page of a novel.
SHARES = {"wiki_en": 0.35, "novels_en": 0.25, "dolly": 0.14, "dolly_lower": 0.14, "utterances": 0.12}


def sources(
    wiki: Path, novels: Path, dolly: Path, tokenizer: PreTrainedTokenizerBase
) -> dict[str, dict[str, list[str]]]:
    """Return the embedded model's documents by source and split."""
    found, chats = raw_texts(wiki, novels), dolly_splits(read(dolly)["train"])
    found["dolly"], found["dolly_lower"] = {}, {}
    for split in ("train", "validation"):
        questions = [text.lower() for text in chats[split]["instruction"] if len(text) <= 160]
        speeches = utterance_documents(found["utterances"][split])
        found["utterances"][split] = speeches + utterance_documents(questions)
        found["dolly"][split] = dolly_chats(chats[split], tokenizer)
        found["dolly_lower"][split] = [text.lower() for text in found["dolly"][split]]
    return found


def tokens_of(texts: list[str], most: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """Tokenize documents in random order, each followed by the separator, up to `most` tokens."""
    taken, order = 0, random.Random(SEED).sample(texts, len(texts))
    for start in range(0, len(order), 64):
        for ids in tokenizer(order[start : start + 64], verbose=False)["input_ids"]:
            if taken >= most:
                return
            yield np.array([*ids, tokenizer.pad_token_id], dtype=np.uint16)
            taken += len(ids) + 1


def write(
    found: dict[str, dict[str, list[str]]],
    split: str,
    most: int,
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, int]:
    """Mix the sources by `SHARES` into one file of documents in random order; return the tokens of each."""
    chosen, counts = [], {}
    for source, share in SHARES.items():
        documents = list(tokens_of(found[source][split], round(share * most), tokenizer))
        counts[source] = sum(map(len, documents))
        chosen += documents
    random.Random(SEED).shuffle(chosen)
    np.savez_compressed(path, ids=np.concatenate(chosen))
    return counts


def main() -> None:
    """Write `train.npz`, `heldout.npz` and `manifest.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("wiki", "novels", "dolly", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=24_000_000, help="the most tokens to train on")
    parser.add_argument("--held-out", type=int, default=300_000)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    found = sources(args.wiki, args.novels, args.dolly, tokenizer)
    train, held_out = args.output / "train.npz", args.output / "heldout.npz"
    manifest = {
        "train": write(found, "train", args.tokens, path=train, tokenizer=tokenizer),
        "validation": write(found, "validation", args.held_out, path=held_out, tokenizer=tokenizer),
    }
    (args.output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(manifest, indent=1), flush=True)


if __name__ == "__main__":
    main()
