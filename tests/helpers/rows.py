"""Rows as users write them, right and wrong."""

from typing import Any

from shadowpeft.data.rows import Row

USER, ANSWER = {"role": "user", "content": "what is two?"}, {"role": "assistant", "content": "two is four"}
TURNS = [
    {"role": "system", "content": "hello"},
    USER,
    {"role": "assistant", "content": "what?"},
    USER,
    ANSWER,
]

BAD_ROWS = [
    ({}, "got the fields: none"),
    ({"question": "a", "text": None}, r"got the fields: question \(str\), text \(null\)"),
    ({"completion": "a"}, r"got the fields: completion \(str\)"),
    ({"text": 3}, "'text' must be a string, got int"),
    ({"prompt": 3, "completion": "a"}, "'prompt' must be a string, got int"),
    ({"prompt": "a", "completion": 3}, "'completion' must be a string, got int"),
    (
        {"prompt": "a", "completion": [ANSWER]},
        "must both be strings or both be lists of messages, got str and list",
    ),
    (
        {"prompt": [USER], "completion": "a"},
        "must both be strings or both be lists of messages, got list and str",
    ),
    (
        {"prompt": [USER], "completion": []},
        "'completion' must be a list of at least one message, got an empty list",
    ),
    ({"messages": []}, "'messages' must be a list of at least one message, got an empty list"),
    ({"messages": "a"}, "'messages' must be a list of at least one message, got str"),
    ({"messages": ["a"]}, r"messages\[0\] must be .*, got str"),
    ({"messages": [USER, {"role": "assistant"}]}, r"'messages\[1\].content' must be a string, got null"),
    ({"messages": [{"content": "a"}]}, r"'messages\[0\].role' must be a string, got null"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        r"'messages\[0\].content' must be a string, got list",
    ),
    ({"text": "a\ud83d"}, "'text' holds half a character"),
]


def row(where: str = "data.jsonl:17", **fields: Any) -> Row:
    return Row(fields, where)
