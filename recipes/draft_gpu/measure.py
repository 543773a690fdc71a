"""Measure decoding with the shadow's drafts beside the base and beside plain decoding, on one GPU.

    python recipes/draft_gpu/measure.py --base FOLDER --adapter FOLDER --prompts FILE --output FOLDER
    python recipes/draft_gpu/measure.py --shape 0.6b --output FOLDER

Without a base it takes random weights of a shape of `shadowpeft bench`, with an untrained shadow of one
block, and random prompts: that shows what the steps take, and nothing of acceptance. --prompts is a JSONL
file with a field `prompt` (--field), which --chat puts into the tokenizer's chat template.

Ways: `base` is the model without a shadow, which is what a merged LoRA takes; `plain` is attached; a number
or `auto` is `draft_tokens`, and with a v behind it (4v) drafts are of a draft vocabulary: the adapter's, or
with --vocabulary N the N most frequent tokens of the field --answers in the prompts' file. Modes: `eager` is
`generate` as it is; `static` is a static cache of the caller, reset for each text, so that the graphs are
recorded once, compiled where transformers compiles; `called` is `cache_implementation="static"` and nothing
more, where each call records the graphs for its new cache. All is greedy. The ways take turns on each text;
the first text is written once more than the others, to warm up.

It appends a line to texts.jsonl for each text, way and mode, and to rows.jsonl for each way and mode at the
end, also if --seconds have passed. `ms_per_token` is the median of the texts, behind the first token;
`identical` counts the texts that have the tokens of `plain` in the same mode.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, StaticCache

from shadowpeft import ShadowConfig, ShadowedModel, attach
from shadowpeft.arch import versions
from shadowpeft.bench.shapes import SHAPES, build
from shadowpeft.train.draft_vocabulary import most_frequent

# A static cache has room for the prompts, the answers and the longest draft.
MOST_DRAFTED = 16
Row = dict[str, Any]


class FirstToken:
    """A streamer that notes when the first token came, behind the prompt."""

    def __init__(self) -> None:
        self.seen, self.at = 0, 0.0

    def put(self, _: Tensor) -> None:
        """Count a part."""
        self.seen += 1
        if self.seen == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        """Do nothing."""


def load(arguments: argparse.Namespace) -> tuple[Any, list[Tensor]]:
    """Return the shadowed model and the prompts."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    if arguments.base is None:
        base = build(arguments.shape, device, dtype, seed=0).eval()
        model = attach(base, ShadowConfig(), dtype=dtype, impl=arguments.impl).eval()
        torch.manual_seed(0)
        size = (arguments.texts, 1, arguments.context)
        texts = torch.randint(10, base.config.vocab_size, size, device=device)
        if arguments.vocabulary is not None:
            # A random model with a tied head goes on with the last token of its prompt.
            model.set_draft_vocabulary({*range(arguments.vocabulary), *texts[:, 0, -1].tolist()})
        return model, list(texts)
    base = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=dtype).to(device).eval()
    if arguments.adapter is None:
        model = attach(base, ShadowConfig(), dtype=dtype, impl=arguments.impl).eval()
    else:
        model = ShadowedModel.from_pretrained(base, arguments.adapter, impl=arguments.impl)
    if arguments.vocabulary is not None:
        tokenizer = AutoTokenizer.from_pretrained(arguments.base)
        answers = [tokenizer(row[arguments.answers]).input_ids for row in rows_of_file(arguments)]
        learnt: Any = [{"labels": ids} for ids in answers]
        size, special = base.config.vocab_size, tokenizer.all_special_ids
        model.set_draft_vocabulary(most_frequent(learnt, arguments.vocabulary, special, size))
    return model, [ids.to(device) for ids in prompts(arguments)]


