"""Pretrain the shadow that ships with the embedded model within a time budget, on files of `tokens.py`.

    python -u recipes/pretrained_shadow/train.py --tokens DIR --output DIR --seconds 240

Four blocks of the base are copied, each with the MLP neurons that contribute most. They learn the base's
next-token probabilities and its state. OUTPUT/package is what ships: 3.9 MB in bfloat16. A run that is cut
off leaves a shadow folder in its newest checkpoint, and `--ship CHECKPOINT` makes OUTPUT/package of that.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from shadowpeft import ShadowConfig
from shadowpeft.embedded import MODEL
from shadowpeft.pretrain import start
from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.pretrain.run import PretrainResult, pretrain
from shadowpeft.shadow import Shadow
from shadowpeft.storage import shadow_folder
from shadowpeft.storage.base_facts import BaseFacts

BLOCKS, NEURONS = (0, 1, 2, 7), 384
MOST_BYTES = 4_000_000
_CARD = """# The embedded model's pretrained shadow

{parameters:,} parameters in bfloat16: {blocks} blocks of the embedded model's kind, each with {neurons}
neurons in its MLP. It reads the base's embeddings and answers through its head. Start an adapter from it with
`attach(base, shadow=<this folder>)`, where `base` is the model in `shadowpeft.embedded.MODEL`. The texts that
it learned from are those of the base, whose README.md names them and their licences.

