"""Write the pages that follow from the code: command line and families. `--check` names stale ones."""

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from shadowpeft.arch import FAMILIES, Family, takes_tokens_back
from shadowpeft.cli import PARTS, VERBS, _parser
from shadowpeft.export import gguf_families

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- Made by docs/generate.py; do not edit. -->"
GROUPS = {
    "shadow": "Settings of the adapter:",
    "draft": "How the shadow learns to draft, after the training "
    "([guide](../guides/decode-fast.md#teach-the-shadow-to-draft)):",
}


def generated() -> dict[Path, str]:
    """Return the text of each generated page."""
    return {REFERENCE / "cli.md": command_line(), REFERENCE / "families.md": families()}


def command_line() -> str:
    """Describe every verb and its flags, as the parser knows them."""
    verbs = [f"| [`{verb}`](#{_anchor(verb)}) | {summary} |" for verb, summary in VERBS.items()]
    text = [
        NOTE,
        "# The command line",
        "`shadowpeft VERB [flags]`. Each flag may also stand in a YAML file, under its name with "
        "underscores: `--config run.yaml`. A flag on the command line overrides the file. A switch, such as "
        "`--packing`, may stand alone. Flags that begin with `--shadow.` are the settings of the adapter; in "
        "a file they stand under `shadow:`, and those of `--draft.` under `draft:`.",
        "The exit code is 0 for success, 2 for a user's mistake, 1 for a failure, 130 after an interruption.",
        "\n".join(["| verb | what it does |", "| --- | --- |", *verbs]),
    ]
    for verb in VERBS:
        if verb in PARTS:
            text += [f"## {verb}", _sentence(VERBS[verb])]
        for name, run in _functions(verb).items():
            text += [f"{'###' if verb in PARTS else '##'} {name}", *_described(name, run)]
    return "\n\n".join(text) + "\n"


def _functions(verb: str) -> dict[str, Callable[..., Any]]:
    module = vars(importlib.import_module(f"shadowpeft.cli.{verb}"))
    if verb not in PARTS:
        return {verb: module["run"]}
    return {f"{verb} {part}": module[part] for part in PARTS[verb]}


def _described(name: str, run: Callable[..., Any]) -> list[str]:
    """Describe one parser: what it does, its own flags, then those of its groups."""
    parser = _parser.build(name, run)
    actions = [action for action in parser._actions if _is_shown(action)]
    # `--config` comes first in the parser and last for a reader.
    actions.sort(key=lambda action: action.dest == "config")
    own = [action for action in actions if "." not in action.dest]
    text = [_sentence((inspect.getdoc(run) or "").partition("\n\n")[0]), _table(parser, own)]
    for group, title in GROUPS.items():
        of_group = [action for action in actions if action.dest.startswith(f"{group}.")]
        if of_group:
            text += [title, _table(parser, of_group)]
    return text


