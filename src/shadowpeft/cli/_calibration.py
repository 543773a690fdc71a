"""Who answers the rows of `shadowpeft calibrate`, from its flags to their answers."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shadowpeft.cli import _models
from shadowpeft.cli._answering import Answering
from shadowpeft.cli._choice import ModelChoice
from shadowpeft.data.rows import Row
from shadowpeft.errors import ConfigError, DataError
from shadowpeft.evaluation.endpoint import Endpoint
from shadowpeft.evaluation.roles import (
    LocalRole,
    Role,
    ServerRole,
    answered_rows,
    column_rights,
    identity_of,
)
from shadowpeft.model import ShadowedModel
from shadowpeft.route import answered as files
from shadowpeft.route.answered import Answered


def answered(rows: Mapping[str, Sequence[Row]], flags: Answering, output: Path) -> dict[str, list[Answered]]:
    """Return the answers to sets of rows, and keep those that were computed now.

    Args:
        rows: by the name of their set.
        flags: who answers.
        output: folder for the answers.

    Raises:
        UserError: somebody cannot be loaded, cannot be reached or cannot answer a row.
    """
    if flags.reads_answers:
        for each in (row for some in rows.values() for row in some):
            if not files.is_answered(each.fields):
                raise ConfigError(
                    f"{each.where} is not answered yet; give --model or --endpoint to have the rows answered"
                )
        return {name: files.read([(row.fields, row.where) for row in some]) for name, some in rows.items()}
    for set_name, some in rows.items():
        # Refused before anything is answered, which is what takes the time.
        _refuse_to_overwrite(output / file_of(set_name))
        if flags.cloud_answers is not None:
            column_rights(some, flags.cloud_answers)
    edge, cloud = _roles(flags)
    name = edge.endpoint.model if isinstance(edge, ServerRole) else flags.model
    by = identity_of(str(name), flags.adapter, flags.endpoint)
    found = {}
    for name, some in rows.items():
        print(f"answering {len(some):,} rows: {name}", file=sys.stderr)
        found[name] = answered_rows(some, edge, by, cloud, flags.cloud_answers, flags.timed)
        # Kept before anything else can be refused.
        files.write(found[name], output / file_of(name))
    return found


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists():
        raise ConfigError(
            f"{path} holds the answers of an earlier run; read them in place of the rows, without --model "
            "and --endpoint, or choose another output"
        )


def file_of(name: str) -> str:
    """Return the name of the file with the answers to a set of rows."""
    return "answers.jsonl" if name == "data" else f"{name}_answers.jsonl"


def _roles(flags: Answering) -> tuple[Role, Role | None]:
    """Return who answers at the edge, and who is the cloud if it is to be asked."""
    edge_key, cloud_key = _key(flags.api_key_env), _key(flags.cloud_api_key_env)
    cloud: Role | None = None
    if flags.cloud_endpoint is not None:
        server = Endpoint(flags.cloud_endpoint, key=cloud_key)
        cloud = ServerRole(server, flags.batch_size, flags.max_new_tokens)
    if flags.endpoint is not None:
        server = Endpoint(flags.endpoint, flags.model, key=edge_key)
        return ServerRole(server, flags.batch_size, flags.max_new_tokens), cloud
    edge, attached = _local_roles(flags)
    if flags.cloud_answers is None and cloud is None:
        cloud = attached
    return edge, cloud


def _local_roles(flags: Answering) -> tuple[Role, Role | None]:
    """Return the model that answers at the edge, and the attached one if there is an adapter."""
    assert flags.model is not None
    choice = ModelChoice(flags.model, flags.adapter, dtype=flags.dtype, device=flags.device)
    labels = None if flags.labels is None else _read_labels(Path(flags.labels))
    loaded, tokenizer = _models.load(choice)
    given: dict[str, Any] = {
        "tokenizer": tokenizer,
        "batch_size": flags.batch_size,
        "labels": labels,
        "max_length": flags.max_length,
        "max_new_tokens": flags.max_new_tokens,
    }
    if isinstance(loaded, ShadowedModel):
        return LocalRole(loaded.detached(), **given), LocalRole(loaded, **given)
    return LocalRole(loaded, **given), None


def _read_labels(path: Path) -> list[str]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a JSON list of the possible answers ({error})") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(f"{path}: expected a JSON list of the possible answers, got something else")
    return labels


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    if not os.environ.get(name):
        raise ConfigError(f"the environment variable {name} is to hold a server's key, and is not set")
    return os.environ[name]
