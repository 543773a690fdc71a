"""Bodies made from the OpenAPI description, most of them broken: an answer or a proper error, every time."""

import json
import random
from typing import Any

import httpx2 as httpx
import pytest
from helpers.servers import Canned, gateway_of, running

from shadowpeft.serve import openapi
from shadowpeft.serve.app import Limits

STRANGE = [
    None,
    True,
    -1,
    0,
    1e308,
    2**70,
    "",
    "\0",
    "\ud83d",
    "é" * 99,
    [],
    [[]],
    {},
    {"a": {}},
    [None],
    0.5,
]


def valid(schema: dict[str, Any], chance: random.Random) -> Any:
    """Make a value that a schema allows."""
    if "oneOf" in schema:
        return valid(chance.choice(schema["oneOf"]), chance)
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if schema["type"] == "array":
        most = schema.get("maxItems", 3)
        return [
            valid(schema["items"], chance) for _ in range(chance.randint(schema.get("minItems", 0), most))
        ]
    if schema["type"] == "object":
        return {name: valid(each, chance) for name, each in schema["properties"].items()}
    low = schema.get("minimum", 0)
    high = min(schema.get("maximum", low + 5), low + 5)
    makers = {
        "string": lambda: chance.choice(["what", "a", "é\n", "x" * 50]),
        "boolean": lambda: chance.random() < 0.5,
        "integer": lambda: chance.randint(low, high),
        "number": lambda: chance.uniform(low, high),
    }
    return makers[schema["type"]]()


def body_of(fields: dict[str, Any], needed: str, chance: random.Random) -> bytes:
    """Make a body of some fields, in four of five cases with something wrong."""
    chosen = [needed, *chance.sample(sorted(fields), chance.randint(0, 4))]
    body = {name: valid(fields[name], chance) for name in chosen}
    # The fake model has one name.
    body.pop("model", None)
    kind = chance.randint(0, 4)
    if kind == 1:
        body[chance.choice(chosen)] = chance.choice(STRANGE)
    elif kind == 2:
        body[chance.choice(["tools", "top_k", "\x00", "user", "prompt", "messages"])] = chance.choice(STRANGE)
    text = json.dumps(body).encode()
    if kind == 3:
        place = chance.randrange(len(text))
        text = text[:place] + bytes([chance.randrange(256)]) + text[place + chance.randint(0, 1) :]
    elif kind == 4:
        text = text[: chance.randrange(len(text))]
    return text


@pytest.mark.parametrize(
    ("path", "fields", "needed"),
    [("/chat/completions", openapi.CHAT, "messages"), ("/completions", openapi.COMPLETION, "prompt")],
)
def test_every_body_gets_an_answer_or_a_proper_error(path, fields, needed):
    """Catches a body that is answered by a trace, hangs, or takes the server down."""
    chance, seen = random.Random(0), set()
    gateway = gateway_of(Canned("one two"), limits=Limits(body_bytes=5000))
    with running(gateway.app()) as address, httpx.Client(timeout=20) as client:
        for _ in range(300):
            content = body_of(fields, needed, chance)
            reply = client.post(
                f"{address}{path}", content=content, headers={"content-type": "application/json"}
            )
            seen.add(reply.status_code)
            assert reply.status_code in (200, 400, 404, 413), (content, reply.text)
            if reply.status_code != 200:
                error = reply.json()["error"]
                assert error.keys() == {"message", "type", "param", "code"}, content
                assert len(error["message"]) < 500
            elif reply.headers["content-type"].startswith("text/event-stream"):
                assert reply.text.endswith("data: [DONE]\n\n")
            else:
                assert reply.json()["choices"]
        assert seen >= {200, 400}
        assert client.get(f"{address[:-3]}/health").json() == {"status": "ok"}
        assert gateway.gate.inside == 0
