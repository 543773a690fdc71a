"""The command line, `shadowpeft VERB`: one module for each verb; what they share begins with `_`.

A verb is a module of its name with one typed function `run`: its parameters and docstring become flags and
help, and every flag may also come from `--config FILE`. `run` returns the exit code, or `None` for success. A
verb of several parts has one such function for each part, in its dictionary `PARTS`. The verbs may import
every other folder, and nothing imports them. Nothing heavy is imported before a verb runs, so that `--help`
comes at once.
"""

import contextlib
import errno
import importlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import shadowpeft
from shadowpeft.checked_fields import nearest
from shadowpeft.cli._threads import sleep_while_waiting
from shadowpeft.errors import ConfigError, UserError, is_torch_write_failure

VERBS = {
    "demo": "train a shadow on a small data set and compare what it can do, offline and in minutes",
    "train": "train a shadow beside a frozen base on rows of text",
    "pretrain": "pretrain a shadow on plain text, before it is trained for a task",
    "generate": "answer prompts, attached or with the shadow alone",
    "eval": "measure loss, perplexity and exact match on rows of text",
    "compare": "train and measure methods side by side, with one table at the end",
    "bench": "time methods side by side: bench train, bench forward, bench decode, bench table",
    "export": "write the shadow alone as a stock model folder",
    "calibrate": "find out which answers of the small model may be kept, and which go to the cloud",
    "serve": "answer requests in OpenAI's protocol, also by an edge that defers to a cloud",
    "simulate": "work out what edge and cloud come to, for one robot or a fleet",
    "doctor": "show versions, devices and extras, or what a model can do or would need",
}
# Verbs of several parts, such as `shadowpeft bench train`. The verb's module has a `PARTS` of the same names.
PARTS = {
    "bench": {
        "train": "time training steps",
        "forward": "time the reading of a prompt",
        "decode": "time the writing of tokens",
        "table": "print the table of a run again",
    },
}
_MISTAKE, FAILURE, INTERRUPTED, _NOBODY_READS = 2, 1, 130, 141
# What the operating system refuses for reasons outside this program: one sentence is all there is to say.
_OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors words the number


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    The codes are 0, 2 for a user's mistake, 1 for a failure, 130 when interrupted, and 141 when nobody reads
    the output any more.
    """
    if argv is None:
        argv = sys.argv[1:]
    words = list(argv)
    name = "shadowpeft"
    if words and words[0] in VERBS:
        name = f"shadowpeft {words[0]}"
    _set_encodings()
    sleep_while_waiting()
    try:
        code = _run(words)
        # At exit Python would flush too, but there a closed pipe could not be handled.
        sys.stdout.flush()
        return code
    except UserError as error:
        return _say(name, error, FAILURE if _is_outside(error) else _MISTAKE)
    except BrokenPipeError:
        # Python flushes again when it exits, and would print an error then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS
    except OSError as error:
        if error.errno not in _OUTSIDE:
            raise
        return _say(name, error, FAILURE)
    except KeyboardInterrupt:
        return _say(name, "interrupted; what was saved before is kept", INTERRUPTED)


def _set_encodings() -> None:
    """Read prompts as UTF-8, and escape what the screen has no characters for instead of failing."""
    # A program that calls us may have read from it already, and then its encoding stays.
    with contextlib.suppress(io.UnsupportedOperation):
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_outside(error: BaseException | None) -> bool:
    """Return whether the machine refused (disk, rights), as the system, safetensors or torch reports it."""
    if error is None:
        return False
    if isinstance(error, UserError):
        return _is_outside(error.__cause__)
    if isinstance(error, OSError) and error.errno in _OUTSIDE:
        return True
    found = _OS_ERROR.search(str(error))
    return (found is not None and int(found[1]) in _OUTSIDE) or is_torch_write_failure(error)


def _asks_for_help(words: Sequence[str]) -> bool:
    return not words or words[0] in ("-h", "--help")


def _run(words: list[str]) -> int:
    if _asks_for_help(words):
        print(_overview())
        return 0 if words else _MISTAKE
    verb, *words = words
    if verb == "--version":
        print(f"shadowpeft {shadowpeft.__version__}")
        return 0
    if verb not in VERBS:
        raise ConfigError(
            f"there is no verb {verb!r}{nearest(verb, VERBS)}; the verbs are: {', '.join(VERBS)}"
        )
    if verb in PARTS and _asks_for_help(words):
        print(_parts(verb))
        return 0 if words else _MISTAKE
    try:
        from shadowpeft.cli import _parser
    except ModuleNotFoundError as error:
        raise UserError(f"the command line needs {error.name}; pip install 'shadowpeft[cli]'") from error
    name, run, words = _function_of(verb, words)
    values = _parser.parse(name, run, words)
    if values is None:
        return 0
    with _quiet():
        return run(**values) or 0


def _function_of(verb: str, words: list[str]) -> tuple[str, Callable[..., int | None], list[str]]:
    """Return the full name of a command, its function, and the words that are left for it."""
    module = importlib.import_module(f"shadowpeft.cli.{verb}")
    if verb not in PARTS:
        return verb, module.run, words
    part, *rest = words
    if part not in PARTS[verb]:
        raise ConfigError(
            f"there is no {verb} {part!r}{nearest(part, PARTS[verb])}; there are: {', '.join(PARTS[verb])}"
        )
    return f"{verb} {part}", module.PARTS[part], rest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Show each of this package's warnings in one line, and those of other libraries only under `-W`."""
    for library in ("TRANSFORMERS", "DATASETS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # PEFT imports bitsandbytes, which says on every start that an optional kernel was not downloaded.
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
            "shadowpeft VERB --help lists a verb's flags; each may also come from --config FILE.yaml.",
        ]
    )
