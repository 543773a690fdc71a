"""The description of the server for programs, `/openapi.json`: every field that is read, with its range."""

from typing import Any

import shadowpeft
from shadowpeft.serve.protocol import MOST_CHOICES, MOST_STOPS, MOST_TOP, ROLES, ROUTES

_TEXT, _SWITCH = {"type": "string"}, {"type": "boolean"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def _whole(least: int, most: int | None = None) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most})}


_COMMON: dict[str, Any] = {
    "model": _TEXT,
    "max_tokens": _whole(1),
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": _whole(-(2**63), 2**63 - 1),
    "stop": {
        "oneOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MOST_STOPS},
        ]
    },
    "n": _whole(1, MOST_CHOICES),
    "stream": _SWITCH,
    "stream_options": {
        "type": "object",
        "properties": {"include_usage": _SWITCH},
        "additionalProperties": False,
    },
}
_MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": list(ROLES)}, "content": _TEXT},
    "required": ["role", "content"],
    "additionalProperties": False,
}
CHAT: dict[str, Any] = {
    **_COMMON,
    "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
    "max_completion_tokens": _whole(1),
    "logprobs": _SWITCH,
    "top_logprobs": _whole(0, MOST_TOP),
    "continue_final_message": _SWITCH,
    "add_generation_prompt": _SWITCH,
}
COMPLETION: dict[str, Any] = {
    **_COMMON,
    "prompt": {
        "oneOf": [
            _TEXT,
            {"type": "array", "items": _TEXT, "minItems": 1},
            _IDS,
            {"type": "array", "items": _IDS, "minItems": 1},
        ]
    },
    "logprobs": _whole(0, MOST_TOP),
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {"type": "object", "required": ["message", "type", "param", "code"]},
    },
    "required": ["error"],
}
_REFUSED = {
    "400": "a field is wrong, or is not implemented; the message names it",
    "401": "no key, or another",
    "404": "no such model",
    "413": "the body is too large",
    "415": "the body is no JSON by its header",
    "429": "the queue is full",
    "500": "the server failed",
    "502": "a server behind this one failed",
    "503": "a server behind this one is away, or this one ends",
    "504": "the answer took too long",
}


def description() -> dict[str, Any]:
    """Return the description in OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "shadowpeft serve", "version": shadowpeft.__version__},
        "paths": {
            "/v1/chat/completions": {"post": _asking("Answer a chat.", CHAT, "messages")},
            "/v1/completions": {"post": _asking("Continue a text.", COMPLETION, "prompt")},
            "/v1/models": {"get": _reading("The models.")},
            "/v1/shadow": {"get": _reading("Roles, policy, and what came of it.")},
            "/health": {"get": _reading("Whether the server and those behind it are well.")},
        },
    }


def _asking(summary: str, fields: dict[str, Any], needed: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "required": [needed], "additionalProperties": False}
    refused = {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in _REFUSED.items()
    }
    whole, stream = {"schema": {"type": "object", "required": ["choices", "usage"]}}, {"schema": _TEXT}
    return {
        "summary": summary,
        "parameters": [
            {"name": "x-shadow-route", "in": "header", "schema": {"enum": list(ROUTES)}, "required": False}
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {
                "description": "the answer, or its stream",
                "content": {"application/json": whole, "text/event-stream": stream},
            },
            **refused,
        },
    }


def _reading(summary: str) -> dict[str, Any]:
    replies = {
        "200": {"description": "as it is", "content": {"application/json": {"schema": {"type": "object"}}}}
    }
    return {"summary": summary, "responses": replies}
