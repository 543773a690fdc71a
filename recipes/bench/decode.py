"""Measure decoding where the command line is not installed: the flags are those of `shadowpeft bench decode`.

python recipes/bench/decode.py --shape 0.6b --batch 1 --context 256 [--seconds 500]
"""

import argparse
import dataclasses
import sys
from typing import Any, get_type_hints

import torch

from shadowpeft.bench.decode import report
from shadowpeft.bench.decode.run import decode
from shadowpeft.bench.decode.settings import DecodeBench
from shadowpeft.errors import UserError


def settings_of(words: list[str]) -> DecodeBench:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    hints = get_type_hints(DecodeBench)
    for field in dataclasses.fields(DecodeBench):
        names = [f"--{field.name.replace('_', '-')}"]
        if field.name == "limit_seconds":
            names.append("--seconds")
        if hints[field.name] is bool:
            parser.add_argument(*names, dest=field.name, action="store_true")
        else:
            kind: Any = next((kind for kind in (int, float) if kind in _parts(hints[field.name])), str)
            parser.add_argument(*names, dest=field.name, type=kind, default=field.default)
    return DecodeBench(**vars(parser.parse_args(words)))


def _parts(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__args__", (hint,))


def measure(settings: DecodeBench) -> None:
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    command = f"python recipes/bench/decode.py {' '.join(sys.argv[1:])}"
    _, rows = decode(settings, torch.device(name), command, say=lambda line: print(line, flush=True))
    print(report.markdown(rows))


def main() -> None:
    try:
        measure(settings_of(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"decode.py: {error}")


if __name__ == "__main__":
    main()
