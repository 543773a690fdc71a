"""What is checked before any work: models, methods, data, tokenizers, and that bases compute numbers."""

import contextlib
import gc
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from shadowpeft import arch
from shadowpeft.compare.search_space import EXPLICIT, SHADOWS
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks import find
from shadowpeft.compare.tasks.base import Item, Task
from shadowpeft.compare.workers import count_gpus, device_name
from shadowpeft.errors import ConfigError, DataError
from shadowpeft.model import preflight
from shadowpeft.storage import stock_models

SAMPLE = 64
MOST_TOKENS_PER_CHARACTER = 0.8
_ROWS = 4


def check_models(study: Study) -> None:
    """Refuse models that cannot be reached or on which a method cannot be built at the study's budgets.

    Raises:
        UserError: configuration or tokenizer cannot be loaded, the family is not supported, a method cannot
            be matched, or a method does not know a setting.
    """
    from shadowpeft.compare import methods

    for model in study.names("model"):
        methods_used = set(study.names("methods"))
        shadow_model = study.shadow_model if methods_used & set(EXPLICIT) else None
        preflight.inspect(model, shadow_model, needs_family=bool(methods_used & set(SHADOWS)))
    methods.check(study)


def check_data(study: Study) -> dict[str, list[str]]:
    """Read the rows of every task, of its partners and of the text for forgetting.

    Warn if a model's tokenizer does not fit them.

    Returns:
        The first prompts of each task's validation split.

    Raises:
        DataError: a split is missing or damaged, has labels that are not seen in training, or has no test row
            left after `test_skip`.
    """
    from shadowpeft.compare.tasks.source import RowSource, held_out_text

    source, prompts = RowSource(study.data_dir), {}
    for task in map(find, study.names("tasks")):
        for other in (task, *(find(partner) for partner in task.partners if study.ood)):
            other.load("train", source)
            other.load("validation", source)
            if skips := study.skips_of(other.name):
                _refuse_no_test_rows(task, other, count=len(other.load("test", source)), skips=skips)
        prompts[task.name] = [item.prompt for item in task.load("validation", source)[:SAMPLE]]
        for model in study.names("model"):
            tokenizer = stock_models.load_tokenizer(model)
            _warn_of_tokens(model, tokenizer, task, texts=prompts[task.name])
            items = task.load("train", source)[:SAMPLE]
            _warn_of_length(model, tokenizer, task, items=items, most=study.max_length or task.max_length)
    if study.forgetting_rows:
        held_out_text(source, 1)
    return prompts


def _refuse_no_test_rows(task: Task, tested: Task, count: int, skips: Sequence[int]) -> None:
    """Refuse to leave out all test rows of a task, or of a partner that it is tested on.

    Raises:
        DataError: nothing would be left.
    """
    if count > sum(skips):
        return
    name, remedy = task.name, "a smaller test_skip"
    if tested is not task:
        name = f"{tested.name}, an out-of-distribution test of {task.name},"
        remedy = "a smaller test_skip, or ood: false"
    left_out = " + ".join(f"{skip:,}" for skip in skips)
    raise DataError(
        f"{name} has {count:,} test rows, and a test_skip of {left_out} leaves none of them; choose {remedy}"
    )


def _warn_of_tokens(model: str, tokenizer: Any, task: Task, texts: Sequence[str]) -> None:
    """Warn of a tokenizer that splits texts into single characters.

    A tokenizer that was converted wrongly does so, and nothing can be learned on its ids.
    """
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    tokens, characters = sum(map(len, ids)), sum(map(len, texts))
    if tokens > MOST_TOKENS_PER_CHARACTER * characters:
        warnings.warn(
            f"the tokenizer of {model} makes {tokens:,} tokens of the {characters:,} characters of "
            f"{len(texts)} prompts of {task.name}, more than {MOST_TOKENS_PER_CHARACTER} per character; "
            "unless each character of their script is a word, it was converted wrongly or belongs to another "
            "model: compare its ids of a sentence with another copy's before training anything",
            stacklevel=3,
        )


def _warn_of_length(model: str, tokenizer: Any, task: Task, items: Sequence[Item], most: int) -> None:
    """Warn of training rows that are too long and left out; texts to classify are only cut."""
    if task.kind == "classification":
        return
    lengths = [len(tokenizer(item.prompt + item.answer, verbose=False)["input_ids"]) for item in items]
    long = sum(length > most for length in lengths)
    if long > len(lengths) / 10:
        warnings.warn(
            f"{long} of the first {len(lengths)} training rows of {task.name} have more than "
            f"max_length={most} tokens of {model} and are left out; raise max_length to train on them",
            stacklevel=3,
        )


def check_numbers(study: Study, prompts: Mapping[str, Sequence[str]]) -> None:
    """Run every base once on padded batches, if it computes on a GPU or in bfloat16.

    On a CPU in float32 a fault of the device or of the precision cannot arise.

    Args:
        study: the study.
        prompts: some prompts of each task.

    Raises:
        ConfigError: the last hidden state of a text is not finite.
    """
    import torch

    gpu = count_gpus(study) > 0
    if not gpu and not study.bf16:
        return
    for model in study.names("model"):
        with contextlib.suppress(torch.OutOfMemoryError):  # the cells will say so
            _check_base(model, study, prompts, device=torch.device("cuda" if gpu else "cpu"))
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()


def _check_base(model: str, study: Study, prompts: Mapping[str, Sequence[str]], device: Any) -> None:
    import torch

    from shadowpeft.compare.examples import encode_texts
    from shadowpeft.compare.measure import last_hidden
    from shadowpeft.compare.training import precision
    from shadowpeft.data.tokenizers import padding_id
    from shadowpeft.evaluation.batches import padded

    dtype = torch.bfloat16 if study.bf16 else torch.float32
    tokenizer = stock_models.load_tokenizer(model)
    base: Any = stock_models.load_model(model, dtype).to(device).eval()
    most = arch.context_of(base.config) or 2**30
    for task, side in product(prompts, ("right", "left")):
        length = min(study.max_length or find(task).max_length, most)
        rows = sorted(encode_texts(prompts[task], tokenizer, length), key=len)
        # The shortest and the longest rows together: this is the most padding that a batch can have.
        batch = padded([*rows[:_ROWS], *rows[-_ROWS:]], padding_id(tokenizer), side)
        ids_BT, mask_BT = (tensor.to(device) for tensor in batch)
        with torch.inference_mode(), precision(device, study.bf16):
            hidden_BTD = last_hidden(base, ids_BT, mask_BT, causal=True)
        if not hidden_BTD[mask_BT.bool()].isfinite().all():
            raise ConfigError(
                f"the base {model}, untrained, computes values that are not finite numbers in "
                f"{str(dtype).removeprefix('torch.')} on {device_name(study)} (texts of {task}, padded on "
                f"the {side}); expected numbers: change bf16, the device or the version of torch"
            )
