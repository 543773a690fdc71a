"""Chats as token examples: what a template renders, which of it is learned, and templates that cannot be
used."""

import json

import pytest
from helpers.rows import ANSWER, TURNS, USER, row
from helpers.tokenizers import (
    CHATML,
    PLAIN,
    THINKING,
    build_tokenizer,
    ids_of,
    learned_text,
    template_ids,
    with_specials,
    words_tokenizer,
)
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from shadowpeft.data.chats import answers_in, render
from shadowpeft.data.encode import encode, encode_prompt
from shadowpeft.data.rows import Chat, reference_answer
from shadowpeft.errors import DataError


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.mark.parametrize("template", [CHATML, THINKING, PLAIN])
@pytest.mark.parametrize("learn_from", [1, 4])
def test_the_span_of_an_answer_holds_it_and_its_end(template, learn_from):
    """Catches spans off by a character, and answers that are only context."""
    tokenizer = build_tokenizer(template)
    text = render(Chat(TURNS, learn_from), tokenizer, "here")
    found = list(answers_in(text, Chat(TURNS, learn_from), tokenizer, "here"))
    ending = {CHATML: "<|im_end|>", THINKING: "<|im_end|>", PLAIN: "\n\n"}[template]
    before = {CHATML: "", THINKING: "<think>\n\n</think>\n\n", PLAIN: ""}[template]
    wanted = [("two is four", before + "two is four" + ending)]
    if learn_from == 1 and template != THINKING:
        wanted.insert(0, ("what?", "what?" + ending))
    assert [(content, text[start:stop]) for content, (start, stop) in found] == wanted


@pytest.mark.parametrize("template", [CHATML, THINKING, PLAIN])
@pytest.mark.parametrize("messages", [[USER, ANSWER], TURNS])
def test_a_chat_has_the_ids_of_the_template_and_of_generation(template, messages):
    tokenizer = build_tokenizer(
        template, processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    )
    chat = row(messages=messages)
    assert encode(chat, tokenizer, 500)["input_ids"] == template_ids(tokenizer, messages)
    assert encode_prompt(chat, tokenizer) == template_ids(
        tokenizer, messages[:-1], add_generation_prompt=True
    )
    assert reference_answer(chat) == "two is four"


def test_each_assistant_turn_and_its_end_is_learned(tokenizer):
    example = encode(row(messages=TURNS), tokenizer, 500)
    assert learned_text(tokenizer, example) == ["what?<|im_end|>", "two is four<|im_end|>"]
    prompt = encode_prompt(row(messages=TURNS), tokenizer)
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][len(prompt) - 1] == -100
    assert example["labels"][len(prompt)] != -100


def test_a_template_without_generation_prompt_teaches_the_header_of_answers_but_no_user_turn():
    tokenizer = build_tokenizer(CHATML.partition("{% if")[0])
    example = encode(row(messages=TURNS), tokenizer, 500)
    header = "<|im_start|>assistant\n"
    assert learned_text(tokenizer, example) == [header + "what?<|im_end|>", header + "two is four<|im_end|>"]


def test_where_the_template_rewrites_earlier_turns_only_the_last_is_learned():
    tokenizer = build_tokenizer(THINKING)
    example = encode(row(messages=TURNS), tokenizer, 500)
    assert learned_text(tokenizer, example) == ["<think>\n\n</think>\n\ntwo is four<|im_end|>"]


def test_a_token_across_the_start_of_the_answer_is_learned():
    tokenizer = build_tokenizer(PLAIN)
    example = encode(row(messages=TURNS), tokenizer, 500)
    # " two" is one token here. The blank line, all that ends a turn, is learned.
    assert learned_text(tokenizer, example) == [" what?\n\n", " two is four\n\n"]


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_white_space_and_split_characters_are_learned(template, trim):
    # With trim_offsets (Llama 3) the offsets of spaces are empty; an emoji is several tokens with the same
    # offsets.
    tokenizer = build_tokenizer(template, processors.ByteLevel(trim_offsets=trim))
    content = "🙂\n\ntwo   \n four 🙂"
    messages = [
        USER,
        {"role": "assistant", "content": content},
        USER,
        {"role": "assistant", "content": content},
    ]
    example = encode(row(messages=messages), tokenizer, 500)
    assert example["input_ids"] == template_ids(tokenizer, messages)
    expected = content + "<|im_end|>" if template == CHATML else content + "\n\n"
    assert learned_text(tokenizer, example) == [expected, expected]


