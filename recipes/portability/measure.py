"""Do adapters survive an upgrade of their base? LoRA, the shadow attached, and the shadow detached.

    python -u recipes/portability/measure.py --data DATA --output ROWS.jsonl [--model MODEL] [--budget S]

DATA holds wiki_en/ (train and validation, with `text`) and dolly/ (train, with databricks-dolly-15k's fields)
as .jsonl or .jsonl.gz; MODEL is a folder, by default the embedded model. It appends a JSON line to ROWS for
all that is measured, as it goes, and says on stderr what it does. `report.py ROWS` writes the tables. With
--budget no training or refitting begins that could not end in time; what comes first is what the question
needs most. The same command again goes on where it was stopped, with v2 and the adapters that it left in
ROWS.work. On one GPU, half an hour, not run yet:

    python -u recipes/portability/measure.py --data DATA --output ROWS.jsonl --device cuda --bf16 \\
        --budget 1700 --model models/qwen2.5-coder-0.5b --batch-size 16 --test-rows 1000 \\
        --rates 5e-4 1e-3 2e-3 --upgrade-rate 3e-5 --upgrade-batch 8 --upgrade-length 512

Written down before any run:

**Hypothesis.** An upgrade moves the weights that LoRA's factors were fitted to, in all layers at once. The
shadow's corrections are computed beside the base, from its embeddings, and added between blocks. They depend
less on the weights inside the blocks, so attached they lose less on v2 than LoRA. Detached nothing can be
lost: the detached model holds its own copy of embeddings and head. Refitting the boundaries alone for 20
steps brings the attached shadow to what training anew on v2 gives.

**v1 and v2.** v1 is MODEL. v2 is v1 after 200, 600 and 2,000 steps on all its weights, half wiki_en and half
dolly, at one rate: stages of one run. How far each has moved: the loss on held-out wiki, dolly and the task's
prompts, and ||v2 - v1|| / ||v1||. The embedded model has read wiki and dolly before, many times: its v2 is a
base that was trained on, and not one that learned something new. --upgrade-rate is chosen by the held-out
losses of v2 alone, before any adapter is trained: of the embedded model, 300 steps of 128 tokens from another
seed at 1e-4 took wiki from 2.658 to 2.668 and dolly from 2.992 to 2.892; at 3e-4 both rose, to 2.965 and
3.227.

**Adapters.** LoRA on all linear layers at --rank, and `normed` with a random shadow and as many trainable
parameters (shadowpeft.compare.matching). Task: the package's subset of CLINC150 as language: the answer is
written by the base's own head, and no head is trained. Both methods see the same rows in the same order, with
the same steps and schedule. The base with no adapter stands beside them; it was never taught the answers.

**Arms on v2.** `untouched`: v1's adapter as it is. Refitted for 20 steps: LoRA `everything`; the shadow
`boundaries` (T, G, W_down, W_up), `shadow` (its own block; a random shadow has no projection) and
`everything`. `anew`: a fresh adapter, all steps, on the last stage alone. The shadow answers attached and
detached. Detached has two meanings. `kept` is the model that was exported on v1: it holds all its weights, so
its answers on v1 are its answers for ever, and it is measured once, as v1's. `rebuilt` is v1's shadow between
v2's embeddings and v2's head, as `detached()` makes it after the adapter was carried over.

**Settings.** Chosen by validation nll of the right answer, from seed 1000, which is not reported: a method's
rate among --rates on v1, and an arm's refitting rate among --refit-factors times that rate on the last stage.
All else is fixed. Reported: seeds 0, 1 and 2, each a training of its own; v2 is the same for all. A row is
right if the greedy answer is the right one, with its end. The reported runs alone read test rows.

**Primary result.** The last stage, untouched, attached: points that LoRA loses from v1 to v2 minus points
that the shadow loses, paired by test row and seed. Ours keeps more (or less) if the 95 % interval over items
and seeds (shadowpeft.reporting.stats) excludes zero; if not, they are level.

**Decision.** `shadowpeft transfer` becomes a verb if ours keeps more, and the shadow with `boundaries`
refitted is at most 2 points behind `anew` (lower end of the same interval above -2) in less than a fifth of
its seconds. A lead of LoRA, or a shadow that needs training anew, is reported as plainly, and there is no
verb. Secondary: the other stages, nll, the other arms, `rebuilt`. Seconds are of the training loop, by the
clock and of processor time, which other programs on the machine disturb less.

**Cost.** 4 trainings to choose rates, 12 reported, 44 refittings: some 25 minutes of one CPU core with the
embedded model and the default settings.
"""

import argparse
from pathlib import Path

import torch
from experiment import Experiment, OutOfTime
from resume import say

from shadowpeft.compare.workers import silence
from shadowpeft.embedded import CLINC150, MODEL
from shadowpeft.reporting import provenance


def run(experiment: Experiment) -> None:
    """Do all pieces of work, what the primary result needs first."""
    args = experiment.args
    experiment.flags_row()
    experiment.upgrade()
    experiment.search()
    experiment.search_refit()
    for seed in args.seeds:
        for stage in (0, *sorted(args.stages, reverse=True)):
            experiment.as_trained(stage, seed)
        experiment.refit(experiment.last, seed)
        experiment.anew(seed)
    for stage in sorted(args.stages)[:-1]:
        for seed in args.seeds:
            experiment.refit(stage, seed)


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with wiki_en and dolly")
    parser.add_argument("--output", type=Path, required=True, help="file of rows, appended to")
    parser.add_argument("--work", type=Path, help="folder of what was trained, by default OUTPUT.work")
    parser.add_argument("--model", default=str(MODEL), help="folder of the base")
    parser.add_argument("--task", type=Path, default=CLINC150, help="folder with train, validation and test")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true", help="adapters on a base in bfloat16; v2 in float32")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds of the whole command")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[200, 600, 2000])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--refit-steps", type=int, default=20)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3])
    parser.add_argument("--refit-factors", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--upgrade-rate", type=float, default=1e-4)
    parser.add_argument("--upgrade-batch", type=int, default=1)
    parser.add_argument("--upgrade-length", type=int, default=64)
    parser.add_argument("--upgrade-seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=128, help="texts of each source")
    parser.add_argument("--validation-rows", type=int, default=300)
    parser.add_argument("--test-rows", type=int, default=500)
    parser.add_argument("--eval-batch-size", type=int, default=100)
    args = parser.parse_args()
    args.device_name = provenance.where_it_ran(torch.device(args.device))["device"]
    args.work = args.work or args.output.with_suffix(".work")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = flags()
    silence()
    try:
        run(Experiment(args))
    except OutOfTime as why:
        say(f"stopped: {why}")


if __name__ == "__main__":
    main()
