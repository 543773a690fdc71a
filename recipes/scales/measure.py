"""Measure how large the hidden states of models are, block by block: the reason for the variant `normed`.

    python recipes/scales/measure.py MODEL... [--text FILE] [--tokens 512] [--plot scales.png]

Prints JSON: for each block's input h the rms, mean |h| and max |h| over all tokens and coordinates, and the
rms of what the block's attention reads, which is the input norm of h. It runs in float32 on the CPU.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import arch

ROOT = Path(__file__).parent.parent.parent


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


@torch.inference_mode()
def measure(folder: str, text: str, tokens: int) -> dict:
    """Run one model once over the beginning of the text and describe what each of its blocks reads."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    family, rows = arch.family_of(model), []

    def note(block: nn.Module, args: tuple) -> None:
        h = args[0]
        read = arch.input_norm_of(block, family)(h)
        sizes = {
            "rms": rms(h),
            "mean_abs": h.abs().mean().item(),
            "max_abs": h.abs().max().item(),
            "normed_rms": rms(read),
        }
        rounded = {name: float(f"{value:.4g}") for name, value in sizes.items()}
        rows.append({"block": len(rows), **rounded})

    for block in arch.blocks_of(model):
        block.register_forward_pre_hook(note)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[:, :tokens]
    model(ids, use_cache=False)
    return {"model": folder, "width": model.config.hidden_size, "tokens": ids.shape[1], "blocks": rows}


def plot(results: list[dict], path: Path) -> None:
    """Draw the scales over depth, one panel a model, on one logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    import matplotlib.pyplot as plt

    lines = {
        "max_abs": ("max |h|", "#999999", ":"),
        "rms": ("rms of h", "#0072B2", "-"),
        "mean_abs": ("mean |h|", "#D55E00", "--"),
        "normed_rms": ("rms of N(h)", "#009E73", "-."),
    }
    figure, panels = plt.subplots(
        1, len(results), figsize=(4 * len(results), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, result in zip(panels[0], results, strict=True):
        for name, (label, colour, style) in lines.items():
            blocks, sizes = zip(*((row["block"], row[name]) for row in result["blocks"]), strict=True)
            axis.plot(blocks, sizes, style, color=colour, label=label)
        axis.set(yscale="log", title=result["model"].removeprefix("models/"), xlabel="block")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    panels[0][0].set_ylabel("size of the block's input h")
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="folders of causal language models")
    parser.add_argument(
        "--text", type=Path, default=ROOT / "LICENSE", help="a text file; its beginning is read"
    )
    parser.add_argument("--tokens", type=int, default=512, help="how many tokens of it")
    parser.add_argument("--plot", type=Path, help="write a picture there")
    args = parser.parse_args()
    results = [measure(folder, args.text.read_text(encoding="utf-8"), args.tokens) for folder in args.models]
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    found = {"text": args.text.name, "versions": versions, "device": "cpu, float32", "models": results}
    print(json.dumps(found, indent=1))
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