def test_a_first_message_by_the_assistant_is_context(tokenizer):
    example = encode(row(messages=[{"role": "assistant", "content": "hello"}, USER, ANSWER]), tokenizer, 500)
    assert learned_text(tokenizer, example) == ["two is four<|im_end|>"]


def test_conversational_prompt_and_completion(tokenizer):
    pair = row(prompt=TURNS[:-1], completion=[ANSWER])
    example = encode(pair, tokenizer, 500)
    assert example["input_ids"] == template_ids(tokenizer, TURNS)
    assert learned_text(tokenizer, example) == [
        "two is four<|im_end|>"
    ]  # not the assistant's turn in the prompt
    assert encode_prompt(pair, tokenizer) == template_ids(tokenizer, TURNS[:-1], add_generation_prompt=True)
    assert reference_answer(pair) == "two is four"
    both = encode(row(prompt=TURNS[:2], completion=TURNS[2:]), tokenizer, 500)
    assert learned_text(tokenizer, both) == ["what?<|im_end|>", "two is four<|im_end|>"]


@pytest.mark.parametrize("fields", [{"messages": TURNS[:-1]}, {"prompt": TURNS[:-1]}, {"prompt": TURNS}])
def test_a_chat_without_an_answer_can_be_generated_from_but_not_learned(tokenizer, fields):
    (messages,) = fields.values()
    assert encode_prompt(row(**fields), tokenizer) == template_ids(
        tokenizer, messages, add_generation_prompt=True
    )
    assert reference_answer(row(**fields)) is None
    with pytest.raises(
        DataError, match=r"data.jsonl:17: training needs an assistant's answer as the last message"
    ):
        encode(row(**fields), tokenizer, 500)


def test_a_chat_of_the_assistant_alone_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"data.jsonl:17: expected a message before the assistant's"):
        encode(row(messages=[ANSWER]), tokenizer, 500)


def test_a_tokenizer_without_a_chat_template_is_refused():
    tokenizer = build_tokenizer(template=None)
    for refused in (encode_prompt, lambda r, t: encode(r, t, 100)):
        with pytest.raises(
            DataError, match=r"data.jsonl:17: the row is a chat but the tokenizer has no chat template"
        ):
            refused(row(messages=[USER, ANSWER]), tokenizer)


def test_a_slow_tokenizer_is_refused_for_chats(monkeypatch):
    tokenizer = build_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(DataError, match=r"data.jsonl:17: chats need a fast tokenizer"):
        encode(row(messages=[USER, ANSWER]), tokenizer, 100)


def test_messages_that_the_template_refuses_are_named():
    tokenizer = build_tokenizer("{{ raise_exception('roles must alternate') }}")
    for refused in (encode_prompt, lambda r, t: encode(r, t, 100)):
        with pytest.raises(
            DataError,
            match=r"data.jsonl:17: the chat template refuses these messages \(roles must alternate\)",
        ):
            refused(row(messages=[USER, ANSWER]), tokenizer)


def test_an_early_end_that_the_template_refuses_leaves_the_other_turns():
    refuses_system_alone = (
        "{% if messages | length == 1 %}{{ raise_exception('no user') }}{% endif %}" + CHATML
    )
    tokenizer = build_tokenizer(refuses_system_alone)
    example = encode(row(messages=[TURNS[0], ANSWER, USER, ANSWER]), tokenizer, 500)
    assert learned_text(tokenizer, example) == ["two is four<|im_end|>"]


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),  # as DeepSeek-R1's
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",  # drops the answer
    ],
)
def test_a_template_whose_prompt_does_not_lead_to_the_answer_is_refused(template):
    with pytest.raises(
        DataError, match=r"data.jsonl:17: the chat template renders the messages before the last answer"
    ):
        encode(row(messages=[USER, ANSWER]), build_tokenizer(template), 500)


