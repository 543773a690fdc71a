"""Requests read field by field."""

import json
from typing import Any

import pytest

from shadowpeft.serve.errors import RequestError
from shadowpeft.serve.protocol import Ask, read_chat, read_completion

USER = {"role": "user", "content": "what"}


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def text(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "what", **fields}).encode()


def refusal(read: Any, body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(body)
    assert caught.value.status == 400
    return caught.value


def test_every_field_reaches_the_request():
    fields = {
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": -3,
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found = read_chat(chat(**fields))
    want = Ask("m", None, (USER,), "", 7, 0.5, 0.9, -3, ("a", "b"), 2, True)
    assert found.asks[0] == want
    # One that was asked for twice with one seed would be the same text twice.
    assert [ask.seed for ask in found.asks] == [-3, -2]
    assert (found.n, found.include_usage) == (2, True)
    assert read_completion(text(logprobs=0)).first == Ask("m", "what", max_tokens=16, top=0)


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_prompts_of_every_form(prompt, want):
    assert [ask.prompt for ask in read_completion(text(prompt=prompt)).asks] == want


def test_what_asks_for_nothing_is_taken():
    """Catches a client that is refused for a field by which it asks for what is done anyway."""
    neutral = {"presence_penalty": 0, "tools": [], "response_format": {"type": "text"}, "store": False}
    assert read_chat(chat(**neutral, logit_bias=None, n=None)).asks == read_chat(chat()).asks
    assert read_completion(text(best_of=1, echo=False, suffix=None)).asks == read_completion(text()).asks


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"tools": [{}]}, "tools"),
        ({"store": 0}, "store"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_k": 5}, "top_k"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": False}},
            "stream_options.include_obfuscation",
        ),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 1.0}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"model": 1}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "what"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{**USER, "name": "ann"}]}, "messages[0].name"),
        ({"messages": [{**USER, "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "assistant", "content": "yes"}]}, "messages"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"é" * 200: 1}, "\\xe9" * 16),
    ],
)
def test_what_is_not_done_is_refused_by_name(fields, param):
    """Catches a field that is accepted and ignored, the complaint of users of other servers."""
    assert refusal(read_chat, chat(**fields)).param == param


@pytest.mark.parametrize("prompt", [None, [], [[]], [1, "a"], [True], [-1], {"a": 1}, [[1], "a"], 5])
def test_what_is_no_prompt_is_refused(prompt):
    assert refusal(read_completion, text(prompt=prompt)).param == "prompt"


def test_too_many_texts_at_once_are_refused():
    assert refusal(read_completion, text(prompt=["a"] * 9, n=2)).param == "n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'"a"',
        b"\xff",
        b'{"temperature": NaN}',
        b"[" * 200_000,
        b'{"n": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(body):
    """Catches a body that takes the server down; deep nesting and long numbers raise errors of their own."""
    assert refusal(read_chat, body).message


def test_messages_in_parts_and_of_developers():
    """Catches parts that are joined with something between them."""
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "wh"}, {"type": "text", "text": "at"}]},
    ]
    assert read_chat(chat(messages=messages)).first.messages == (
        {"role": "system", "content": "be brief"},
        USER,
    )


def test_a_last_answer_can_be_continued():
    messages = [USER, {"role": "assistant", "content": "ye"}]
    found = read_chat(chat(messages=messages, continue_final_message=True, add_generation_prompt=False)).first
    assert (found.messages, found.begun) == ((USER,), "ye")
    alone = chat(messages=messages[1:], continue_final_message=True)
    assert refusal(read_chat, alone).param == "messages"


def test_no_message_holds_a_word_of_the_prompt():
    """Catches a prompt that gets into logs by way of an error."""
    secret = "a secret text of some length"
    for body in (
        chat(messages=secret),
        chat(messages=[{"role": secret, "content": "x"}]),
        text(stop={"a": secret}),
    ):
        with pytest.raises(RequestError) as caught:
            (read_completion if b'"prompt"' in body else read_chat)(body)
        assert secret not in str(caught.value.body())
