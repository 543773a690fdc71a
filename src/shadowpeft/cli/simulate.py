"""`shadowpeft simulate`: what edge and cloud would come to, for one robot or a fleet."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from shadowpeft.cli._libraries import require
from shadowpeft.errors import ConfigError
from shadowpeft.simulate.settings import System

if TYPE_CHECKING:
    from shadowpeft.route.answered import Answered
    from shadowpeft.simulate.run import Result

NEEDS = ("simpy", "matplotlib", "rich")
# Outages that a simulation must have to say something of them.
_OUTAGES = 20


def run(
    settings: System,
    data: str,
    policy: str,
    output: str,
    small: str | None = None,
    small_policy: str | None = None,
    other_cloud: str | None = None,
    json: bool = False,
) -> None:
    """Replay answered rows against robots, a network and a cloud: what is answered rightly, how long it takes
    and what it costs, by the policy, by the cloud alone, by the edge alone and at random.

    Args:
        settings: robots, network, cloud, prices and failures.
        data: the answers.jsonl or test_answers.jsonl of shadowpeft calibrate, which tells what edge and cloud
            have right and how long they took; rows that had no part in the policy.
        policy: the file routing.json of shadowpeft calibrate.
        output: folder for simulation.html, simulation.md and rows.jsonl.
        small: answered rows of a small model that was trained by itself, to the same requests.
        small_policy: its routing.json; the same cloud stands behind it.
        other_cloud: answered rows of another large model, such as one with LoRA, to the same requests.
        json: print the figures as JSON.
    """
    if small_policy is not None and small is None:
        raise ConfigError("--small-policy is about the small model; give its answers as --small, too")
    require("a simulation", NEEDS, extra="simulate")
    from shadowpeft.route.policy import Policy
    from shadowpeft.simulate.report import HTML, lead_of, write_report
    from shadowpeft.simulate.run import simulate, write_rows
    from shadowpeft.simulate.strategies import strategies_of

    found = Policy.load(policy)
    rows, digest = _read(data)
    if digest == found.data_hash or rows[0].where.startswith(f"{found.data}:"):
        warnings.warn(
            f"the policy was calibrated on {data}, so that it looks better there than it is; give other rows",
            stacklevel=2,
        )
    strategies = strategies_of(
        rows,
        found,
        settings,
        small=[] if small is None else _read(small)[0],
        small_policy=None if small_policy is None else Policy.load(small_policy),
        other_cloud=[] if other_cloud is None else _read(other_cloud)[0],
    )
    _warn_of_few_outages(settings)
    result = simulate(settings, strategies)
    _warn_of_unsettled(result)
    write_rows(result, Path(output))
    write_report(result, output)
    _print(result, lead_of(result), Path(output) / HTML, json)


def _read(path: str) -> tuple[list["Answered"], str]:
    """Return the answered rows of a file, and the hash by which a policy names its rows."""
    from shadowpeft.data.rows import read_rows
    from shadowpeft.route import answered
    from shadowpeft.route.identity import hash_of_rows

    rows = read_rows(path, "test")
    return answered.read([(row.fields, row.where) for row in rows]), hash_of_rows(r.fields for r in rows)


def _warn_of_few_outages(system: System) -> None:
    """Warn where the simulated time is too short for the outages asked for."""
    if system.away == 0:
        return
    cycle = system.away_minutes / system.away / 60
    few = [robots for robots in system.fleets() if system.hours(robots) < _OUTAGES * cycle]
    if few:
        robots = max(few)
        need = robots * system.per_minute * 60 * _OUTAGES * cycle
        warnings.warn(
            f"the simulation of {robots:,} robots covers {60 * system.hours(robots):,.1f} minutes, too few "
            f"for {_OUTAGES} outages, so that chance decides how much of one it meets; give a shorter "
            f"--away-minutes, or --requests {need:.0f}",
            stacklevel=2,
        )


def _warn_of_unsettled(result: "Result") -> None:
    """Warn where a simulation is so short that its queues still show that they were empty."""
    from shadowpeft.simulate.report import unsettled
    from shadowpeft.simulate.settling import too_short

    found = {robots: too_short(result, robots) for robots in result.system.fleets()}
    robots, needed = max(found.items(), key=lambda each: each[1] or 0)
    if needed is not None:
        warnings.warn(f"{robots:,} robots: {unsettled(needed)}", stacklevel=2)


def _print(result: "Result", lead: str, page: Path, as_json: bool) -> None:
    from shadowpeft.cli._models import print_result

    if as_json:
        fleets = {
            robots: {name: asdict(one) for name, one in result.means(robots).items()}
            for robots in result.system.fleets()
        }
        once = [asdict(one) for one in result.once]
        print_result({"fleets": fleets, "once": once, "report": str(page)}, as_json=True)
        return
    print(lead)
    print(f"report: {page}")
