"""A few documents, and files of them as lines of JSON."""

import gzip
import json
from pathlib import Path

TEXTS = ["hello world", "what is two plus two", "think of the city", "four systems", "you are here and there"]


def write_lines(path: Path, lines: list[bytes]) -> Path:
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def as_lines(texts: list[str], field: str = "text") -> list[bytes]:
    return [json.dumps({field: text}).encode() for text in texts]
