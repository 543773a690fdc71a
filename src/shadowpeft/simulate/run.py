"""All simulations of a system: each strategy, each fleet, each seed."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shadowpeft.reporting.progress import progress_bar
from shadowpeft.reporting.tables import plural
from shadowpeft.simulate.arrivals import arrivals, outages
from shadowpeft.simulate.fleet import Fleet
from shadowpeft.simulate.measures import Figures, Once, figures_of, mean_of, once, row_of
from shadowpeft.simulate.settings import System
from shadowpeft.simulate.strategies import Strategy
from shadowpeft.storage import atomic

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Result:
    """What all simulations came to.

    Attributes:
        system: what was simulated.
        strategies: who answered what.
        figures: by size of the fleet and name of the strategy, for each seed.
        once: all rows once, one after the other, by each strategy.
    """

    system: System
    strategies: list[Strategy]
    figures: dict[tuple[int, str], list[Figures]]
    once: list[Once]

    def mean(self, robots: int, strategy: str) -> Figures:
        """Return the mean over the seeds."""
        return mean_of(self.figures[robots, strategy])

    def means(self, robots: int) -> dict[str, Figures]:
        """Return the mean of each strategy by its name."""
        return {each.name: self.mean(robots, each.name) for each in self.strategies}


def simulate(system: System, strategies: Sequence[Strategy]) -> Result:
    """Simulate each strategy with each fleet and seed; all strategies meet the same requests.

    Args:
        system: robots, network, cloud, prices and failures.
        strategies: who answers what.
    """
    fleets = system.fleets()
    found: dict[tuple[int, str], list[Figures]] = {
        (robots, each.name): [] for robots in fleets for each in strategies
    }
    rows = len(strategies[0].kept)
    with progress_bar("simulations", total=len(found) * system.seeds) as bar:
        for robots in fleets:
            for seed in range(system.seed, system.seed + system.seeds):
                coming = arrivals(system, robots, rows, seed)
                away = outages(system, float(coming.times[-1]), robots, seed)
                for each in strategies:
                    log = Fleet(system, each, coming, away).run()
                    figures = figures_of(system, each, coming, log)
                    found[robots, each.name].append(figures)
                    bar.advance()
            print(f"simulated {robots:,} {plural(robots, 'robot')}", file=sys.stderr)
    return Result(system, list(strategies), found, [once(system, each) for each in strategies])


def write_rows(result: Result, folder: Path) -> None:
    """Write each simulation as a JSON line.

    Raises:
        CheckpointError: the file cannot be written.
    """
    lines = [
        json.dumps(row_of(name, robots, result.system.seed + at, one), ensure_ascii=False, allow_nan=False)
        for (robots, name), several in result.figures.items()
        for at, one in enumerate(several)
    ]
    atomic.write_together(folder, {ROWS: atomic.text("\n".join(lines) + "\n")})
