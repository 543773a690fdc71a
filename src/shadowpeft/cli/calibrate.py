"""`shadowpeft calibrate`: when the edge may answer by itself."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowpeft.cli._answering import Answering
from shadowpeft.cli._choice import Dtype
from shadowpeft.cli._libraries import require
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.route.goals import Goal, Risk, Share, parse_prices

if TYPE_CHECKING:
    from shadowpeft.data.rows import Row
    from shadowpeft.route.answered import Answered
    from shadowpeft.route.policy import Policy

NEEDS = ("sklearn", "scipy", "httpx2", "matplotlib")
_CONFIDENCE = 0.95


def run(
    data: str,
    output: str,
    model: str | None = None,
    adapter: str | None = None,
    endpoint: str | None = None,
    risk: float | None = None,
    confidence: float | None = None,
    defer: float | None = None,
    cost: str | None = None,
    score: str = "min_margin",
    deferral: str | None = None,
    labels: str | None = None,
    test: str | None = None,
    shifted: str | None = None,
    cloud_endpoint: str | None = None,
    cloud_answers: str | None = None,
    split: str = "validation",
    batch_size: int = 8,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    timed: int = 0,
    api_key_env: str | None = None,
    cloud_api_key_env: str | None = None,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Find out which answers of a small model may be kept, so that a risk, a share or a cost is met, and
    write the policy with a report.

    Args:
        data: rows with right answers that neither trained the model nor chose its settings: a .jsonl or
            .jsonl.gz file, a data set folder or a hub id. Without model and endpoint an answers.jsonl of an
            earlier run, whose answers are used again.
        output: folder for routing.json, report.html, report.md and the answers.
        model: folder or hub id of the base, or of an exported model; with endpoint what the server calls its
            model, by default its first one.
        adapter: folder or hub id of the adapter: its shadow answers alone, and the attached model is the
            cloud. With endpoint what the server's model was exported from.
        endpoint: in place of a model here, address of a server that speaks OpenAI's protocol and gives
            log-probabilities, such as http://127.0.0.1:8080/v1.
        risk: promise that at most this share of the kept answers is wrong.
        confidence: how sure the promise is; 0.95 by default.
        defer: in place of risk, send this share of the requests to the cloud.
        cost: in place of risk, spend as little as possible at prices such as edge=1,cloud=20,error=100.
        score: how sure the model is of an answer; the guide on routing lists all scores.
        deferral: the answer that the model was trained to defer by, such as [REMOTE]; it is never kept.
        labels: a JSON file with the list of possible answers, to choose the likeliest of instead of
            generating one.
        test: rows to compare promises with, read only for the report.
        shifted: rows of another kind, to see what the promise is worth there.
        cloud_endpoint: address of the server that is the cloud, for the report.
        cloud_answers: column of the rows with the cloud's answers, for the report.
        split: split of a data set folder or hub id that data names; test and shifted are read from "test".
        batch_size: rows, or requests to a server, at a time.
        max_length: tokens that a prompt and its answer may have together; by default what the model takes.
        max_new_tokens: tokens of an answer; by default one more than the longest answer in the rows.
        timed: answer so many rows of each file again, one at a time, and note how long each takes, as
            shadowpeft simulate reads it.
        api_key_env: name of the environment variable with the server's key.
        cloud_api_key_env: the same for the cloud's server.
        seed: decides which half of the rows fits and which one tests.
        dtype: type of the weights; auto for the one they are stored in.
        device: auto, cpu, cuda, cuda:1, mps.
        json: print the result as JSON.
    """
    goal = _goal(risk, confidence, defer, cost)
    if min(batch_size, max_new_tokens or 1) < 1:
        raise ConfigError("batch_size and max_new_tokens must be 1 or more")
    if timed < 0:
        raise ConfigError(f"timed must be 0 or more, got {timed}")
    flags = Answering(
        model=model,
        adapter=adapter,
        endpoint=endpoint,
        cloud_endpoint=cloud_endpoint,
        cloud_answers=cloud_answers,
        labels=labels,
        api_key_env=api_key_env,
        cloud_api_key_env=cloud_api_key_env,
        batch_size=batch_size,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        timed=timed,
        dtype=dtype,
        device=device,
    )
    flags.refuse_idle()
    require("calibration", NEEDS, extra="route")
    from shadowpeft.cli import _calibration
    from shadowpeft.data.rows import read_rows
    from shadowpeft.route.calibrate import refuse_early

    rows = {"data": read_rows(data, split)}
    rows |= {name: read_rows(path, "test") for name, path in (("test", test), ("shifted", shifted)) if path}
    refuse_early(len(rows["data"]), goal, score, deferral)
    _warn_of_shared(rows)
    answered = _calibration.answered(rows, flags, Path(output))
    try:
        policy, summary = _calibrated(rows["data"], answered, goal, score, deferral, data, seed, Path(output))
    except UserError as error:
        if flags.reads_answers:
            raise
        kept = Path(output) / _calibration.file_of("data")
        raise type(error)(
            f"{error}; the answers are kept: give --data {kept}, without --model and --endpoint, to use them"
        ) from error
    _print(policy, summary, Path(output), json)