{run}
"""


def loudest(
    base: PreTrainedModel, blocks: Sequence[int], neurons: int, ids_BT: torch.Tensor
) -> dict[int, torch.Tensor]:
    """Return the MLP neurons of each copied block that add most to the hidden state.

    A neuron's score is the size of its activation times the size of what it writes.
    """
    found = {}

    def note(block: int, x_BTM: torch.Tensor) -> None:
        written_M = base.model.layers[block].mlp.down_proj.weight.float().norm(dim=0)
        scores_M = x_BTM.float().square().mean((0, 1)).sqrt() * written_M
        # In their order in the base, so that the copy sums in the base's order.
        found[block] = scores_M.topk(neurons).indices.sort().values

    hooks = [
        base.model.layers[block].mlp.down_proj.register_forward_pre_hook(
            lambda _, inputs, block=block: note(block, inputs[0])
        )
        for block in blocks
    ]
    with torch.no_grad():
        base.model(ids_BT, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def cut_copy(base: PreTrainedModel, blocks: Sequence[int], neurons: int, ids_BT: torch.Tensor) -> Shadow:
    """Copy the chosen blocks of the base, with fewer neurons in their MLPs."""
    shadow, chosen = random_blocks(base, len(blocks), neurons), loudest(base, blocks, neurons, ids_BT)
    state = dict(start.from_base_blocks(base, blocks, torch.float32).backbone.state_dict())
    for place, block in enumerate(blocks):
        for name, dimension in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            key = f"layers.{place}.mlp.{name}.weight"
            state[key] = state[key].index_select(dimension, chosen[block])
    shadow.backbone.load_state_dict(state, strict=True)
    return shadow


def part_of(base: PreTrainedModel, folder: Path, blocks: Sequence[int]) -> Shadow:
    """Return some blocks of a pretrained shadow, as a smaller shadow to train further."""
    shadow = shadow_folder.load(base, folder).float()
    shadow.backbone.layers = torch.nn.ModuleList(shadow.backbone.layers[block] for block in blocks)
    small = random_blocks(base, len(blocks), shadow.backbone.config.intermediate_size)
    small.backbone.load_state_dict(shadow.backbone.state_dict(), strict=True)
    return small


def random_blocks(base: PreTrainedModel, blocks: int, neurons: int) -> Shadow:
    """Build the same shadow with random weights."""
    torch.manual_seed(0)
    return start.fresh(
        base, ShadowConfig(shadow_layers=blocks, shadow_intermediate_size=neurons), torch.float32
    )


def ship(base: PreTrainedModel, folder: Path, output: Path) -> int:
    """Write a shadow folder as the package holds it, and return the bytes of its weights.

    The weights are bfloat16, and no paths of this machine are kept.
    """
    shadow = shadow_folder.load(base, folder).to(torch.bfloat16)
    run = json.loads((folder / shadow_folder.CONFIG).read_text(encoding="utf-8"))["run"]
    run = {name: value for name, value in run.items() if name not in ("command", "data", "start")}
    shadow_folder.save(shadow, replace(BaseFacts.of(base), name="shadowpeft.embedded"), output, run)
    told = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in run.items())])
    count = sum(parameter.numel() for parameter in shadow.parameters())
    card = _CARD.format(
        parameters=count,
        blocks=shadow.backbone.config.num_hidden_layers,
        neurons=shadow.backbone.config.intermediate_size,
        run=told,
    )
    (output / shadow_folder.CARD).write_text(card, encoding="utf-8")
    weights = output / shadow_folder.WEIGHTS
    weights.chmod(0o644)  # written private, but the package ships it
    return weights.stat().st_size


def settings(args: argparse.Namespace, begin: Path) -> PretrainConfig:
    """Return the settings of the run, chosen on held-out text by short runs on a CPU (README.md)."""
    seconds = args.seconds
    if args.steps is not None:
        seconds = None
    return PretrainConfig(
        model=str(MODEL),
        data=str(args.tokens / "train.npz"),
        eval_data=str(args.tokens / "heldout.npz"),
        output=str(args.output),
        start=str(begin),
        next_token=args.next_token,
        distil=args.distil,
        match=args.match,
        temperature=args.temperature,
        batch_size=args.batch,
        max_length=args.length,
        shuffle_rows=100_000,
        learning_rate=args.learning_rate,
        warmup=0.02,
        weight_decay=0.05,
        bf16=torch.cuda.is_available(),
        eval_rows=args.eval_rows,
        eval_steps=args.every,
        save_steps=args.every,
        logging_steps=max(1, args.every // 10),
        max_steps=args.steps,
        max_seconds=seconds,
    )


def arguments(words: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=Path, required=True, help="folder written by tokens.py")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; must be new or empty")
    parser.add_argument(
        "--seconds",
        type=float,
        default=240,
        help="of training; loading and evaluation come on top, about 30 s",
    )
    parser.add_argument("--steps", type=int, help="steps to train, in place of --seconds")
    parser.add_argument(
        "--ship", type=Path, help="train nothing, make OUTPUT/package of this shadow folder or checkpoint"
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS, help="blocks of the base to copy")
    parser.add_argument("--neurons", type=int, default=NEURONS, help="neurons that the MLP of each keeps")
    parser.add_argument(
        "--of", type=Path, help="a shadow folder whose blocks are taken instead of the base's, as they are"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="random blocks of that shape instead, to compare with"
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--next-token", type=float, default=0.0)
    parser.add_argument("--distil", type=float, default=1.0)
    parser.add_argument("--match", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--eval-rows", type=int, default=512)
    parser.add_argument(
        "--every", type=int, default=500, help="steps between two evaluations and checkpoints"
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> PretrainResult | None:
    """Build the start, train, and print how large the result is."""
    began, args = time.monotonic(), arguments(words)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    if args.ship is not None:
        print(f"{ship(base, args.ship, args.output / 'package'):,} bytes of weights", flush=True)
        return None
    ids = torch.from_numpy(np.load(args.tokens / "train.npz")["ids"][: 16 * args.length].astype(np.int64))
    begin = args.output.with_name(args.output.name + ".start")
    if args.fresh:
        shadow = random_blocks(base, len(args.blocks), args.neurons)
    elif args.of is not None:
        shadow = part_of(base, args.of, args.blocks)
    else:
        shadow = cut_copy(base, args.blocks, args.neurons, ids.view(16, -1))
    shadow_folder.save(shadow, BaseFacts.of(base), begin, {})
    print(f"start after {time.monotonic() - began:.1f} s", flush=True)
    command = ["python", "-u", "recipes/pretrained_shadow/train.py", *(words or sys.argv[1:])]
    result = pretrain(settings(args, begin), command=" ".join(command))
    print(json.dumps(vars(result), indent=1), flush=True)
    if result.shadow is not None:
        size = ship(base, Path(result.shadow), args.output / "package")
        seconds = time.monotonic() - began
        print(f"{args.output / 'package'}: {size:,} bytes of weights, {seconds:.1f} s in all", flush=True)
        if size > MOST_BYTES:
            raise SystemExit(f"the shadow has {size:,} bytes, expected at most {MOST_BYTES:,}")
    return result


if __name__ == "__main__":
    main()
