"""Train with and without the updates of the shadow state below `inject_from`.

    python recipes/inject_from/measure.py

Shows whether it helps that the state reads the blocks below. Prints a JSON line for each run.
"""

import argparse
import itertools
import json
import tempfile
from typing import Any

import torch
from transformers import AutoTokenizer

from shadowpeft import ShadowConfig, ShadowedModel
from shadowpeft.data.rows import read_rows
from shadowpeft.embedded import CLINC150, MODEL
from shadowpeft.evaluation.evaluate import evaluate
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import stock_models
from shadowpeft.train import train
from shadowpeft.train.config import TrainConfig

SETTINGS = {
    "paper": {"variant": "paper", "r": 64, "alpha": 4.0, "shadow_loss_weight": 1.0, "dropout": 0.05},
    "normed": {"variant": "normed", "r": 64, "alpha": 1.0, "shadow_loss_weight": 1.0, "dropout": 0.0},
}
_build = Adapter.__init__


def build_without(self: Adapter, *arguments: Any) -> None:
    """Build an adapter whose state begins at the first injection."""
    _build(self, *arguments)
    first = self.settings.inject_from
    self.updates = self.updates[first - self.reads_from :]
    self.reads_from = first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-steps", type=int, help="in place of one epoch")
    parser.add_argument("--rows", type=int, help="validation requests; all by default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = read_rows(str(CLINC150 / "validation.jsonl"))[: args.rows]
    places = [("normed", 4), ("normed", 6), ("paper", 4)]
    for seed, (variant, first), reads in itertools.product(range(args.seeds), places, (True, False)):
        # The package has no setting for this: nothing but this comparison needs it.
        Adapter.__init__ = {True: _build, False: build_without}[reads]  # type: ignore[method-assign]
        settings = ShadowConfig(inject_from=first, **SETTINGS[variant])  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                model=str(MODEL), data=str(CLINC150 / "train.jsonl"), output=f"{folder}/run",
                eval_fraction=0, shadow=settings, epochs=1.0, max_steps=args.max_steps, batch_size=32,
                learning_rate=1e-3, seed=seed, save_steps=10000, device="cpu",
            )  # fmt: skip
            run = train(config)
            model = ShadowedModel.from_pretrained(
                stock_models.load_model(str(MODEL), torch.float32), run.adapter
            )
        found = evaluate(model, tokenizer, rows, batch_size=64, progress=False)
        row = {"seed": seed, "variant": variant, "inject_from": first, "reads": reads}
        row |= {"loss": round(found.loss, 4), "em": found.exact_match}
        row |= {"seconds": run.seconds, "steps": run.steps}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