def test_a_chat_answer_with_an_unknown_token_is_refused():
    tokenizer = words_tokenizer()
    tokenizer.chat_template = PLAIN
    with pytest.raises(
        DataError, match=r"data.jsonl:17: the tokenizer has no token for a part of 'two is four'"
    ):
        encode(row(messages=[USER, ANSWER]), tokenizer, 100)


# What rows hold beside messages

TOOLS = (
    "{% if tools %}{{ tools|tojson }}{% endif %}{% if documents %}{{ documents|tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call|tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ mood or '' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add"}}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add"}}],
}


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_tools_documents_and_settings_are_rendered_as_transformers_does(as_text, apart):
    """Catches columns that a chat template reads and that are ignored without a word."""
    tokenizer = build_tokenizer(TOOLS)
    options = {"tools": [TOOL], "documents": [{"title": "two", "text": "four"}]}
    fields = {name: json.dumps(value) if as_text else value for name, value in options.items()}
    fields["chat_template_kwargs"] = {"mood": ""}
    messages = [USER, CALL, {"role": "tool", "content": "4"}, ANSWER]
    fields |= {"prompt": messages[:1], "completion": messages[1:]} if apart else {"messages": messages}
    example = encode(row(**fields), tokenizer, 1000)
    assert example["input_ids"] == template_ids(tokenizer, messages, **options, mood="")
    learned = learned_text(tokenizer, example)
    assert learned == [json.dumps(CALL["tool_calls"][0]) + "<|im_end|>", "two is four<|im_end|>"]
    fields["chat_template_kwargs"] = {"mood": "what"}
    assert encode_prompt(row(**fields), tokenizer) == template_ids(
        tokenizer, messages[:-1], **options, mood="what", add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": "add"}, "'tools' is text that is not JSON"),
        ({"tools": {"name": "add"}}, "'tools' must be a list of objects or that as JSON, got dict"),
        ({"documents": ["a"]}, "'documents' must be a list of objects"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs' must be an object"),
        ({"chat_template_kwargs": {"tools": []}}, "must hold the chat template's own settings, got 'tools'"),
    ],
)
def test_what_a_template_cannot_read_is_refused(tokenizer, fields, message):
    with pytest.raises(DataError, match=message):
        encode(row(messages=[USER, ANSWER], **fields), tokenizer, 500)


def test_a_call_needs_no_content_but_an_answer_does(tokenizer):
    for bad in (
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
    ):
        with pytest.raises(DataError, match=r"messages\[1\].content' must be a string, got null"):
            encode(row(messages=[USER, bad]), tokenizer, 500)


# Chats that are already rendered


def test_a_rendered_chat_as_text_or_prompt_has_each_special_token_once():
    """Catches a second token of beginning or end beside the one that the template wrote."""
    tokenizer = with_specials("<s> $A <|im_end|>")
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    whole = tokenizer.apply_chat_template([USER, ANSWER], tokenize=False)
    asked = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    text = encode(row(text=whole), tokenizer, 500)
    assert text["input_ids"] == ids_of(tokenizer, whole)
    assert text["input_ids"].count(tokenizer.bos_token_id) == 1
    pair = encode(row(prompt=asked, completion=whole.removeprefix(asked)), tokenizer, 500)
    assert pair["input_ids"] == ids_of(tokenizer, whole.rstrip())
    assert encode_prompt(row(prompt=asked), tokenizer) == ids_of(tokenizer, asked)
    # A text that the tokenizer opens as before.
    assert encode_prompt(row(prompt="what"), tokenizer) == [
        tokenizer.bos_token_id,
        *ids_of(tokenizer, "what"),
    ]
