"""Make v2 of a base: v1, trained further on other text; and tell how far it has moved."""

import copy
import functools
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shadowpeft import arch
from shadowpeft.compare import measure
from shadowpeft.compare.examples import encode_texts, ordered
from shadowpeft.compare.training import precision
from shadowpeft.data.encode import Example
from shadowpeft.data.packing import Collator
from shadowpeft.data.rows import Row, read_rows
from shadowpeft.train.attention import sound_attention

WARMUP, SHORTEST = 20, 200
State = dict[str, Tensor]


class Texts(NamedTuple):
    """Plain texts: to train v2 on, and held out by their source."""

    train: list[str]
    held_out: dict[str, list[str]]


class Stage(NamedTuple):
    """The base after so many steps; 0 steps is v1."""

    steps: int
    state: State
    seconds: float
    cpu_seconds: float


def read_texts(data: Path, held_out: int) -> Texts:
    """Read as many texts of wiki_en as of dolly, and others that are held out.

    Args:
        data: folder that holds wiki_en/ (train and validation) and dolly/ (train), as .jsonl or .jsonl.gz.
        held_out: texts of each source that v2 is not trained on.
    """
    wiki, pages = (_long(row.fields["text"] for row in _rows(data, "wiki_en", split)) for split in
                   ("train", "validation"))  # fmt: skip
    chats = _long("\n".join(_parts(row)) for row in _rows(data, "dolly", "train"))
    random.Random(0).shuffle(wiki)
    random.Random(0).shuffle(chats)
    kept, chats = chats[:held_out], chats[held_out:]
    count = min(len(wiki), len(chats))
    return Texts(wiki[:count] + chats[:count], {"wiki": pages[:held_out], "dolly": kept})


def _rows(data: Path, name: str, split: str) -> list[Row]:
    plain = data / name / f"{split}.jsonl"
    return read_rows(plain if plain.is_file() else plain.with_name(f"{split}.jsonl.gz"))


def _parts(row: Row) -> list[str]:
    return [row.fields[name] for name in ("instruction", "context", "response") if row.fields[name]]


def _long(texts: Any) -> list[str]:
    return [text for text in texts if len(text) >= SHORTEST]


def upgraded(
    base: Any, texts: Sequence[str], tokenizer: Any, pad: int, stages: Sequence[int], args: Any
) -> Iterator[Stage]:
    """Train all weights of a base in place, and yield it after each number of steps.

    The stages are of one run, at one rate behind a short warm-up, so that a longer one has moved further. A
    row is the beginning of a text.

    Args:
        base: v1, in float32.
        texts: what it is trained on, in an order of `args.upgrade_seed`.
        tokenizer: its tokenizer.
        pad: id to pad with.
        stages: numbers of steps, rising.
        args: the flags of the command.
    """
    drawn = ordered(texts, stages[-1] * args.upgrade_batch, args.upgrade_seed)
    ids = encode_texts(drawn, tokenizer, args.upgrade_length)
    rows = [Example(input_ids=row, labels=row) for row in ids]
    weights = list(base.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(weights, lr=args.upgrade_rate, weight_decay=0.0, fused=True)
    collate = Collator(pad, mask=False)
    base.train()
    seconds = cpu_seconds = 0.0
    for step in range(stages[-1]):
        began, cpu = time.perf_counter(), time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = args.upgrade_rate * min(1.0, (step + 1) / WARMUP)
        batch = collate(rows[step * args.upgrade_batch : (step + 1) * args.upgrade_batch])
        with sound_attention():
            with precision(base.device, args.bf16):
                loss = base(**{name: part.to(base.device) for name, part in batch.items()}).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # The caller's own work between two stages does not count.
        seconds, cpu_seconds = seconds + time.perf_counter() - began, cpu_seconds + time.process_time() - cpu
        if (step + 1) % 100 == 0:
            print(
                f"v2, step {step + 1}: loss {loss.item():.3f}, {seconds:.0f} s", file=sys.stderr, flush=True
            )
        if step + 1 in stages:
            yield Stage(step + 1, state_of(base), seconds, cpu_seconds)


def state_of(base: Any) -> State:
    """Copy a base's weights to the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in base.state_dict().items()}


def at(base: Any, state: State, dtype: torch.dtype) -> Any:
    """Return a copy of a base with the weights of a stage, frozen, in evaluation mode."""
    made = copy.deepcopy(base)
    made.load_state_dict(state)
    return made.to(dtype).requires_grad_(False).eval()


@torch.no_grad()
def moved(base: Any, old: State, new: State) -> dict[str, float]:
    """Return ||v2 - v1|| / ||v1|| of all weights, of the token embeddings, and of all but these."""
    table = arch.token_embedding_of(base).weight
    tables = {name for name, weight in base.state_dict(keep_vars=True).items() if weight is table}
    rest = [name for name in old if name not in tables]
    # A tied head is the same matrix under another name: it counts once.
    parts = {"all": [*rest, sorted(tables)[0]], "embeddings": [sorted(tables)[0]], "blocks": rest}
    return {part: _share(old, new, names) for part, names in parts.items()}


def _share(old: State, new: State, names: Sequence[str]) -> float:
    change = sum((new[name].double() - old[name].double()).square().sum().item() for name in names)
    size = sum(old[name].double().square().sum().item() for name in names)
    return (change / size) ** 0.5


def losses(base: Any, texts: dict[str, list[str]], tokenizer: Any, pad: int, args: Any) -> dict[str, float]:
    """Return the loss in nats a token on held-out texts, by their source."""
    head = functools.partial(arch.logits, base)
    found = {}
    for name, some in texts.items():
        windows = measure.windows(some, tokenizer, args.upgrade_length)
        with precision(base.device, args.bf16):
            found[name] = measure.token_loss(
                base, head, windows, pad=pad, batch_size=args.eval_batch_size, causal=True
            )
    return found
