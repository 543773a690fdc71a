"""Measure how well a shadow drafts on GSM8K, by how it was taught, beside what the attached model answers.

    python recipes/draft_gsm8k/measure.py --model BASE --shadow SMALLER --data gsm8k/train.jsonl --output DIR

Without --model and --shadow the embedded model is measured, with its pretrained shadow, in float32.

It appends a JSON line to DIR/rows.jsonl, and prints it, for each arm and each way of drafting. Arms, in this
order, as far as --seconds reach: joint training (`explicit`: the smaller model is the shadow, its projection
fitted first; `random`: one random block), then the same with the share --distil of the shadow's loss from the
attached answer, by KL(p || q) (`kl`) or by -log sum min(p, q) (`lk`). `s0` drafts with the shadow as it is
then; `head` with a head for drafts alone, taught on the attached model's own answers afterwards
(`shadowpeft train --draft.steps`). The adapters are in DIR/ARM, and with their heads in DIR/ARM-head.

Accuracy is of the attached model, greedily, on --dev-rows rows that were not trained on; the test split is
not read. What is drafted is counted on those answers: a draft is taken if it is the next token of the answer.
Behind drafts that were taken the shadow has read the answer itself, so one pass over the answer tells all of
its rounds (`rounds`). --check answers are drafted for real; both counts are in the row.
"""

import argparse
import copy
import json
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowConfig, ShadowedModel, attach
from shadowpeft.compare.tasks.gsm8k import CALCULATOR, final_number, word_problem
from shadowpeft.data.encode import Example, encode_all, encode_prompt
from shadowpeft.data.packing import Collator
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id, stop_ids
from shadowpeft.embedded import MODEL, SHADOW
from shadowpeft.evaluation.answers import answer_ids
from shadowpeft.generate import DraftReport
from shadowpeft.model.draft_loss import next_tokens
from shadowpeft.pretrain import warm
from shadowpeft.train.config import DraftConfig
from shadowpeft.train.draft import teach
from shadowpeft.train.examples import prompts_of

DRAFTS = (3, 5, 8)
CHECKED = 5


class Arm(NamedTuple):
    """One training: the shadow it starts from, and what the shadow learns from the attached answer by."""

    shadow: str
    loss: str | None

    @property
    def name(self) -> str:
        """What its folder and rows are called."""
        return self.shadow if self.loss is None else f"{self.shadow}-{self.loss}"


ARMS = [Arm(shadow, loss) for loss in (None, "kl", "lk") for shadow in ("explicit", "random")]


class Task(NamedTuple):
    """What is trained on and asked."""

    tokenizer: Any
    train: list[Example]
    prompts: list[list[int]]
    asked: list[list[int]]
    finals: list[float | None]


def read(args: argparse.Namespace) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    # Not splitlines(), which would cut at other characters too.
    lines = [json.loads(line) for line in args.data.read_text(encoding="utf-8").split("\n") if line]
    random.Random(0).shuffle(lines)
    rows = []
    for number, line in enumerate(lines):
        worked, _, final = CALCULATOR.sub("", line["answer"]).rpartition("####")
        completion = f" {worked.strip()}\n#### {final.strip()}"
        rows.append(
            Row({"prompt": word_problem(line["question"]), "completion": completion}, f"row {number}")
        )
    dev, train = rows[: args.dev_rows], rows[args.dev_rows :]
    encoded = encode_all(train, tokenizer, 4096)
    examples = [example for example in encoded if len(example["input_ids"]) <= args.max_length]
    prompts = prompts_of(examples, args.prompts, limit=4096, seed=args.seed)
    asked = [encode_prompt(row, tokenizer) for row in dev]
    return Task(tokenizer, examples, prompts, asked, [final_number(row.fields["completion"]) for row in dev])


def attached(arm: Arm, base: Any, smaller: Any, task: Task, args: argparse.Namespace) -> ShadowedModel:
    """Put the arm's untrained shadow beside the base."""
    torch.manual_seed(args.seed)
    distil: Any = {} if arm.loss is None else {"shadow_distil": args.distil, "distil_loss": arm.loss}
    if arm.shadow == "random":
        return attach(base, ShadowConfig(**distil))
    config = ShadowConfig(r=32, alpha=0.3, **distil)
    if smaller is None:
        return attach(base, config, shadow=SHADOW)
    smaller = copy.deepcopy(smaller)
    model = attach(base, config, shadow=smaller)
    text = [torch.tensor([example["input_ids"]], device=base.device) for example in task.train[:2000]]
    warm.start(model.adapter.shadow, base, smaller, "weighted", text=text, held_out=text[:4])
    return model


