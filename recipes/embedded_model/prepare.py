"""Train the tokenizer and turn the text sources into xz-compressed uint16 token shards.

    python recipes/embedded_model/prepare.py --wiki DIR --novels DIR --dolly DIR --output DIR

`--wiki` and `--novels` hold `train.jsonl[.gz]` and `validation.jsonl[.gz]` with a `text` field (`title` too
for Wikipedia); `--dolly` holds `train.jsonl[.gz]` in databricks-dolly-15k's fields.
"""

import argparse
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

SEED = 20250101
VOCABULARY = 6144
DOLLY_HELD_OUT = 0.02
LOWER_CASED = 0.25  # share of the Wikipedia and novel documents
NOVEL_CHARACTERS = 4000  # a novel is cut into documents of about this many
UTTERANCES = 40  # short utterances joined into one document

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

WRAPPED = re.compile(r"(?<=[\w,;-])\n(?=[a-z\"'])")  # a line break inside a sentence
QUOTED = re.compile(r'"([^"\n]{8,160})"')
PUNCTUATION = re.compile(r"[^\w\s']")


def read(folder: Path) -> DatasetDict:
    """Load a folder of `SPLIT.jsonl[.gz]` files as splits."""
    files = {path.name.split(".")[0]: str(path) for path in sorted(folder.glob("*.jsonl*"))}
    return load_dataset("json", data_files=files)


def partly_lower_cased(texts: list[str], share: float) -> list[str]:
    """Lower-case a fixed random share of the texts."""
    chosen = np.random.default_rng(SEED).random(len(texts)) < share
    return [text.lower() if lower else text for text, lower in zip(texts, chosen, strict=True)]


def novel_text(text: str) -> str:
    """Undo hard line wrapping, doubled spaces and underscore italics."""
    return re.sub(r" {2,}", " ", WRAPPED.sub(" ", text.replace("_", "")))


def novel_documents(text: str) -> list[str]:
    """Cut one novel into documents at line ends."""
    documents, lines, length = [], [], 0
    for line in novel_text(text).splitlines():
        lines.append(line)
        length += len(line)
        if length >= NOVEL_CHARACTERS:
            documents.append("\n".join(lines).strip())
            lines, length = [], 0
    return [*documents, "\n".join(lines).strip()]


def spoken(text: str) -> list[str]:
    """Return the short quoted speeches of one novel, in order, lower-cased."""
    found = (match.strip(" ,-").lower() for match in QUOTED.findall(novel_text(text)))
    return [speech for speech in found if 3 <= len(speech.split()) <= 25]


def utterance_documents(utterances: list[str]) -> list[str]:
    """Join utterances, one a line, into documents; every other document without punctuation."""
    groups = (utterances[i : i + UTTERANCES] for i in range(0, len(utterances), UTTERANCES))
    documents = ["\n".join(group) for group in groups]
    documents[1::2] = [PUNCTUATION.sub("", text) for text in documents[1::2]]
    return documents


def dolly_chats(rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Render instruction (+ context) and response with the chat template."""
    chats = [
        [
            {"role": "user", "content": "\n\n".join(filter(None, [row["instruction"], row["context"]]))},
            {"role": "assistant", "content": row["response"]},
        ]
        for row in rows
    ]
    return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]


def dolly_splits(rows: Dataset) -> DatasetDict:
    """Drop exact repeats, then hold out a fixed random 2 %."""
    unique = {(row["instruction"], row["context"], row["response"]): i for i, row in enumerate(rows)}
    splits = rows.select(sorted(unique.values())).train_test_split(DOLLY_HELD_OUT, seed=SEED)
    return DatasetDict(train=splits["train"], validation=splits["test"])


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with Qwen's text splitting and add the chat template."""
    batches: Iterator[list[str]] = (texts[i : i + 500] for i in range(0, len(texts), 500))
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        batches, VOCABULARY, new_special_tokens=[START, STOP], show_progress=False
    )
    tokenizer.eos_token, tokenizer.pad_token = STOP, END
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 1024
    return tokenizer


def write_shard(texts: list[str], tokenizer: PreTrainedTokenizerFast, path: Path) -> dict[str, int | str]:
    """Tokenize documents, end each with the separator, write them as xz-compressed uint16."""
    encode = lambda batch: {"ids": tokenizer(batch["text"])["input_ids"]}  # noqa: E731
    rows = Dataset.from_dict({"text": texts}).map(encode, batched=True, remove_columns="text")
    separator = tokenizer.convert_tokens_to_ids(END)
    tokens = np.concatenate([np.array([*row["ids"], separator], dtype="<u2") for row in rows])
    packing = {"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 1, "pb": 1}  # two-byte symbols
    path.write_bytes(lzma.compress(tokens.tobytes(), filters=[packing]))
    size = sum(len(text.encode()) for text in texts)
    return {"file": path.name, "documents": len(texts), "utf8_bytes": size, "tokens": len(tokens)}


def raw_texts(wiki: Path, novels: Path) -> dict[str, dict[str, list[str]]]:
    """Return the documents of the two plain sources and the speeches, by source and split."""
    articles, books = read(wiki), read(novels)
    sources: dict[str, dict[str, list[str]]] = {"wiki_en": {}, "novels_en": {}, "utterances": {}}
    for split in ("train", "validation"):
        pages = [f"{row['title']}\n\n{row['text']}" for row in articles[split]]
        pieces = [piece for row in books[split] for piece in novel_documents(row["text"])]
        sources["wiki_en"][split] = partly_lower_cased(pages, LOWER_CASED)
        sources["novels_en"][split] = partly_lower_cased(pieces, LOWER_CASED)
        sources["utterances"][split] = [speech for row in books[split] for speech in spoken(row["text"])]
    return sources


def main() -> None:
    """Write the tokenizer folder, the shards and `manifest.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("wiki", "novels", "dolly", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    sources = raw_texts(args.wiki, args.novels)
    dolly = dolly_splits(read(args.dolly)["train"])
    questions = {
        split: [text.lower() for text in rows["instruction"] if len(text) <= 160]
        for split, rows in dolly.items()
    }
    for split in ("train", "validation"):
        speeches = utterance_documents(sources["utterances"][split])
        sources["utterances"][split] = speeches + utterance_documents(questions[split])

    plain = [text for source in sources.values() for text in source["train"][::3]]
    asked = [f"{row['instruction']}\n{row['response']}" for row in dolly["train"]]
    tokenizer = train_tokenizer(plain + asked + [text.lower() for text in asked])
    tokenizer.save_pretrained(args.output / "tokenizer")

    sources["dolly"] = {split: dolly_chats(rows, tokenizer) for split, rows in dolly.items()}
    lower = {split: [text.lower() for text in texts] for split, texts in sources["dolly"].items()}
    sources["dolly_lower"] = lower  # a second, lower-cased stream of the same chats
    manifest = [
        {"source": source, "split": split}
        | write_shard(texts, tokenizer, args.output / f"{source}.{split}.bin.xz")
        for source, splits in sources.items()
        for split, texts in splits.items()
    ]
    (args.output / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    print(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
