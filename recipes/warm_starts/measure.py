"""Compare the starts of a projection before any training: a table on stdout, one JSON line a row in --output.

    python recipes/warm_starts/measure.py --model BASE --shadow SMALLER --data train.jsonl.gz \\
        --held-out validation.jsonl [flags]

Both models are folders or hub ids with one tokenizer; the text is what `shadowpeft pretrain` reads. The first
rows are the base and the smaller model through their own heads. The others are the smaller model through the
projection P and the base's head (the detached shadow), with P as each method starts it. Perplexity is per
token of the held-out rows. The errors are ||W_base P x - W x|| / ||W x|| over held-out states x; the same of
the weights, each with the mean logit taken away; and, of the states, ||P x - y|| / ||y|| with y what the
base's own head reads.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.data.tokenizers import refuse_other_tokenizer
from shadowpeft.losses.frozen_head import Head
from shadowpeft.losses.linear_ce import token_losses
from shadowpeft.pretrain import start, warm
from shadowpeft.pretrain.corpus import Corpus
from shadowpeft.pretrain.text_rows import Encoder, Rows
from shadowpeft.storage import stock_models

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COLUMNS = (
    "P",
    "perplexity",
    "error of logits",
    "error of weights",
    "error of states",
    "rms of P x",
    "ridge strength",
    "seconds",
)


def read_batches(source: str, encoder: Encoder, count: int, args: argparse.Namespace) -> list[Tensor]:
    """Pack the beginning of a text into `count` rows, in batches."""
    rows = Rows(Corpus(source), encoder, args.length).head(count)
    return [
        torch.stack([torch.from_numpy(row) for row in rows[i : i + args.batch]]).to(args.device)
        for i in range(0, len(rows), args.batch)
    ]


@torch.inference_mode()
def perplexity(states: Callable[[Tensor], Tensor], head_of: PreTrainedModel, rows: list[Tensor]) -> float:
    """Return the perplexity per token of a head on the states that a decoder gives it."""
    head, total, tokens = Head.of(head_of), 0.0, 0
    for ids_BT in rows:
        x_BTD = states(ids_BT)[:, :-1].to(head.weight_VD.dtype)
        losses_N = token_losses(x_BTD.flatten(0, 1), ids_BT[:, 1:].flatten(), head)
        total, tokens = total + losses_N.double().sum().item(), tokens + losses_N.numel()
    return float(torch.tensor(total / tokens).exp())


def own_states(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    return lambda ids_BT: arch.decoder_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    tokenizer = stock_models.load_tokenizer(args.model)
    refuse_other_tokenizer(tokenizer, stock_models.load_tokenizer(args.shadow))
    encoder = Encoder(tokenizer, stock_models.load_config(args.model).vocab_size)
    text = read_batches(args.data, encoder, args.rows, args)
    held_out = read_batches(args.held_out, encoder, args.held_out_rows, args)
    base, model = (
        stock_models.load_model(source, DTYPES[args.dtype]).to(args.device).eval()
        for source in (args.model, args.shadow)
    )
    yield {"P": "the base, own head", "perplexity": perplexity(own_states(base), base, held_out)}
    yield {"P": "the smaller model, own head", "perplexity": perplexity(own_states(model), model, held_out)}

    torch.manual_seed(0)
    shadow = start.from_model(base, model)
    if shadow.projection is None:
        raise SystemExit(
            f"both models have the width {base.config.hidden_size}: there is no projection to start"
        )
    projection = shadow.projection.float()  # as it is trained

    def states(ids_BT: Tensor) -> Tensor:
        return projection(own_states(model)(ids_BT).to(projection.weight.dtype))

    yield {"P": "random", "perplexity": perplexity(states, base, held_out)}
    own_Vd, base_VD = warm.head_weight(model), warm.head_weight(base)
    judge = warm.Moments.of(model, held_out, base)
    shares = {"weighted": warm.EVENLY, **{f"weighted, {share:g} evenly": share for share in args.evenly}}
    for method in [*args.methods, *list(shares)[1:]]:
        began, strength = time.perf_counter(), None
        if method == "pinv":
            weight_Dd = warm.pinv(base_VD, own_Vd)
        elif method in shares:
            frequency_V = warm.frequencies(text, len(base_VD), shares[method])
            weight_Dd = warm.weighted(base_VD, own_Vd, frequency_V)
        else:
            batches = tqdm(text[: args.ridge_batches], "reading for ridge")
            weight_Dd, strength = warm.ridge(warm.Moments.of(model, batches, base), judge)
        found = warm.judged(base_VD, own_Vd, weight_Dd, held_out=judge, strength=strength)
        seconds = time.perf_counter() - began
        with torch.no_grad():
            projection.weight.copy_(weight_Dd)
        yield {
            "P": method,
            "perplexity": perplexity(states, base, held_out),
            "error of logits": found.in_logits,
            "error of weights": found.in_weights,
            "error of states": found.in_states,
            "rms of P x": found.state_rms,
            "ridge strength": strength,
            "seconds": seconds,
            "rms of what the base's head reads": found.target_rms,
        }


def shown(row: dict[str, Any]) -> str:
    """Write a row of the table; a cell without a value is empty."""
    cells = []
    for name in COLUMNS:
        cell = row.get(name)
        if isinstance(cell, float):
            cells.append(f"{cell:.4g}")
        elif cell is None:
            cells.append("")
        else:
            cells.append(str(cell))
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or hub id of the base")
    parser.add_argument("--shadow", required=True, help="folder or hub id of the smaller model")
    parser.add_argument("--data", required=True, help="text to fit on")
    parser.add_argument("--held-out", required=True, help="text to judge on")
    parser.add_argument(
        "--methods", nargs="+", default=["pinv", "weighted", "ridge"], choices=["pinv", "weighted", "ridge"]
    )
    parser.add_argument(
        "--evenly",
        nargs="*",
        default=[],
        type=float,
        help="other shares of weight that `weighted` spreads evenly, to try",
    )
    parser.add_argument("--rows", type=int, default=8192, help="rows of the text to fit on")
    parser.add_argument(
        "--ridge-batches", type=int, default=256, help="batches of them that ridge runs both models on"
    )
    parser.add_argument("--held-out-rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--batch", type=int, default=8, help="rows a forward pass")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="file to append one JSON line a row to")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    device = platform.processor() or platform.machine()
    if args.device.startswith("cuda"):
        device = torch.cuda.get_device_name(0)
    facts = {**vars(args), "output": None, "device": device, "torch": torch.__version__}
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|", flush=True)
    for row in measure(args):
        print(shown(row), flush=True)
        if args.output is not None:
            with args.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, "settings": facts}) + "\n")


if __name__ == "__main__":
    main()
