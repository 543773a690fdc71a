"""The two adapters: put on a base, trained, carried over to another base, refitted in part, and measured."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import set_seed

from shadowpeft import ShadowConfig, attach
from shadowpeft.compare.matching import matched, trained_parameters
from shadowpeft.compare.peft_methods import peft_config, peft_model
from shadowpeft.compare.training import Training, TrainingOutcome, precision, train
from shadowpeft.data.encode import NO_LOSS, Example
from shadowpeft.data.packing import Collator
from shadowpeft.errors import CheckpointError
from shadowpeft.evaluation.batches import like_lengths

METHODS = ("lora", "shadow")
State = dict[str, Tensor]


class Graded(NamedTuple):
    """How a model answers: 1 or 0 for each row, and nats an answer."""

    correct: str
    nll: float


def settings_of(model: str, method: str, rank: int) -> dict[str, Any]:
    """Return a method's settings; both methods have LoRA's number of trainable parameters at the rank."""
    return matched(model, method, rank)


def put(base: Any, method: str, settings: dict[str, Any], seed: int) -> Any:
    """Put an untrained adapter on a base."""
    set_seed(seed)
    if method == "lora":
        model: Any = peft_model(base, peft_config("lora", settings, classifies=False))
    else:
        model = attach(base, ShadowConfig.from_dict(settings))
    # In bfloat16 small steps would be lost.
    for _, parameter in trained_parameters(model):
        parameter.data = parameter.data.float()
    return model


def state_of(model: Any) -> State:
    """Copy the trained weights of an adapter to the CPU."""
    return {name: weight.detach().to("cpu", copy=True) for name, weight in trained_parameters(model)}


def carried(base: Any, method: str, settings: dict[str, Any], state: State) -> Any:
    """Put an adapter that was trained on one base on another one.

    Loading an adapter's folder refuses a base with other weights, on purpose: what the adapter does there is
    not known. To find out is the experiment, so it goes round the refusal here, in the open: a fresh adapter
    on the other base gets the trained weights. Names and shapes are compared, the bases' weights are not.
    What a shadow reads off its base and does not save (embeddings, head, `output_gains`) is the new base's.

    Raises:
        CheckpointError: the adapter has other weights than one of these settings on this base.
    """
    model = put(base, method, settings, seed=0)
    own = dict(trained_parameters(model))
    wrong = sorted(name for name in own.keys() | state.keys() if not _fits(own.get(name), state.get(name)))
    if wrong:
        raise CheckpointError(
            f"expected the weights of a {method} adapter of these settings, got others ({wrong[0]}); the two "
            "bases must have the same layout"
        )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(state[name])
    return model.eval()


def _fits(own: Tensor | None, given: Tensor | None) -> bool:
    return own is not None and given is not None and own.shape == given.shape


def train_only(model: Any, part: str) -> None:
    """Freeze all of a shadow but `boundaries` (T, G, W_down, W_up) or `shadow` (its block, and P if any).

    Everything stays trainable for the part `everything`, which alone LoRA has.
    """
    if part == "everything":
        return
    for name, parameter in model.adapter.named_parameters():
        if name.startswith("shadow.") != (part == "shadow"):
            parameter.requires_grad_(False)


def fit(
    model: Any, rows: Sequence[Example], pad: int, *, steps: int, rate: float, seed: int, args: Any
) -> TrainingOutcome:
    """Train what is trainable; every method sees the same rows in the same order of a seed."""
    training = Training(steps, args.batch_size, rate, seed, torch.device(args.device), bf16=args.bf16)
    return train(model, rows, collate=Collator(pad), training=training)


@torch.inference_mode()
def graded(model: Any, rows: Sequence[Example], pad: int, args: Any) -> Graded:
    """Grade a model's greedy answers to rows, with their end token.

    The greedy answer is the right one exactly if behind each prefix of the right one the likeliest token is
    its next: so one pass over prompt and answer tells, without generating.
    """
    marks, total, collate = [""] * len(rows), 0.0, Collator(pad)
    for indices in like_lengths([row["input_ids"] for row in rows], args.eval_batch_size):
        batch = {name: part.to(args.device) for name, part in collate([rows[i] for i in indices]).items()}
        labels_BT = batch.pop("labels")[:, 1:]
        answers_BT = labels_BT != NO_LOSS
        with precision(torch.device(args.device), args.bf16):
            logits_BTV = model(**batch, use_cache=False).logits[:, :-1]
        logs_NV = logits_BTV[answers_BT].float().log_softmax(-1)
        targets_N = labels_BT[answers_BT]
        total -= logs_NV.gather(1, targets_N[:, None]).sum().item()
        right_BT = torch.ones_like(answers_BT)
        right_BT[answers_BT] = logs_NV.argmax(-1) == targets_N
        for index, right in zip(indices, right_BT.all(1).tolist(), strict=True):
            marks[index] = str(int(right))
    return Graded("".join(marks), total / len(rows))