def train(model: ShadowedModel, task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Train for --steps, or as long as --train-seconds last; the rates fall to 0 in a straight line."""
    inside = {id(weight) for weight in model.adapter.shadow.parameters()}
    weights = [weight for weight in model.adapter.parameters() if weight.requires_grad]
    own_rate = args.learning_rate if model.adapter.shadow.borrows else args.backbone_learning_rate
    groups = [
        {
            "params": [weight for weight in weights if (id(weight) in inside) == is_in],
            "lr": rate,
            "peak": rate,
        }
        for is_in, rate in ((False, args.learning_rate), (True, own_rate))
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    collate, order = Collator(padding_id(task.tokenizer), mask=False), random.Random(args.seed)
    model.train()
    began, step, out = time.perf_counter(), 0, None
    while step < args.steps and seconds_since(began) < args.train_seconds:
        done = max(step / args.steps, (seconds_since(began)) / args.train_seconds)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1 - done, (step + 1) / 10)
        batch = collate(order.sample(task.train, args.batch_size))
        out = model(**{name: ids.to(model.device) for name, ids in batch.items()})
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 25 == 0:
            say(f"  step {step} {seconds_since(began):.0f} s, attached {out.attached_loss:.3f}, "
                f"shadow {out.shadow_loss:.3f}")  # fmt: skip
    model.eval()
    assert out is not None
    losses = {name: round(out[name].item(), 4) for name in ("attached_loss", "shadow_loss")}
    return {"steps": step, "train_seconds": round(seconds_since(began), 1), **losses}


def rounds(matches: Sequence[bool], most: int, room: int) -> DraftReport:
    """Count the rounds of greedy drafting in one answer.

    Args:
        matches: of each token of the answer but its last, whether the draft behind it is the next token.
        most: how many tokens the base reads in a pass.
        room: how many tokens there may be behind the first.
    """
    report, place, end = DraftReport(), 0, len(matches)
    while place < end:
        run, drafts = 0, min(most, room - place) - 1
        while run < drafts and place + run < end and matches[place + run]:
            run += 1
        is_over = place + run == end
        tested = run if is_over or run == drafts else run + 1
        tokens = run if is_over else run + 1
        report.add(tested, run, tokens, shadow_steps=0)
        place += tokens
    return report


def matches_of(
    model: ShadowedModel, task: Task, answers: Sequence[list[int]], args: argparse.Namespace
) -> Iterator[list[bool]]:
    """Yield, for each answer, of which of its tokens the draft is the next one."""
    collate = Collator(padding_id(task.tokenizer))
    pairs = list(zip(task.asked, answers, strict=True))
    for start in range(0, len(pairs), args.batch_size):
        part = pairs[start : start + args.batch_size]
        batch = collate([Example(input_ids=p + a, labels=p + a) for p, a in part])
        _, drafted_BT = next_tokens(model, {name: ids.to(model.device) for name, ids in batch.items()})
        for (prompt, answer), drafted in zip(part, drafted_BT.tolist(), strict=True):
            behind = drafted[len(prompt) : len(prompt) + len(answer) - 1]
            yield [token == after for token, after in zip(behind, answer[1:], strict=True)]


def summed(reports: Sequence[DraftReport]) -> dict[str, Any]:
    """Add up rounds; return tokens a round and acceptance by position."""
    depth = max((len(report.drafted) for report in reports), default=0)
    drafted, accepted = [0] * depth, [0] * depth
    for report in reports:
        for place, (put, taken) in enumerate(zip(report.drafted, report.accepted, strict=True)):
            drafted[place] += put
            accepted[place] += taken
    tokens, passes = sum(report.tokens for report in reports), sum(report.rounds for report in reports)
    acceptance = [round(taken / put, 3) for taken, put in zip(accepted, drafted, strict=True) if put]
    return {"tokens_per_round": round(tokens / max(1, passes), 3), "acceptance": acceptance}


def drafting(
    model: ShadowedModel, task: Task, answers: Sequence[list[int]], args: argparse.Namespace
) -> dict[str, Any]:
    """Return how drafting goes on the answers, and on a few of them for real."""
    matches = list(matches_of(model, task, answers, args))
    tokens = sum(map(len, matches))
    found: dict[str, Any] = {"agreement": round(sum(map(sum, matches)) / max(1, tokens), 4), "tokens": tokens}
    room = args.max_new_tokens - 1
    for most in DRAFTS:
        found[f"draft_tokens={most}"] = summed([rounds(row, most, room) for row in matches])
    reals, same = [], 0
    for prompt, answer in list(zip(task.asked, answers, strict=True))[: args.check]:
        ids = torch.tensor([prompt], device=model.device)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), draft="shadow", draft_tokens=CHECKED, do_sample=False,
            max_new_tokens=args.max_new_tokens, return_dict_in_generate=True,
            pad_token_id=padding_id(task.tokenizer), eos_token_id=stop_ids(model, task.tokenizer),
        )  # fmt: skip
        same += out.sequences[0, len(prompt) :].tolist() == answer
        reals.append(out.draft_report)
    checked = [rounds(row, CHECKED, room) for row in matches[: args.check]]
    found["checked"] = {
        "real": summed(reals)["tokens_per_round"],
        "counted": summed(checked)["tokens_per_round"],
        "same_text": f"{same} of {len(reals)}",
    }
    return found


def answered(model: ShadowedModel, task: Task, args: argparse.Namespace) -> tuple[list[list[int]], float]:
    """Answer the rows kept for it; return token ids, and the share of right answers."""
    answers = answer_ids(
        model, task.tokenizer, task.asked, args.max_new_tokens, args.answer_batch_size, progress=False
    )
    texts = task.tokenizer.batch_decode(answers, skip_special_tokens=True)
    right = sum(final_number(text) == final for text, final in zip(texts, task.finals, strict=True))
    return answers, right / len(answers)


def arm_rows(
    arm: Arm, base: Any, smaller: Any, task: Task, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train an arm; yield the row of its drafts as they are, and with a head for drafts."""
    model = attached(arm, base, smaller, task, args)
    try:
        made = {"arm": arm.name, "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        made |= train(model, task, args)
        answers, accuracy = answered(model, task, args)
        made |= {"accuracy": round(accuracy, 4), "answered": len(answers)}
        yield {**made, "drafts": "s0", **drafting(model, task, answers, args)}
        model.save_pretrained(args.output / arm.name)
        before = logits(model, task)
        settings = DraftConfig(
            steps=args.draft_steps, rank=args.rank, prompts=args.prompts, max_new_tokens=args.max_new_tokens,
            answer_batch_size=args.answer_batch_size, batch_size=args.batch_size,
        )  # fmt: skip
        began = time.perf_counter()
        found = teach(model, task.tokenizer, task.prompts, settings, seed=args.seed, progress=False)
        made |= {"draft_seconds": round(seconds_since(began), 1), "own_tokens": found.tokens}
        made["attached_bits_equal"] = torch.equal(logits(model, task), before)
        yield {**made, "drafts": "head", **drafting(model, task, answers, args)}
        model.save_pretrained(args.output / f"{arm.name}-head")
    finally:
        model.unload()


@torch.no_grad()
def logits(model: ShadowedModel, task: Task) -> Tensor:
    out = model(torch.tensor([task.asked[0]], device=model.device), use_cache=False)
    return out.logits


def seconds_since(began: float) -> float:
    return time.perf_counter() - began


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), help="folder of the base")
    parser.add_argument("--shadow", help="folder of the smaller model")
    parser.add_argument("--data", type=Path, required=True, help="GSM8K's training rows")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=[arm.name for arm in ARMS])
    parser.add_argument("--seconds", type=float, default=330, help="no arm begins that could not end by then")
    parser.add_argument("--train-seconds", type=float, default=28, help="of an arm, at most")
    parser.add_argument("--steps", type=int, default=200, help="of an arm, at most")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--backbone-learning-rate", type=float, default=2e-5, help="of the smaller model")
    parser.add_argument("--distil", type=float, default=0.5, help="share of the shadow's loss")
    parser.add_argument("--max-length", type=int, default=320, help="longer rows are left out")
    parser.add_argument("--dev-rows", type=int, default=192)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--answer-batch-size", type=int, default=384, help="prompts answered at a time")
    parser.add_argument("--prompts", type=int, default=384, help="own answers that the head learns from")
    parser.add_argument("--draft-steps", type=int, default=150)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--check", type=int, default=2, help="answers that are drafted for real")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    began, longest = time.perf_counter(), 0.0
    args.output.mkdir(parents=True, exist_ok=True)
    task = read(args)
    dtype = torch.bfloat16 if args.device != "cpu" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
    smaller = None
    if args.shadow is not None:
        smaller = AutoModelForCausalLM.from_pretrained(args.shadow, dtype=dtype).to(args.device).eval()
    say(f"{len(task.train)} rows to train on, {len(task.asked)} to answer, {seconds_since(began):.0f} s")
    versions = {
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "device": args.device,
    }  # fmt: skip
    if args.device != "cpu":
        versions["device"] = torch.cuda.get_device_name()
    for arm in [arm for arm in ARMS if arm.name in args.arms]:
        started = time.perf_counter()
        if started - began + longest > args.seconds:
            say(f"no time is left for {arm.name}")
            break
        say(f"{arm.name}, after {started - began:.0f} s")
        for row in arm_rows(arm, base, smaller, task, args):
            line = json.dumps({**row, "model": Path(args.model).name, "versions": versions})
            print(line, flush=True)
            with (args.output / "rows.jsonl").open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        longest = max(longest, seconds_since(started))


if __name__ == "__main__":
    main()