def _goal(risk: float | None, confidence: float | None, defer: float | None, cost: str | None) -> Goal:
    given = [name for name, value in (("risk", risk), ("defer", defer), ("cost", cost)) if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"give one of --risk, --defer and --cost, got {' and '.join(given) or 'none'}; for instance "
            "--risk 0.05"
        )
    if cost is not None:
        if confidence is not None:
            raise ConfigError("--confidence has no meaning with --cost; leave it out")
        return parse_prices(cost)
    sure = _CONFIDENCE if confidence is None else confidence
    return Risk(risk, sure) if risk is not None else Share(defer or 0.0, sure)


def _warn_of_shared(rows: dict[str, list["Row"]]) -> None:
    """Warn of rows that calibrate and are then to show what the calibration is worth."""
    seen = {repr(sorted(row.fields.items())) for row in rows["data"]}
    for name in rows.keys() - {"data"}:
        shared = sum(repr(sorted(row.fields.items())) in seen for row in rows[name])
        if shared:
            warnings.warn(
                f"{shared:,} of the {len(rows[name]):,} {name} rows are calibration rows, too, so that they "
                "show nothing of requests to come; give others",
                stacklevel=2,
            )


def _calibrated(
    rows: Sequence["Row"],
    answered: dict[str, list["Answered"]],
    goal: Goal,
    score: str,
    deferral: str | None,
    data: str,
    seed: int,
    output: Path,
) -> tuple["Policy", dict[str, Any]]:
    """Make and save the policy and its report; return it with what is printed of it."""
    from shadowpeft.route.calibrate import calibrate
    from shadowpeft.route.identity import hash_of_rows
    from shadowpeft.route.measures import outcome, tabulate
    from shadowpeft.route.policy import NAME
    from shadowpeft.route.report import write_report

    digest = hash_of_rows(row.fields for row in rows)
    policy = calibrate(answered["data"], goal, score, deferral, data=data, data_hash=digest, seed=seed)
    policy.save(output / NAME)
    test, shifted = answered.get("test", []), answered.get("shifted", [])
    write_report(policy, answered["data"], seed, output, test=test, shifted=shifted)
    summary: dict[str, Any] = {}
    for name, some in (("test", test), ("shifted", shifted)):
        if some:
            summary[name] = asdict(outcome(tabulate(some, score, deferral), policy.threshold))
    return policy, summary


def _print(policy: "Policy", summary: dict[str, Any], output: Path, as_json: bool) -> None:
    from shadowpeft.cli._models import print_result
    from shadowpeft.route.policy import NAME
    from shadowpeft.route.report import HTML, promise_of

    if as_json:
        files = {"policy_file": str(output / NAME), "report": str(output / HTML)}
        print_result({**asdict(policy), **summary, **files}, as_json=True)
        return
    counts = policy.counts
    shown: dict[str, Any] = {
        "promise": promise_of(policy),
        "kept": f"answers with {policy.score} of {policy.threshold:.6g} or more",
        "sent": f"{counts.sent:,} of {counts.rows:,} calibration rows",
        "wrong": f"{counts.errors:,} of {counts.kept:,} kept answers of the half that tests",
    }
    for name, found in summary.items():
        wrong = f"{found['errors']:,} of {found['kept']:,} kept answers wrong"
        shown[name] = f"{found['rows'] - found['kept']:,} of {found['rows']:,} sent, {wrong}"
        if found["quality"] is not None:
            routed, edge, cloud = (f"{100 * found[each]:.1f} %" for each in ("quality", "edge", "cloud"))
            shown[name] += (
                f"; {routed} answered rightly, by the edge alone {edge}, by the cloud alone {cloud}"
            )
    shown |= {"policy": output / NAME, "report": output / HTML}
    print_result(shown, as_json=False)