def rows_of_file(arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of the prompts' file."""
    return [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]


def prompts(arguments: argparse.Namespace) -> Iterator[Tensor]:
    """Return the ids of each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    for row in rows_of_file(arguments)[: arguments.texts]:
        prompt = row[arguments.field]
        if arguments.chat:
            turns = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        yield tokenizer(prompt, return_tensors="pt").input_ids


class Cases:
    """The ways in their modes, each with the cache that it keeps."""

    def __init__(self, model: Any, arguments: argparse.Namespace, longest: int) -> None:
        self.model, self.tokens = model, arguments.tokens
        self.room = longest + arguments.tokens + MOST_DRAFTED
        self.ends = model.generation_config.eos_token_id
        ways = ["base", "plain", *arguments.drafts]
        self.all = [(mode, way) for mode in arguments.modes for way in ways]
        self._caches: dict[tuple[str, str], Any] = {}

    def cache(self, mode: str, way: str) -> dict[str, Any]:
        """Return the settings that say which cache a case has."""
        if mode == "eager":
            return {}
        if mode == "called":
            return {"cache_implementation": "static", "max_cache_len": self.room}
        if (mode, way) not in self._caches:
            base = StaticCache(config=self.model.base.config, max_cache_len=self.room)
            self._caches[mode, way] = base if way == "base" else self.model.new_cache(max_length=self.room)
        cache = self._caches[mode, way]
        cache.reset()
        return {versions.CACHE: cache}

    def write(self, ids: Tensor, mode: str, way: str, most: int) -> tuple[Row, Tensor]:
        """Generate once; return what it took, and the new tokens."""
        called, streamer = self.model.base if way == "base" else self.model, FirstToken()
        settings: Row = {
            "max_new_tokens": most,
            "do_sample": False,
            "pad_token_id": 0,
            **self.cache(mode, way),
        }
        if way == "base" or self.ends is None:
            # It may end elsewhere, and is to write as many tokens.
            settings["eos_token_id"] = self.model.config.vocab_size + 7
        if way not in ("base", "plain"):
            tokens = way.removesuffix("v")
            settings |= {"draft": "shadow", "draft_tokens": tokens if tokens == "auto" else int(tokens)}
            settings["draft_vocabulary"] = way != tokens
        _wait(ids)
        began = time.perf_counter()
        out = called.generate(ids, streamer=streamer, return_dict_in_generate=True, **settings)
        _wait(ids)
        ended = time.perf_counter()
        new = out.sequences[0, ids.shape[1] :].cpu()
        row: Row = {
            "tokens": len(new), "ms_per_token": 1000 * (ended - streamer.at) / max(1, len(new) - 1),
            "ms_to_first": 1000 * (streamer.at - began),
            "ms_per_token_of_all": 1000 * (ended - began) / len(new),
        }  # fmt: skip
        if "draft" in settings:
            report = out.draft_report
            row |= {
                "rounds": report.rounds, "tokens_of_rounds": report.tokens,
                "shadow_steps": report.shadow_steps, "drafted": report.drafted, "accepted": report.accepted,
            }  # fmt: skip
        return row, new


def _wait(ids: Tensor) -> None:
    if ids.is_cuda:
        torch.cuda.synchronize()


def measure(cases: Cases, texts: list[Tensor], until: float, path: Path) -> dict[tuple[str, str], list[Row]]:
    """Write each text in each case, in turns; append each to the file, and return them by case."""
    taken: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for place, ids in enumerate([texts[0], *texts]):
        plain: dict[str, Tensor] = {}
        most = cases.tokens
        # Plain decoding first: it says how many tokens the others write.
        for mode, way in sorted(cases.all, key=lambda case: case[1] != "plain"):
            if time.monotonic() > until:
                print("the time is over", flush=True)
                return taken
            began = time.monotonic()
            row, new = cases.write(ids, mode, way, most if way != "base" else len(plain[mode]))
            if way == "plain":
                plain[mode] = new
            row["identical"] = torch.equal(new, plain[mode])
            row["same_for"] = _same_for(new, plain[mode])
            row = {"text": place - 1, "mode": mode, "way": way, "prompt": ids.shape[1], **row}
            row["seconds"] = time.monotonic() - began
            _append(path / "texts.jsonl", row)
            shown = {
                name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()
            }
            print(json.dumps(shown), flush=True)
            # The first time compiles, and warms up.
            if place:
                taken[mode, way].append(row)
    return taken


def _same_for(new: Tensor, plain: Tensor) -> int:
    """Return for how many tokens two texts are the same."""
    both = min(len(new), len(plain))
    differs = (new[:both] != plain[:both]).nonzero()
    return int(differs[0]) if len(differs) else both


def _append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def rows_of(taken: dict[tuple[str, str], list[Row]], made_with: Row) -> Iterator[Row]:
    """Return a row for each case."""
    for (mode, way), found in taken.items():
        times = sorted(row["ms_per_token"] for row in found)
        row: Row = {
            "way": {"eager": "generate"}.get(mode, mode),
            "method": "base" if way == "base" else "shadow",
        }
        row |= {"draft_tokens": None if way in ("base", "plain") else way, "texts": len(found)}
        row["tokens"] = sum(each["tokens"] for each in found)
        row["ms_per_token"] = round(statistics.median(times), 4)
        row["quartiles"] = [round(times[int(share * (len(times) - 1))], 4) for share in (0.25, 0.75)]
        row["tokens_per_second"] = round(1000 / row["ms_per_token"], 1)
        row["ms_to_first"] = round(statistics.median(each["ms_to_first"] for each in found), 2)
        row["ms_per_token_of_all"] = round(
            statistics.median(each["ms_per_token_of_all"] for each in found), 4
        )
        for other in ("plain", "base"):
            others = {each["text"]: each["ms_per_token"] for each in taken.get((mode, other), ())}
            ratios = [others[each["text"]] / each["ms_per_token"] for each in found if each["text"] in others]
            row[f"times_as_fast_as_{other}"] = round(statistics.median(ratios), 3) if ratios else None
        row["identical"] = sum(each["identical"] for each in found)
        if "rounds" in found[0]:
            rounds = sum(each["rounds"] for each in found)
            row["tokens_per_round"] = round(
                sum(each["tokens_of_rounds"] for each in found) / max(1, rounds), 3
            )
            row["shadow_steps_per_round"] = round(
                sum(each["shadow_steps"] for each in found) / max(1, rounds), 3
            )
            drafted, accepted = (
                [sum(counts) for counts in zip_longest(*(each[name] for each in found), fillvalue=0)]
                for name in ("drafted", "accepted")
            )
            row["acceptance"] = [round(a / d, 3) for a, d in zip(accepted, drafted, strict=True)]
        yield {**made_with, **row}


def main() -> None:
    """Measure, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of the base and its tokenizer")
    parser.add_argument("--adapter", type=Path, help="folder of the adapter; an untrained one otherwise")
    parser.add_argument("--prompts", type=Path, help="JSONL file")
    parser.add_argument("--field", default="prompt", help="field of a line that holds the prompt")
    parser.add_argument("--chat", action="store_true", help="put prompts into the tokenizer's chat template")
    parser.add_argument("--shape", default="0.6b", choices=sorted(SHAPES), help="of random weights")
    parser.add_argument("--context", type=int, default=256, help="tokens of a random prompt")
    parser.add_argument("--texts", type=int, default=8, help="how many prompts")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--drafts", nargs="*", default=["2", "4", "6", "8", "auto"])
    parser.add_argument("--vocabulary", type=int, help="tokens of a draft vocabulary made here")
    parser.add_argument("--answers", default="completion", help="field of a line with the tokens to count")
    parser.add_argument(
        "--modes", nargs="+", default=["eager", "static"], choices=["eager", "static", "called"]
    )
    parser.add_argument("--impl", default="auto", help="what computes the boundaries")
    parser.add_argument("--seconds", type=float, default=540, help="begin nothing after so long")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    arguments.output.mkdir(parents=True, exist_ok=True)
    model, texts = load(arguments)
    longest = max(ids.shape[1] for ids in texts)
    is_cuda = arguments.device.startswith("cuda")
    made_with: Row = {"shape": arguments.shape} if arguments.base is None else {"model": arguments.base.name}
    made_with |= {
        "adapter": arguments.adapter and arguments.adapter.name,
        "batch": 1, "context": longest, "impl": arguments.impl,
        "device": torch.cuda.get_device_name() if is_cuda else arguments.device, "dtype": arguments.dtype,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "command": sys.argv,
    }  # fmt: skip
    print(json.dumps(made_with), flush=True)
    with torch.no_grad():
        taken = measure(Cases(model, arguments, longest), texts, until, arguments.output)
    for row in rows_of(taken, made_with):
        _append(arguments.output / "rows.jsonl", row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
