"""Try changes of the method on validation data, one at a time: each job is one training run with one change of the boundary.

    python recipes/method_search/search.py --model MODEL --jobs JOBS.jsonl --output ROWS.jsonl [--data-dir DATA] [--workers 14] [--bf16]

A job is one line of JSON: {"name": ..., "task": ..., "method": "shadow" or another one of `shadowpeft compare`, "learning_rate": ...,
"alpha": ..., "config": {settings of ShadowConfig}, "change": {options of `Change`}}. Budgets, data, training and measuring are those of
`shadowpeft compare`.
"""

import argparse
import json
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadowpeft import arch
from shadowpeft.adapter import Adapter
from shadowpeft.compare import run_cell
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.methods import Built
from shadowpeft.compare.study import Study
from shadowpeft.compare.workers import attempt, silence
from shadowpeft.ops import read, update


@dataclass
class Change:
    """What is different from the variant `normed` at the boundary.

    Attributes:
        activation: of the bottleneck: silu, gelu or none.
        gate_shift: what is taken off the gate's logit.
        updates: whether the shadow state moves on from s^(0).
        reads_shadow: whether delta is x - s, or x alone.
        scale: what the correction is in proportion to: mean (of |h|), rms (of h) or none.
        by_rank: divide the correction by the square root of r, so that alpha means the same at every rank.
        warm: start the shadow's first block from a slice of the base's own: its first heads and its strongest neurons.
    """

    activation: str = "silu"
    gate_shift: float = 3.0
    updates: bool = True
    reads_shadow: bool = True
    scale: str = "mean"
    by_rank: bool = False
    warm: bool = False


class Changed(Adapter):
    """An adapter of the variant `normed` with another boundary; made from a plain one by `change_adapter`."""

    change: Change

    def enter(self, block: int, h_BTD: Tensor, s_BTD: Tensor, norm: Any, boundary: Any = None) -> tuple[Tensor, Tensor]:
        """Cross the boundary as `Adapter.enter` does."""
        i, how = block - self.settings.inject_from, self.change
        if i < 0:
            return h_BTD, s_BTD
        x_BTD = read(h_BTD, norm)
        if i > 0 and how.updates:
            s_BTD = update(x_BTD, s_BTD, self._update(i - 1).weights(None)._replace(gate_shift=how.gate_shift))
        w = self._injection(i).weights()
        act = {"silu": F.silu, "gelu": F.gelu, "none": lambda low: low}[how.activation]
        low_BTR = act(F.linear(x_BTD - s_BTD if how.reads_shadow else x_BTD, w.down_RD))
        low_BTR = F.dropout(low_BTR, self.settings.dropout, self.training)
        size: Any = 1.0
        if how.scale == "mean":
            size = h_BTD.float().abs().mean(-1, keepdim=True).to(h_BTD.dtype)
        elif how.scale == "rms":
            size = h_BTD.float().square().mean(-1, keepdim=True).sqrt().to(h_BTD.dtype)
        alpha = self.settings.alpha / (self.settings.r**0.5 if how.by_rank else 1.0)
        return (h_BTD + alpha * size * F.linear(low_BTR, w.up_DR)).to(h_BTD.dtype), s_BTD


def change_adapter(built: Built, how: Change) -> Built:
    """Give a fresh shadowed model the changed boundary."""
    adapter = built.model.adapters["default"]
    assert adapter.settings.variant == "normed", "changes are made to the variant normed; set it in the job's config"
    adapter.__class__, adapter.change = Changed, how
    if not how.updates:
        adapter.updates.requires_grad_(False)
    if how.warm:
        copy_block(adapter.shadow.backbone, built.stock)
    return built


@torch.no_grad()
def copy_block(backbone: nn.Module, base: Any) -> None:
    """Copy the base's first block, cut to the shadow's sizes, and its final norm (families with Llama's names)."""
    ours = dict(backbone.get_submodule("layers.0").named_parameters())
    theirs = dict(arch.blocks_of(base)[0].named_parameters())
    strength = (
        theirs["mlp.gate_proj.weight"].norm(dim=1) * theirs["mlp.up_proj.weight"].norm(dim=1) * theirs["mlp.down_proj.weight"].norm(dim=0)
    )
    best = strength.topk(len(ours["mlp.gate_proj.weight"])).indices.sort().values
    for name, weight in ours.items():
        source = theirs[name].to(weight)
        if name.startswith("mlp.down"):
            source = source[:, best]
        elif name.startswith("mlp."):
            source = source[best]
        weight.copy_(source[tuple(map(slice, weight.shape))])
    backbone.get_parameter("norm.weight").copy_(arch.decoder_of(base).get_parameter("norm.weight"))


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train and measure one job; its row, with the job itself."""
    method = job.get("method", "shadow")
    study = Study(tasks=job["task"], methods=method, output="-", overrides={method: job.get("config", {})}, **settings)
    cell = Cell("search", study.model, job["task"], method, study.budgets[0], job.get("seed", 0), job["learning_rate"], job.get("alpha"))
    plain = run_cell.build
    if method == "shadow":
        run_cell.build = lambda *given: change_adapter(plain(*given), Change(**job.get("change", {})))
    try:
        row = attempt(cell, study, run_cell.run_cell)[0]
    finally:
        run_cell.build = plain
    return {"job": job, **row}


def work(given: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Run one job in a process of its own."""
    silence()
    return run(*given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--model", "--jobs", "--output"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"])
    parser.add_argument("--bf16", action="store_true")
    for flag, default in (("--workers", 1), ("--steps", 150), ("--batch-size", 16), ("--max-length", 192), ("--validation-rows", 1000)):
        parser.add_argument(flag, type=int, default=default)
    settings = vars(parser.parse_args())
    jobs = [json.loads(line) for line in Path(settings.pop("jobs")).read_text().splitlines()]
    output, workers = settings.pop("output"), settings.pop("workers")
    with multiprocessing.get_context("spawn").Pool(workers) as pool, open(output, "a") as file:
        for done, row in enumerate(pool.imap_unordered(work, [(job, settings) for job in jobs]), start=1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(
                f"[{done}/{len(jobs)}] {row['job']['name']} {row['task']}: {row['metric']} {row['value']} {row['error'] or ''}", flush=True
            )


if __name__ == "__main__":
    main()
