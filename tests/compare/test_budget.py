"""The arithmetic of a budget."""

from shadowpeft.compare import budget


def test_match_fills_the_budget_whatever_it_costs() -> None:
    """Catches rounding that leaves more than the tolerance unspent."""
    whole, half = budget.Backbone({}, 4000, 30), budget.Backbone({"heads": 1}, 2000, 30)
    names = {"r": "r", "mlp": "width", "update": "update"}
    costs = budget.Costs(
        names, {}, {"mlp": 200, "update": 10}, (whole, half), per_rank=100, per_update=150, rest=64
    )
    for wanted in (5000, 8000, 20_000, 100_000):
        found = budget.match(wanted, costs)
        assert found.meets(wanted), found
    assert found.settings == {"width": 200, "update": 10, "r": 884}
