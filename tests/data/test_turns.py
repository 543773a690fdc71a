"""Chats rendered once: the same masks as rendering each beginning of them, in time that grows as the chat."""

import itertools
import random
import time

import pytest
from helpers.tokenizers import CHATML, PLAIN, THINKING, build_tokenizer

from shadowpeft.data import chats
from shadowpeft.data.encode import encode
from shadowpeft.data.rows import Chat, Row
from shadowpeft.data.turns import find_turns

PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
# Templates that are read once, by what is special about them.
ONCE = {
    "chatml": CHATML,
    "plain": PLAIN,
    "nothing behind": "{% for m in messages %}" + TURN + "{% endfor %}",
    "a system message apart": (
        "{% if messages[0].role == 'system' %}{{ messages[0].content|trim }}\n{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{{ loop.index0 }}{% if loop.first %}first{% endif %}"
        + TURN
        + "{% endfor %}"
        + PROMPT
    ),
    "generation": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}{% else %}{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}"
        + PROMPT
    ),
    "a macro and earlier state": (
        "{% macro turn(m) %}" + TURN + "{% endmacro %}{% set ns = namespace(last='') %}"
        "{% for m in messages %}{{ ns.last }}{{ turn(m) }}{% set ns.last = m.role %}{% endfor %}" + PROMPT
    ),
    "in a branch": "{% if messages %}{% for m in messages %}" + TURN + "{% endfor %}{% endif %}" + PROMPT,
    "an end for any chat": "{% for m in messages %}"
    + TURN
    + "{% endfor %}{% if not add_generation_prompt %}bye{% endif %}",
    # As Qwen2.5's: only tools' messages look at what follows.
    "looks ahead at tools": (
        "{% for m in messages %}{% if m.role == 'tool' %}"
        "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}"
        "<|im_end|>{% endif %}{{ m.content }}{% else %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
    ),
}
# Templates in which a message depends on those that follow, or what ends a chat on what went before.
REWRITING = {
    "thinking": THINKING,
    "counts": "{% for m in messages %}{{ messages|length }}" + TURN + "{% endfor %}" + PROMPT,
    "counts in the loop": "{% for m in messages %}{{ loop.length }}" + TURN + "{% endfor %}" + PROMPT,
    "the last": "{{ messages[-1].role }}{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT,
    "backwards first": (
        "{% set ns = namespace(at=0) %}{% for m in messages[::-1] %}{% if m.role == 'user' and not ns.at %}"
        "{% set ns.at = loop.revindex0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if loop.index0 > ns.at %}<think>\n\n</think>\n\n{% endif %}"
        + TURN
        + "{% endfor %}"
        + PROMPT
    ),
    "the end knows the last role": (
        "{% set ns = namespace(last='') %}{% for m in messages %}"
        + TURN
        + "{% set ns.last = m.role %}{% endfor %}{{ ns.last }}"
        + PROMPT
    ),
    "held back": "{% filter trim %}{% for m in messages %}" + TURN + "{% endfor %}{% endfilter %}" + PROMPT,
    "held back in a block of text": (
        "{% set all %}{% for m in messages %}" + TURN + "{% endfor %}{% endset %}{{ all }}" + PROMPT
    ),
    "twice": (
        "{% for m in messages %}{{ m.role[0] }}{% endfor %}{% for m in messages %}"
        + TURN
        + "{% endfor %}"
        + PROMPT
    ),
    "the next": (
        "{% for m in messages %}"
        + TURN
        + "{% if loop.nextitem is defined %}{{ loop.nextitem.role }}{% endif %}"
        "{% endfor %}" + PROMPT
    ),
    "skips": (
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}"
        + TURN
        + "{% endfor %}"
        + PROMPT
    ),
    "only some": "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + PROMPT,
    "stops": (
        "{% for m in messages %}{% if loop.index0 == 5 %}{% break %}{% endif %}"
        + TURN
        + "{% endfor %}"
        + PROMPT
    ),
    "as a list": "{% for m in messages|list %}" + TURN + "{% endfor %}" + PROMPT,
    "joined": "{{ messages|map(attribute='content')|join('<|im_end|>') }}" + PROMPT,
    "a first line of all": "{% for m in messages[:2] %}{{ m.role }}{% endfor %}{% for m in messages %}"
    + TURN
    + "{% endfor %}",
    "another end once it is long": (
        "{% for m in messages %}"
        + TURN
        + "{% endfor %}{% if messages[4] is defined %}<|im_end|>{% endif %}"
        + PROMPT
    ),
    "a prompt that the turns know of": (
        "{% for m in messages %}" + TURN + "{% if add_generation_prompt %} {% endif %}{% endfor %}" + PROMPT
    ),
}
ALL = ONCE | REWRITING


def chat_of(roles: str) -> Chat:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    texts = ("two", "what is\n", " four", "is", "two plus two?")
    messages = [
        {"role": names[role], "content": texts[(place * place + len(roles)) % len(texts)]}
        for place, role in enumerate(roles)
    ]
    return Chat(messages, 1)


def spans(chat: Chat, tokenizer) -> list:
    text = chats.render(chat, tokenizer, "here")
    try:
        return list(chats.answers_in(text, chat, tokenizer, "here"))
    except chats.DataError as error:
        return [str(error)]


@pytest.mark.parametrize("name", ALL)
def test_the_spans_are_those_of_rendering_every_beginning(name, monkeypatch):
    """Catches a message taken for finished while the template may still look at what follows."""
    tokenizer = build_tokenizer(ALL[name])
    draw = random.Random(0)
    shapes = ["suaua", "uauaua", "uaa", "uataua", "ua" * 4, "suatta", "uuaa", "ata", "uttta"]
    shapes += ["".join(draw.choices("suat", k=6)) + "a" for _ in range(12)]
    found = {}
    for few in (0, 1000):
        monkeypatch.setattr(chats, "_FEW", few)
        found[few] = [spans(chat_of(shape), tokenizer) for shape in shapes]
    assert found[0] == found[1000]


@pytest.mark.parametrize("name", ONCE)
def test_a_template_that_does_not_look_ahead_is_rendered_once(name):
    """Catches a check so strict that every chat is rendered the slow way."""
    chat = chat_of("su" + "au" * 5 + "a")
    tokenizer = build_tokenizer(ONCE[name])
    turns = find_turns(chats.render(chat, tokenizer, "here"), chat, tokenizer)
    assert turns is not None
    assert all(turns.holds(index) for index in range(2, len(chat.messages)))


@pytest.mark.parametrize("name", REWRITING)
def test_what_depends_on_later_messages_is_not_taken_for_known(name):
    chat = chat_of("su" + "au" * 5 + "a")
    tokenizer = build_tokenizer(REWRITING[name])
    turns = find_turns(chats.render(chat, tokenizer, "here"), chat, tokenizer)
    unknown = ("skips", "only some", "a first line of all", "a prompt that the turns know of")
    assert turns is None or name in unknown or not all(turns.holds(i) for i in range(2, len(chat.messages)))


def test_a_long_chat_is_encoded_in_time_that_grows_as_its_length():
    """Catches the renders of every beginning, which take minutes for chats of thousands of turns."""
    tokenizer, taken = build_tokenizer(), []
    for turns in (100, 800):
        messages = list(
            itertools.islice(
                itertools.cycle(
                    [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "two"}]
                ),
                turns,
            )
        )
        begun = time.process_time()
        encode(Row({"messages": messages}, "here"), tokenizer, 100_000)
        taken.append(time.process_time() - begun)
    # The square would be 64 times as long.
    assert taken[1] < 24 * taken[0]
