"""The description for programs says what is read, and nothing else."""

import httpx2 as httpx
from helpers.servers import Canned, gateway_of, running

from shadowpeft.serve import openapi, protocol


def test_every_field_that_is_read_is_described():
    assert openapi.CHAT.keys() == protocol.CHAT_FIELDS
    assert openapi.COMPLETION.keys() == protocol.COMPLETION_FIELDS


def test_the_description_is_served():
    with running(gateway_of(Canned()).app()) as address:
        found = httpx.get(f"{address[:-3]}/openapi.json").json()
    assert found["paths"].keys() >= {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"}
