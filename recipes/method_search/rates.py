"""Learning rates of single parts, and a loss weight that changes over the steps, for runs in a context."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from shadowpeft.compare import training

PARTS: dict[str, Callable[[str], bool]] = {
    "backbone": lambda name: ".shadow.backbone." in name,
    "projection": lambda name: ".shadow.projection." in name,
    "down": lambda name: name.endswith(".down.weight") and ".injections." in name,
    "up": lambda name: name.endswith(".up.weight") and ".injections." in name,
    "update": lambda name: ".updates." in name,
    "strength": lambda name: name.endswith(".strength"),
    "head": lambda name: "score." in name,
}


@contextmanager
def rates(factors: Mapping[str, float]) -> Iterator[dict[str, int]]:
    """Multiply the learning rate of some parts of an adapter, those of `PARTS`, within the context.

    Yields:
        How many weights were trained at each peak rate; empty until a model has been trained.
    """
    plain = training._Trainer.create_optimizer
    used: dict[str, int] = {}

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = plain(self, *args, **kwargs)
        for part, factor in factors.items():
            chosen = {
                id(weight)
                for name, weight in self.model.named_parameters()
                if weight.requires_grad and PARTS[part](name)
            }
            assert chosen, f"the model has no {part}"
            for group in list(optimizer.param_groups):
                apart = [weight for weight in group["params"] if id(weight) in chosen]
                group["params"] = [weight for weight in group["params"] if id(weight) not in chosen]
                if apart:
                    optimizer.add_param_group({**group, "params": apart, "lr": group["lr"] * factor})
        used.clear()
        for group in optimizer.param_groups:
            rate = f"{group['lr']:.4g}"
            used[rate] = used.get(rate, 0) + sum(weight.numel() for weight in group["params"])
        return optimizer

    training._Trainer.create_optimizer = create_optimizer  # type: ignore[method-assign]
    try:
        yield used
    finally:
        training._Trainer.create_optimizer = plain  # type: ignore[method-assign]


@contextmanager
def loss_weights(first_and_last: tuple[float, float] | None) -> Iterator[None]:
    """Change the weight of the shadow's loss linearly over the steps, from the first to the last number.

    It lasts as long as the context. `None` leaves the weight as it is.
    """
    plain = training._Trainer.compute_loss

    def compute_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        first, last = first_and_last or (0.0, 0.0)
        adapter = model.adapters["default"]
        done = self.state.global_step / self.args.max_steps
        adapter.settings = replace(adapter.settings, shadow_loss_weight=first + done * (last - first))
        return plain(self, model, *args, **kwargs)

    if first_and_last:
        training._Trainer.compute_loss = compute_loss  # type: ignore[method-assign]
    try:
        yield
    finally:
        training._Trainer.compute_loss = plain  # type: ignore[method-assign]
