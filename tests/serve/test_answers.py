"""Replies as OpenAI's clients read them; test_app.py reads them with its client."""

import json
import math

from shadowpeft.serve.answers import Reply, joined
from shadowpeft.serve.backend import Piece, Token, Usage

PIECES = [
    Piece("on", (Token("on", -0.5, (("on", -0.5), ("\ufffd", -math.inf)), 0.7),), notes={"route": "edge"}),
    Piece("e", (Token("e", -0.1), Token("", -0.2, is_silent=True)), "stop", Usage(3, 3), {"score": 1.0}),
]


def of(reply: Reply, index: int, piece: Piece) -> dict:
    return json.loads(reply.chunk(index, piece).removeprefix(b"data: "))


def test_a_stream_of_a_chat():
    """Catches a role in every chunk, a usage where none was asked for, and an end that is told as a token."""
    reply = Reply(is_chat=True, model="m", tells_tokens=True, include_usage=True)
    first, last = (of(reply, 0, piece) for piece in PIECES)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "on"}
    assert last["choices"][0]["delta"] == {"content": "e"}
    assert (first["usage"], first["choices"][0]["shadow"]) == (None, {"route": "edge"})
    assert [entry["token"] for entry in last["choices"][0]["logprobs"]["content"]] == ["e"]
    (entry,) = first["choices"][0]["logprobs"]["content"]
    assert entry["entropy"] == 0.7
    assert entry["top_logprobs"] == [
        {"token": "on", "logprob": -0.5, "bytes": [111, 110]},
        {"token": "\ufffd", "logprob": -9999.0, "bytes": None},
    ]
    assert "usage" not in of(Reply(True, "m", False), 0, PIECES[0])
    assert of(Reply(True, "m", False), 0, PIECES[0])["choices"][0]["logprobs"] is None


def test_a_stream_of_a_completion_counts_characters():
    reply = Reply(is_chat=False, model="m", tells_tokens=True)
    first, last = (of(reply, 1, piece)["choices"][0] for piece in PIECES)
    assert (first["index"], first["text"], first["logprobs"]["text_offset"]) == (1, "on", [0])
    assert last["logprobs"]["text_offset"] == [2]
    assert first["logprobs"]["entropies"] == [0.7]
    assert "entropies" not in last["logprobs"]


def test_a_prompt_is_counted_once_for_its_choices():
    """Catches usage that grows with n: OpenAI counts what was read once, and all that was written."""
    whole = joined(PIECES)
    assert (whole.text, whole.notes) == ("one", {"route": "edge", "score": 1.0})
    body = Reply(True, "m", False, n=2).body([whole] * 4)
    assert body["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
