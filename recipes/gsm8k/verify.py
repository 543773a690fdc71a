"""Train on GSM8K through the command line, kill a second run half-way, resume it, and compare every bit.

    python recipes/gsm8k/verify.py --model GEMMA --data gsm8k.jsonl --work DIR [--steps 200] [--flags ...]

Prints one JSON record: the losses, whether they fell, whether the straight and the resumed run are equal,
answers generated attached and detached, versions and device. `--flags` go to `shadowpeft train` unchanged.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from shadowpeft.cli import main as main_of_shadowpeft

SHADOWPEFT = [sys.executable, "-m", "shadowpeft"]
PROMPT = (
    "Question: A baker makes 12 loaves in the morning and twice as many in the afternoon. "
    "She sells 30. How many are left?\nAnswer:"
)


def train(args: argparse.Namespace, output: Path, *more: str) -> list[str]:
    """Return the command of one run."""
    return [
        *SHADOWPEFT, "train", "--model", args.model, "--data", args.data, "--output", str(output),
        "--max-steps", str(args.steps), "--save-steps", str(args.steps // 4), "--logging-steps", "5",
        "--seed", "1", *args.flags, *more,
    ]  # fmt: skip


def run_and_kill(command: list[str], checkpoint: Path) -> int:
    """Start a run, kill it a little after a checkpoint is complete, and return its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (checkpoint / "trainer_state.json").exists():
        time.sleep(0.05)
    # Some steps further, so that steps are lost that no checkpoint holds.
    time.sleep(0.7)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def losses(output: Path) -> list[tuple[int, float]]:
    """Read (step, loss) of a run."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def answer(*flags: str) -> str:
    """Generate greedily through the command line."""
    words = ["generate", "--prompt", PROMPT, "--max-new-tokens", "80", "--json", "--raw", *flags]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main_of_shadowpeft(words) == 0, "no answer was generated"
    return json.loads(out.getvalue())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--model", "--data"):
        parser.add_argument(name, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


def compare(straight: Path, resumed: Path) -> dict[str, Any]:
    """Describe the losses of a run, and how far the adapter of a resumed run differs from its adapter."""
    one, two = (load_file(run / "adapter" / "shadow.safetensors") for run in (straight, resumed))
    curve = losses(straight)
    part = max(1, len(curve) // 5)
    means = [sum(loss for _, loss in rows) / part for rows in (curve[:part], curve[-part:])]
    return {
        "losses": curve,
        "first_and_last_mean_loss": means,
        "tensors": len(one),
        "equal_bits": one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one),
        "largest_difference": max((one[name] - two[name]).abs().max().item() for name in one),
    }


def where_it_ran() -> dict[str, Any]:
    device = platform.machine()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"device": device, "versions": {**versions, "transformers": transformers.__version__}}


def main() -> None:
    args = arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"
    straight, killed, small = args.work / "straight", args.work / "killed", args.work / "small"
    began = time.perf_counter()
    subprocess.run(train(args, straight), check=True)
    seconds = time.perf_counter() - began
    half = killed / "checkpoints" / f"checkpoint-{args.steps // 2}"
    code = run_and_kill(train(args, killed), half)
    subprocess.run(train(args, killed, "--resume"), check=True)
    found = compare(straight, killed)
    record: dict[str, Any] = {
        "command": shlex.join(train(args, Path("RUN"))[2:]),
        **where_it_ran(),
        "seconds": round(seconds, 1),
        "losses": found.pop("losses"),
        "first_and_last_mean_loss": found.pop("first_and_last_mean_loss"),
        "killed_with": code,
        **found,
    }
    print(json.dumps(record), flush=True)
    adapter = ["--model", args.model, "--adapter", str(straight / "adapter")]
    # What follows a training needs no process of its own, which would import torch again.
    assert main_of_shadowpeft(["export", *adapter, "--output", str(small)]) == 0, "nothing was exported"
    record["answers"] = {
        "attached": answer(*adapter),
        "detached": answer(*adapter, "--detached"),
        "exported": answer("--model", str(small)),
    }
    print(json.dumps(record["answers"], indent=1), flush=True)
    (args.work / "verify.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    first, last = record["first_and_last_mean_loss"]
    assert first > last, "the loss did not go down"
    assert record["equal_bits"], "the resumed run differs"


if __name__ == "__main__":
    main()
