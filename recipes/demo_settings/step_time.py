"""Time a training step of the demo's random shadow, with the threads' waiting as the environment sets it.

    GOMP_SPINCOUNT=0 python recipes/demo_settings/step_time.py

Prints the median of the steps' milliseconds, after steps that only warm up.
"""

import statistics
import time

import torch
from transformers import AutoTokenizer

from shadowpeft.data.encode import encode_all
from shadowpeft.data.packing import Collator
from shadowpeft.data.rows import read_rows
from shadowpeft.demo.methods import with_shadow
from shadowpeft.demo.run import MAX_LENGTH, load_base
from shadowpeft.demo.settings import SHADOW, Settings
from shadowpeft.embedded import CLINC150, MODEL

WARM_STEPS, STEPS = 3, 20


def main() -> None:
    tokenizer, batch = AutoTokenizer.from_pretrained(MODEL), Settings().batch
    rows = encode_all(read_rows(str(CLINC150 / "train.jsonl"))[: batch * STEPS], tokenizer, MAX_LENGTH)
    collate = Collator(tokenizer.pad_token_id, mask=False)
    model = with_shadow(load_base()).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=SHADOW.learning_rate)
    taken = []
    for step in range(WARM_STEPS + STEPS):
        start = batch * (step % STEPS)
        began = time.perf_counter()
        model(**collate(rows[start : start + batch])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(1000 * (time.perf_counter() - began))
    print(f"{statistics.median(taken[WARM_STEPS:]):.0f} ms a step, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
