"""Equal numbers of trainable parameters: LoRA's number at a rank is the budget of the other methods.

A shadow's number of parameters is linear in each of its sizes. A few counts on the meta device give the cost
of one unit of each size, and the rest is arithmetic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shadowpeft.errors import ConfigError

TOLERANCE = 0.05

Sizes = dict[str, int]


@dataclass(frozen=True)
class Proportions:
    """The shares of a shadow's budget; sizes shrink from the method's defaults only as far as these ask.

    Attributes:
        backbone: most of the budget that the shadow's backbone may take.
        attention: most of the backbone's share that its attention (all but the MLP) may take.
        update: most of the budget that the updates T and G may take.
    """

    backbone: float = 0.4
    attention: float = 0.5
    update: float = 0.15


PREFERRED = Proportions()


@dataclass(frozen=True)
class Backbone:
    """A backbone with one choice of attention; it has `fixed + per_mlp * width of the MLP` parameters."""

    settings: Sizes
    fixed: int
    per_mlp: int


@dataclass(frozen=True)
class Costs:
    """What each size of a shadow costs in trainable parameters.

    Attributes:
        names: the method's names for its sizes: `r`, and if they can be set `mlp` and `update`.
        given: sizes among them that the user has set.
        defaults: what `mlp` and `update` are unless they must shrink.
        backbones: choices of attention, from the base's own to the smallest.
        per_rank: parameters for each unit of r.
        per_update: parameters for each unit of the updates' width; 0 if that follows r.
        rest: parameters that no size changes.
    """

    names: Mapping[str, str]
    given: Sizes
    defaults: Sizes
    backbones: tuple[Backbone, ...]
    per_rank: int
    per_update: int
    rest: int

    def count(self, backbone: Backbone, sizes: Sizes) -> int:
        """Return how many parameters a shadow of these sizes trains."""
        mlp, update = sizes.get("mlp", 0), sizes.get("update", 0)
        return (
            self.rest
            + backbone.fixed
            + backbone.per_mlp * mlp
            + self.per_rank * sizes["r"]
            + self.per_update * update
        )


@dataclass(frozen=True)
class Match:
    """Settings that meet the budget, or come nearest to it, and how many parameters they train."""

    settings: Sizes
    count: int

    def meets(self, budget: int) -> bool:
        """Return whether the count is near enough to the budget."""
        return abs(self.count - budget) <= TOLERANCE * budget


def match(budget: int, costs: Costs, proportions: Proportions = PREFERRED) -> Match:
    """Choose the sizes of a shadow: shrink updates, attention and MLP to their shares, then fill up with r.

    Args:
        budget: trainable parameters wanted.
        costs: what the sizes cost.
        proportions: how the budget is best spent.
    """
    sizes = {**costs.defaults, **costs.given}
    if "update" in costs.defaults and "update" not in costs.given:
        sizes["update"] = max(1, min(sizes["update"], int(proportions.update * budget / costs.per_update)))
    floor = costs.rest + costs.per_rank * costs.given.get("r", 1) + costs.per_update * sizes.get("update", 0)
    room = min(proportions.backbone * budget, budget - floor)
    backbone = _attention(costs, sizes, room, proportions)
    narrows = "mlp" not in costs.given and backbone.per_mlp > 0
    if narrows and backbone.fixed + backbone.per_mlp * sizes["mlp"] > room:
        sizes["mlp"] = _even((room - backbone.fixed) / backbone.per_mlp)
    # What the shares leave goes to r.
    if "r" not in costs.given:
        left = budget - costs.count(backbone, {**sizes, "r": 0})
        sizes["r"] = max(1, round(left / costs.per_rank))
    # With a small budget one unit of r is coarse, and the MLP takes up the rest.
    if narrows and sizes["mlp"] < costs.defaults["mlp"]:
        left = budget - costs.count(backbone, {**sizes, "mlp": 0})
        sizes["mlp"] = min(costs.defaults["mlp"], _even(left / backbone.per_mlp))
    chosen = {costs.names[size]: value for size, value in sizes.items()}
    return Match({**backbone.settings, **chosen}, costs.count(backbone, sizes))


def refuse_unmatched(
    method: str, rank: int, budget_of: Callable[[int], int], best: Callable[[int], Match]
) -> Match:
    """Return the match at a rank, or refuse the rank and name one that would do.

    Args:
        method: its name.
        rank: LoRA rank that sets the budget.
        budget_of: the budget of a rank.
        best: the match for a budget.

    Raises:
        ConfigError: the nearest count is more than 5 % off the budget.
    """
    found, budget = best(budget_of(rank)), budget_of(rank)
    if found.meets(budget):
        return found
    others = range(rank + 1, 16 * rank + 64)
    nearest = next((other for other in others if best(budget_of(other)).meets(budget_of(other))), None)
    advice = "change its sizes"
    if nearest is not None:
        advice = f"rank {nearest} would do"
    raise ConfigError(
        f"{method} cannot be matched to LoRA's {budget:,} trainable parameters at rank {rank}: "
        f"the nearest it comes is {found.count:,}, more than 5 % off; {advice}"
    )


def nearest_rank(fixed: int, per_rank: int) -> Callable[[int], Match]:
    """Return the match of a method whose only size is r, such as DoRA: the rank whose count is nearest."""

    def best(budget: int) -> Match:
        r = max(1, round((budget - fixed) / per_rank))
        return Match({"r": r}, fixed + per_rank * r)

    return best


def _attention(costs: Costs, sizes: Sizes, room: float, proportions: Proportions) -> Backbone:
    """Return the first attention that leaves the MLP its share; the base's own if the whole backbone fits."""
    for backbone in costs.backbones:
        fits_whole = backbone.fixed + backbone.per_mlp * sizes.get("mlp", 0) <= room
        can_narrow = "mlp" not in costs.given and backbone.per_mlp > 0
        if fits_whole or (can_narrow and backbone.fixed <= proportions.attention * room):
            return backbone
    return costs.backbones[-1]


def _even(width: float) -> int:
    """Round an MLP's width down to a multiple of 8, which a GPU multiplies fast, if it is at least 64."""
    if width >= 64:
        return int(width) // 8 * 8
    return max(1, int(width))