def _table(parser: ArgumentParser, actions: list[Any]) -> str:
    head = ["| flag | value | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *(_row(parser, action) for action in actions)])


def _is_shown(action: Any) -> bool:
    return bool(action.option_strings) and action.dest != "help" and action.help != "==SUPPRESS=="


def _row(parser: ArgumentParser, action: Any) -> str:
    flag = action.option_strings[-1]
    help_text = " ".join(str(action.help or "").split()).rstrip(".")
    cells = [f"`{flag}`", _values(action), _default(parser, action), help_text]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(action: Any) -> str:
    """Say in the reader's words what a flag takes."""
    if action.dest == "config":
        return "a file"
    hint = vars(action).get("_typehint")
    if hint is None:
        return "a folder"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if hint in names:
        return names[hint]
    text = str(hint).replace("typing.", "").replace(" | None", "").replace("<class '", "").replace("'>", "")
    if text.startswith("Literal["):
        return text.removeprefix("Literal[").removesuffix("]").replace("'", "`")
    for kind, word in names.items():
        text = text.replace(kind.__name__, word)
    return text.replace(" | ", " or ")


def _default(parser: ArgumentParser, action: Any) -> str:
    if action.dest == "config" or vars(action).get("_typehint") is None:
        return ""
    if action.required:
        return "required"
    value = parser.get_defaults().get(action.dest)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`"


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _sentence(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text[:1].upper() + text[1:] + "."


def families() -> str:
    """Describe the table of families."""
    head = [
        f"| family | `model_type` | language model | classifier | {' | '.join(_CAN)} | notes |",
        f"| {' | '.join(['---'] * (5 + len(_CAN)))} |",
    ]
    text = [
        NOTE,
        "# Supported model families",
        f"A base of any of these {len(FAMILIES)} families can be adapted, from a folder or from the hub, as "
        "a causal language model or, where transformers has the class, as a sequence classifier. Any other "
        "model is refused by name. [Add a family](../develop/add-a-family.md) says what another one takes.",
        "\n".join([*head, *(_family_row(family) for family in FAMILIES.values())]),
        "What a family cannot do is refused in one sentence:\n\n"
        "- **packing**: `--packing` puts several documents in a row and keeps them apart by their "
        "positions. Some decoders do not look at these for it, or carry a state from one document to the "
        "next.\n"
        "- **full graph**: `torch.compile(fullgraph=True)`. Some decoders drop unknown arguments, and ours "
        "cannot be one of them; torch names what it cannot trace, and without `fullgraph` a step compiles in "
        "parts.\n"
        "- **assisted**: generation that drafts tokens and takes back those that are rejected. A recurrent "
        "state cannot be taken back.\n"
        "- **GGUF**: `shadowpeft export --to gguf`. The file of a tiny random model gives the same answers "
        "in llama.cpp. A model of such a family that llama.cpp would compute differently is refused.",
        "Notes:\n\n"
        "- **Dense shadow**: the base is a mixture of experts; the MLP of its shadow is dense, or one expert "
        "that every token takes (Phi-MoE and Solar Open: two).\n"
        "- **Attending shadow**: the base has recurrent or convolutional blocks; those of its shadow "
        "attend.\n"
        "- **Recurrent shadow**: the blocks of its shadow keep a recurrent state beside their keys, as the "
        "base's do.\n"
        "- **Plain shadow**: the base's blocks attend to chosen keys, use those of other blocks, or read "
        "more than the stream; the blocks of its shadow attend to all keys of their own and read the stream "
        "alone.\n"
        "- **Wide shadow**: a shadow trained in float32 computes in it beside a base in a lower type, "
        "because transformers' blocks follow the type of their weights; its state is cast to the base's "
        "type.\n"
        "- **Output norms**: norms stand behind attention and MLP, so `output_gains` is on by default.\n"
        "- **Soft cap** and **logit factor**: what the head puts out passes `cap * tanh(logits / cap)`, or "
        "is multiplied by a number; the exported model does the same.",
        "All rows are tested on tiny random models: a step with every gradient, the same step compiled, "
        "generation with a cache and without, with padding, beams and a static cache, the detached model and "
        "its export, and where there is one the classifier. Real models that were trained are named in "
        "[the results](../../results/README.md).",
    ]
    return "\n\n".join(text) + "\n"


# What a family may be able to do, in the order of the columns.
_CAN: dict[str, Callable[[Family], bool]] = {
    "packing": lambda family: family.packs,
    "full graph": lambda family: family.passes_kwargs,
    "assisted": takes_tokens_back,
    "GGUF": lambda family: family.model_type in gguf_families.LAYOUTS,
}
_NOTES: dict[str, Callable[[Family], bool]] = {
    "dense shadow": lambda family: bool(family.dense),
    "attending shadow": lambda family: family.recurs and not family.shadow_recurs,
    "recurrent shadow": lambda family: family.shadow_recurs,
    "plain shadow": lambda family: bool(family.plain) and not family.recurs,
    "wide shadow": lambda family: family.widens,
    "output norms": lambda family: bool(family.output_norms),
    "soft cap": lambda family: family.softcaps,
    "logit factor": lambda family: bool(family.multiplies_logits or family.divides_logits),
}


def _family_row(family: Family) -> str:
    classifier = "no" if family.classifier is None else f"`{family.classifier}`"
    can = ["yes" if is_so(family) else "no" for is_so in _CAN.values()]
    notes = ", ".join(note for note, is_so in _NOTES.items() if is_so(family))
    cells = [family.name, f"`{family.model_type}`", f"`{family.causal}`", classifier, *can, notes]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Write the pages, or with `--check` return 1 and name those that are stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    check = parser.parse_args().check
    stale = []
    for path, text in generated().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"stale: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
