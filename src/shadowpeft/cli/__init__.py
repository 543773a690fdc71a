"""The command line: `shadowpeft VERB`. Nothing heavy is imported here; each verb imports what it needs when it runs.

A verb is a module of its name with one typed function `run`: its parameters and docstring become flags and help, and every
flag may also come from `--config FILE`. `run` returns the exit code, or `None` for success. A verb in `PARTS` has one such function a part.
"""

import contextlib
import errno
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import shadowpeft
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.settings import nearest

VERBS = {
    "demo": "train a shadow on a small data set and compare what it can do, offline and in minutes",
    "train": "train a shadow beside a frozen base on rows of text",
    "pretrain": "pretrain a shadow on plain text, before it is trained for a task",
    "generate": "answer prompts, attached or with the shadow alone",
    "eval": "measure loss, perplexity and exact match on rows of text",
    "compare": "train and measure methods side by side, with one table at the end",
    "bench": "time methods side by side and read their memory: bench train, bench forward, bench table",
    "export": "write the shadow alone as a stock model folder",
    "doctor": "show versions, devices, extras and supported models",
}
# Verbs of several parts: `shadowpeft bench train`. Each part is a function of its name in the verb's module.
PARTS = {
    "bench": {
        "train": "time training steps",
        "forward": "time the reading of a prompt",
        "table": "print the table of a run again",
    },
}
_MISTAKE, FAILURE, INTERRUPTED, _NOBODY_READS = 2, 1, 130, 141
# What the operating system refuses for reasons outside this program: one sentence is all there is to say.
_OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors words the number


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for a user's mistake, 1 for a failure, 130 when interrupted, 141 when the
    reader of its output has gone."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else _MISTAKE
    if words[0] == "--version":
        print(f"shadowpeft {shadowpeft.__version__}")
        return 0
    name = f"shadowpeft {words[0]}" if words[0] in VERBS else "shadowpeft"
    try:
        code = _run(words[0], words[1:])
        sys.stdout.flush()  # here, where a reader that has gone can be told apart
        return code
    except UserError as error:
        return _say(name, error, FAILURE if _is_outside(error) else _MISTAKE)
    except BrokenPipeError:
        # Python flushes once more when it exits, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS
    except OSError as error:
        if error.errno not in _OUTSIDE:
            raise
        return _say(name, error, FAILURE)
    except KeyboardInterrupt:
        return _say(name, "interrupted; what was saved before is kept", INTERRUPTED)


def _is_outside(error: BaseException | None) -> bool:
    """Tell whether the machine refused (disk, rights): as the system says it, safetensors, or torch's file writer."""
    if error is None or isinstance(error, UserError):
        return error is not None and _is_outside(error.__cause__)
    if isinstance(error, OSError) and error.errno in _OUTSIDE:
        return True
    found = _OS_ERROR.search(str(error))
    return (
        (found is not None and int(found[1]) in _OUTSIDE)
        or "PytorchStreamWriter" in str(error)
        or "inline_container" in str(error)
    )


def _run(verb: str, words: list[str]) -> int:
    if verb not in VERBS:
        raise ConfigError(
            f"there is no verb {verb!r}{nearest(verb, VERBS)}; the verbs are: {', '.join(VERBS)}"
        )
    try:
        from shadowpeft.cli import _parser
    except ModuleNotFoundError as error:
        raise UserError(f"the command line needs {error.name}; pip install 'shadowpeft[cli]'") from error
    name = "run"
    if verb in PARTS:
        if not words or words[0] in ("-h", "--help"):
            print(_parts(verb))
            return 0 if words else _MISTAKE
        name, words = words[0], words[1:]
        if name not in PARTS[verb]:
            raise ConfigError(
                f"there is no {verb} {name!r}{nearest(name, PARTS[verb])}; there are: {', '.join(PARTS[verb])}"
            )
    run = vars(importlib.import_module(f"shadowpeft.cli.{verb}"))[name]
    values = _parser.parse(verb if name == "run" else f"{verb} {name}", run, words)
    if values is None:
        return 0
    with _quiet():
        return run(**values) or 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Show this package's own warnings as one line each; other libraries' only where Python was asked for them (`-W`)."""
    for library in ("TRANSFORMERS", "DATASETS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Says on every start that a kernel it could do without was not downloaded; PEFT imports it, whatever the verb.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module=r"shadowpeft(\.|$)")
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _say(name: str, message: Any, code: int) -> int:
    print(f"{name}: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def _parts(verb: str) -> str:
    lines = [f"  {name:<10}{summary}" for name, summary in PARTS[verb].items()]
    return "\n".join([f"usage: shadowpeft {verb} PART [flags]", "", VERBS[verb], "", *lines])


def _overview() -> str:
    lines = [
        "usage: shadowpeft VERB [flags]",
        "",
        "Adapt a frozen language model with a shadow network, and use what was trained.",
        "",
    ]
    lines += [f"  {verb:<10}{summary}" for verb, summary in VERBS.items()]
    return "\n".join(
        [
            *lines,
            "",
            "shadowpeft VERB --help tells of a verb's flags; each may also come from --config FILE.yaml.",
        ]
    )
