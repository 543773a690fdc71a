"""Benches that are over quickly: the tests are of the bench, not of speed."""

from pathlib import Path

import torch

from shadowpeft.bench.specs import Spec, parse

CPU = torch.device("cpu")
QUICK = ["--device", "cpu", "--shape", "tiny", "--batch", "1", "--tokens", "8", "--repeats", "2"]


def command(kind: str, methods: str, output: Path, *more: str) -> list[str]:
    return ["bench", kind, *QUICK, "--methods", methods, "--output", str(output), *more]


def spec(text: str, kind: str = "train") -> Spec:
    (found,) = parse(text, "", kind)
    return found
