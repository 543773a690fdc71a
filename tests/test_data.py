"""Rows to token examples: every form of row, every bad input, and that training sees the tokens generation starts from."""

import gzip
import json
import sys
import warnings
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from shadowpeft import data
from shadowpeft.data import Collator, Example, Row
from shadowpeft.errors import ConfigError, DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: the last answer gets an empty thinking block, earlier answers lose theirs.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No special tokens: the space before the answer melts into its first token, a blank line ends a turn.
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
SENTENCES = [
    "user: what is two plus two? assistant: two plus two is four\n\n",
    "system you are\n assistant hello\n user what think the city",
]
SPECIAL = ["<s>", "<|im_end|>", "<pad>", "<|im_start|>"]
USER, ANSWER = {"role": "user", "content": "what is two?"}, {"role": "assistant", "content": "two is four"}
TURNS = [{"role": "system", "content": "hello"}, USER, {"role": "assistant", "content": "what?"}, USER, ANSWER]


def build_tokenizer(template: str | None = CHATML, post: Any = None, **special: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    if post is not None:
        tokenizer.post_processor = post
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"} | special
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<|im_start|>"], **names)
    wrapped.chat_template = template
    return wrapped


def with_specials(single: str) -> PreTrainedTokenizerFast:
    ids = [(token, SPECIAL.index(token)) for token in ("<s>", "<|im_end|>")]
    return build_tokenizer(post=processors.TemplateProcessing(single=single, special_tokens=ids))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def words_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "yes": 2, "no": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def row(where: str = "data.jsonl:17", **fields: Any) -> Row:
    return Row(fields, where)


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def template_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: bool) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, **options)["input_ids"]


def learned(example: Example) -> list[list[int]]:
    """The runs of learned ids."""
    runs: list[list[int]] = [[]]
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (token, -100)
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(token)
    return [run for run in runs if run]


def learned_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[str]:
    return [tokenizer.decode(run) for run in learned(example)]


# Reading


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_files_are_read_with_their_line_numbers(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    content = '\ufeff{"text": "é\u2028"}\r\n\n   \n{"text": "b"}'.encode()  # a byte-order mark, blank lines, no last line break
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert data.read_rows(str(path)) == [Row({"text": "é\u2028"}, f"{path}:1"), Row({"text": "b"}, f"{path}:4")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "data.jsonl:3: expected one JSON object in UTF-8, got a line that does not parse"),
        (b'{"text": "\xff"}', "data.jsonl:3: expected one JSON object in UTF-8"),
        (b'["text"]', "data.jsonl:3: expected a JSON object, got list"),
        (b"null", "data.jsonl:3: expected a JSON object, got null"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n')
    with pytest.raises(DataError, match=message):
        data.read_rows(str(path))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"data.jsonl: expected at least one row, got none"):
        data.read_rows(str(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone.jsonl: no such file"):
        data.read_rows(str(tmp_path / "gone.jsonl"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text\na\n")
    with pytest.raises(DataError, match=r"data.csv: expected a .jsonl or .jsonl.gz file"):
        data.read_rows(str(path))


@pytest.mark.parametrize("damage", [lambda content: content[:-12], lambda content: b"no gzip", lambda c: c[:12] + b"\xff\xff" + c[14:]])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"text": "abcdefgh"}\n' * 50)))
    with pytest.raises(DataError, match=r"data.jsonl.gz: cannot be read beyond line"):
        data.read_rows(str(path))


def test_a_dataset_folder_is_read_by_split(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (folder / "test.jsonl").write_text('{"text": "c"}\n')
    assert data.read_rows(str(folder), "test") == [Row({"text": "c"}, f"{folder}['test'][0]")]
    assert [r.fields["text"] for r in data.read_rows(str(folder))] == ["a", "b"]
    with pytest.raises(DataError, match=r"folder: split 'dev' of this data set"):
        data.read_rows(str(folder), "dev")


@pytest.mark.parametrize("error", [ConnectionError("offline"), FileNotFoundError("none"), ValueError("config name is missing")])
def test_a_hub_data_set_that_cannot_be_loaded_is_refused(monkeypatch, error):
    datasets = pytest.importorskip("datasets")

    def fail(source: str, split: str) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=f"some/name: split 'train' of this data set folder or hub id cannot be loaded: {error}"):
        data.read_rows("some/name")


def test_a_hub_data_set_without_rows_is_refused(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split: [])
    with pytest.raises(DataError, match="some/name: expected at least one row"):
        data.read_rows("some/name")


def test_a_hub_data_set_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'shadowpeft\[train\]'"):
        data.read_rows("some/name")


# Splitting


def test_a_split_parts_the_rows_and_depends_on_the_seed_alone():
    rows = [row(where=str(i), text="a") for i in range(40)]
    train, held_out = data.split_rows(rows, 0.25, seed=1)
    assert (len(train), len(held_out)) == (30, 10)
    for part in (train, held_out):
        assert [r.where for r in part] == sorted((r.where for r in part), key=int)
    assert {r.where for r in train} | {r.where for r in held_out} == {r.where for r in rows}
    assert data.split_rows(rows, 0.25, seed=1) == (train, held_out)
    assert data.split_rows(rows, 0.25, seed=2) != (train, held_out)
    # The same on every machine and Python.
    assert [r.where for r in held_out] == ["4", "7", "8", "16", "24", "25", "28", "30", "31", "36"]


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 0.001, 1), (2, 0.999, 1), (5, 0.001, 1), (5, 0.999, 4)])
def test_each_side_of_a_split_gets_a_row(count, fraction, expected):
    train, held_out = data.split_rows([row(text="a")] * count, fraction, seed=0)
    assert (len(train), len(held_out)) == (count - expected, expected)


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (0, 0.5), (9, 0.0), (9, 1.0), (9, -0.1), (9, float("nan"))])
def test_impossible_splits_are_refused(count, fraction):
    with pytest.raises(DataError, match="needs at least 2 rows" if count < 2 else "between 0 and 1"):
        data.split_rows([row(text="a")] * count, fraction, seed=0)


# Prompt and completion strings


def test_prompt_and_completion_are_tokenised_apart(tokenizer):
    pair = row(prompt="what is tw", completion="o plus two")
    example = data.encode(pair, tokenizer, 100)
    prompt, completion = ids_of(tokenizer, "what is tw"), ids_of(tokenizer, "o plus two")
    assert example["input_ids"] == [*prompt, *completion, tokenizer.eos_token_id]
    assert example["labels"] == [-100] * len(prompt) + [*completion, tokenizer.eos_token_id]
    assert example["input_ids"][:-1] != ids_of(tokenizer, "what is two plus two")  # else the test could not tell
    assert data.encode_prompt(pair, tokenizer) == prompt
    assert data.reference_answer(pair) == "o plus two"


@pytest.mark.parametrize("single", ["<s> $A", "<s> $A <|im_end|>", "$A <|im_end|>"])
def test_special_tokens_open_the_prompt_and_end_the_answer_once(single):
    tokenizer = with_specials(single)
    head = [tokenizer.bos_token_id] if "<s>" in single else []
    pair = row(prompt="what", completion="two")
    ids = [*head, *ids_of(tokenizer, "what"), *ids_of(tokenizer, "two"), tokenizer.eos_token_id]
    assert data.encode(pair, tokenizer, 100)["input_ids"] == ids
    assert data.encode_prompt(pair, tokenizer) == [*head, *ids_of(tokenizer, "what")]
    text = data.encode(row(text="two"), tokenizer, 100)
    assert text["input_ids"] == [*head, *ids_of(tokenizer, "two"), tokenizer.eos_token_id]


def test_an_end_that_the_completion_spells_out_is_not_doubled(tokenizer):
    spelled = data.encode(row(prompt="what", completion="two<|im_end|>"), tokenizer, 100)
    assert spelled == data.encode(row(prompt="what", completion="two"), tokenizer, 100)


def test_an_end_that_the_prompt_spells_out_is_kept(tokenizer):
    assert data.encode_prompt(row(prompt="what<|im_end|>"), tokenizer)[-1] == tokenizer.eos_token_id


def test_a_prompt_without_completion_can_be_generated_from_but_not_learned(tokenizer):
    for prompt_only in (row(prompt="what"), row(prompt="what", completion=None)):
        assert data.encode_prompt(prompt_only, tokenizer) == ids_of(tokenizer, "what")
        assert data.reference_answer(prompt_only) is None
        with pytest.raises(DataError, match=r"data.jsonl:17: training needs a completion"):
            data.encode(prompt_only, tokenizer, 100)


@pytest.mark.parametrize("single", ["$A", "<s> $A <|im_end|>"])
def test_an_empty_prompt_is_refused(single):
    tokenizer = with_specials(single)
    for refused in (data.encode_prompt, lambda r, t: data.encode(r, t, 100)):
        with pytest.raises(DataError, match=r"data.jsonl:17: the prompt '' encodes to no token"):
            refused(row(prompt="", completion="two"), tokenizer)


def test_a_tokenizer_without_an_end_of_sequence_token_is_refused():
    with pytest.raises(DataError, match=r"data.jsonl:17: the tokenizer has no end-of-sequence token"):
        data.encode(row(prompt="what", completion="two"), build_tokenizer(eos_token=None), 100)


# Plain text


def test_plain_text_is_learned_whole(tokenizer):
    text = row(text="two plus two")
    ids = [*ids_of(tokenizer, "two plus two"), tokenizer.eos_token_id]
    assert data.encode(text, tokenizer, 100) == {"input_ids": ids, "labels": ids}
    assert data.encode_prompt(text, tokenizer) == ids[:-1]
    assert data.reference_answer(text) is None


# Answers that cannot be encoded


@pytest.mark.parametrize("fields", [{"prompt": "yes", "completion": "no maybe"}, {"text": "no maybe"}])
def test_an_answer_with_an_unknown_token_is_refused(fields):
    with pytest.raises(DataError, match=r"data.jsonl:17: the tokenizer has no token for a part of 'no maybe' \(it gives <unk>\)"):
        data.encode(row(**fields), words_tokenizer(), 100)


def test_an_unknown_token_in_the_prompt_or_spelled_out_is_no_failure():
    assert data.encode(row(prompt="maybe", completion="no"), words_tokenizer(), 100)["input_ids"] == [0, 3, 1]
    assert data.encode(row(prompt="yes", completion="no <unk>"), words_tokenizer(), 100)["input_ids"] == [2, 3, 0, 1]


@pytest.mark.parametrize(
    "fields", [{"prompt": "what", "completion": ""}, {"text": ""}, {"messages": [USER, {"role": "assistant", "content": ""}]}]
)
def test_an_empty_answer_is_refused(tokenizer, fields):
    with pytest.raises(DataError, match=r"data.jsonl:17: expected an answer to learn, got ''"):
        data.encode(row(**fields), tokenizer, 100)


def test_a_chat_answer_with_an_unknown_token_is_refused():
    tokenizer = words_tokenizer()
    tokenizer.chat_template = PLAIN
    with pytest.raises(DataError, match=r"data.jsonl:17: the tokenizer has no token for a part of 'two is four'"):
        data.encode(row(messages=[USER, ANSWER]), tokenizer, 100)


# Chats


@pytest.mark.parametrize("template", [CHATML, THINKING, PLAIN])
@pytest.mark.parametrize("messages", [[USER, ANSWER], TURNS])
def test_a_chat_has_the_ids_of_the_template_and_of_generation(template, messages):
    tokenizer = build_tokenizer(template, processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    chat = row(messages=messages)
    assert data.encode(chat, tokenizer, 500)["input_ids"] == template_ids(tokenizer, messages)
    assert data.encode_prompt(chat, tokenizer) == template_ids(tokenizer, messages[:-1], add_generation_prompt=True)
    assert data.reference_answer(chat) == "two is four"


def test_each_assistant_turn_and_its_end_is_learned(tokenizer):
    example = data.encode(row(messages=TURNS), tokenizer, 500)
    assert learned_text(tokenizer, example) == ["what?<|im_end|>", "two is four<|im_end|>"]
    prompt = data.encode_prompt(row(messages=TURNS), tokenizer)
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][len(prompt) - 1] == -100
    assert example["labels"][len(prompt)] != -100


def test_a_template_without_generation_prompt_teaches_the_header_of_answers_but_no_user_turn():
    tokenizer = build_tokenizer(CHATML.partition("{% if")[0])
    example = data.encode(row(messages=TURNS), tokenizer, 500)
    header = "<|im_start|>assistant\n"
    assert learned_text(tokenizer, example) == [header + "what?<|im_end|>", header + "two is four<|im_end|>"]


def test_where_the_template_rewrites_earlier_turns_only_the_last_is_learned():
    tokenizer = build_tokenizer(THINKING)
    example = data.encode(row(messages=TURNS), tokenizer, 500)
    assert learned_text(tokenizer, example) == ["<think>\n\n</think>\n\ntwo is four<|im_end|>"]


def test_a_token_across_the_start_of_the_answer_is_learned():
    tokenizer = build_tokenizer(PLAIN)
    example = data.encode(row(messages=TURNS), tokenizer, 500)
    # " two" is one token here. The blank line, all that ends a turn, is learned.
    assert learned_text(tokenizer, example) == [" what?\n\n", " two is four\n\n"]


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_white_space_and_split_characters_are_learned(template, trim):
    # With trim_offsets (Llama 3) the offsets of spaces are empty; an emoji is several tokens with the same offsets.
    tokenizer = build_tokenizer(template, processors.ByteLevel(trim_offsets=trim))
    content = "🙂\n\ntwo   \n four 🙂"
    messages = [USER, {"role": "assistant", "content": content}, USER, {"role": "assistant", "content": content}]
    example = data.encode(row(messages=messages), tokenizer, 500)
    assert example["input_ids"] == template_ids(tokenizer, messages)
    expected = content + "<|im_end|>" if template == CHATML else content + "\n\n"
    assert learned_text(tokenizer, example) == [expected, expected]


def test_a_first_message_by_the_assistant_is_context(tokenizer):
    example = data.encode(row(messages=[{"role": "assistant", "content": "hello"}, USER, ANSWER]), tokenizer, 500)
    assert learned_text(tokenizer, example) == ["two is four<|im_end|>"]


def test_conversational_prompt_and_completion(tokenizer):
    pair = row(prompt=TURNS[:-1], completion=[ANSWER])
    example = data.encode(pair, tokenizer, 500)
    assert example["input_ids"] == template_ids(tokenizer, TURNS)
    assert learned_text(tokenizer, example) == ["two is four<|im_end|>"]  # not the assistant's turn in the prompt
    assert data.encode_prompt(pair, tokenizer) == template_ids(tokenizer, TURNS[:-1], add_generation_prompt=True)
    assert data.reference_answer(pair) == "two is four"
    both = data.encode(row(prompt=TURNS[:2], completion=TURNS[2:]), tokenizer, 500)
    assert learned_text(tokenizer, both) == ["what?<|im_end|>", "two is four<|im_end|>"]


@pytest.mark.parametrize("fields", [{"messages": TURNS[:-1]}, {"prompt": TURNS[:-1]}, {"prompt": TURNS}])
def test_a_chat_without_an_answer_can_be_generated_from_but_not_learned(tokenizer, fields):
    (messages,) = fields.values()
    assert data.encode_prompt(row(**fields), tokenizer) == template_ids(tokenizer, messages, add_generation_prompt=True)
    assert data.reference_answer(row(**fields)) is None
    with pytest.raises(DataError, match=r"data.jsonl:17: training needs an assistant's answer as the last message"):
        data.encode(row(**fields), tokenizer, 500)


def test_a_chat_of_the_assistant_alone_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"data.jsonl:17: expected a message before the assistant's"):
        data.encode(row(messages=[ANSWER]), tokenizer, 500)


def test_a_tokenizer_without_a_chat_template_is_refused():
    tokenizer = build_tokenizer(template=None)
    for refused in (data.encode_prompt, lambda r, t: data.encode(r, t, 100)):
        with pytest.raises(DataError, match=r"data.jsonl:17: the row is a chat but the tokenizer has no chat template"):
            refused(row(messages=[USER, ANSWER]), tokenizer)


def test_a_slow_tokenizer_is_refused_for_chats(monkeypatch):
    tokenizer = build_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(DataError, match=r"data.jsonl:17: chats need a fast tokenizer"):
        data.encode(row(messages=[USER, ANSWER]), tokenizer, 100)


def test_messages_that_the_template_refuses_are_named():
    tokenizer = build_tokenizer("{{ raise_exception('roles must alternate') }}")
    for refused in (data.encode_prompt, lambda r, t: data.encode(r, t, 100)):
        with pytest.raises(DataError, match=r"data.jsonl:17: the chat template refuses these messages \(roles must alternate\)"):
            refused(row(messages=[USER, ANSWER]), tokenizer)


def test_an_early_end_that_the_template_refuses_leaves_the_other_turns():
    refuses_system_alone = "{% if messages | length == 1 %}{{ raise_exception('no user') }}{% endif %}" + CHATML
    tokenizer = build_tokenizer(refuses_system_alone)
    example = data.encode(row(messages=[TURNS[0], ANSWER, USER, ANSWER]), tokenizer, 500)
    assert learned_text(tokenizer, example) == ["two is four<|im_end|>"]


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),  # as DeepSeek-R1's
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",  # drops the answer
    ],
)
def test_a_template_whose_prompt_does_not_lead_to_the_answer_is_refused(template):
    with pytest.raises(DataError, match=r"data.jsonl:17: the chat template renders the messages before the last answer"):
        data.encode(row(messages=[USER, ANSWER]), build_tokenizer(template), 500)


# Bad rows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "got the fields: none"),
        ({"question": "a", "text": None}, r"got the fields: question \(str\), text \(null\)"),
        ({"completion": "a"}, r"got the fields: completion \(str\)"),
        ({"text": 3}, "'text' must be a string, got int"),
        ({"prompt": 3, "completion": "a"}, "'prompt' must be a string, got int"),
        ({"prompt": "a", "completion": 3}, "'completion' must be a string, got int"),
        ({"prompt": "a", "completion": [ANSWER]}, "must both be strings or both be lists of messages, got str and list"),
        ({"prompt": [USER], "completion": "a"}, "must both be strings or both be lists of messages, got list and str"),
        ({"prompt": [USER], "completion": []}, "'completion' must be a list of at least one message, got an empty list"),
        ({"messages": []}, "'messages' must be a list of at least one message, got an empty list"),
        ({"messages": "a"}, "'messages' must be a list of at least one message, got str"),
        ({"messages": ["a"]}, r"messages\[0\] must be .*, got str"),
        ({"messages": [USER, {"role": "assistant"}]}, r"'messages\[1\].content' must be a string, got null"),
        ({"messages": [{"content": "a"}]}, r"'messages\[0\].role' must be a string, got null"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"'messages\[0\].content' must be a string, got list"),
        ({"text": "a\ud83d"}, "'text' holds half a character"),
    ],
)
def test_bad_rows_are_named(tokenizer, fields, message):
    for refused in (lambda r: data.encode(r, tokenizer, 100), lambda r: data.encode_prompt(r, tokenizer), data.reference_answer):
        with pytest.raises(DataError, match="^data.jsonl:17: .*" + message):
            refused(row(**fields))


def test_an_unknown_form_lists_the_accepted_ones(tokenizer):
    with pytest.raises(DataError) as raised:
        data.encode(row(question="a"), tokenizer, 100)
    assert all(form in str(raised.value) for form in ('{"messages":', '{"prompt": ..., "completion": ...}', '{"text": ...}'))


def test_messages_come_before_prompt_and_prompt_before_text(tokenizer):
    assert data.reference_answer(row(messages=[USER, ANSWER], prompt="a", completion="b", text="c")) == "two is four"
    assert data.reference_answer(row(messages=None, prompt="a", completion="b", text="c")) == "b"


# Length


def test_a_long_answer_is_cut_and_counted_once(tokenizer):
    long, short = row("long", prompt="what", completion="two plus two"), row("short", prompt="what", completion="t")
    whole = data.encode(long, tokenizer, 100)
    length = len(whole["input_ids"])
    with pytest.warns(UserWarning, match="longer than max_length") as caught:
        examples = data.encode_all([short, long, long], tokenizer, length - 1)
    (warning,) = caught
    assert f"2 of 3 rows are longer than max_length={length - 1} tokens" in str(warning.message)
    assert "the first is long" in str(warning.message)
    assert warning.filename == __file__
    assert examples[1] == {name: values[:-1] for name, values in whole.items()} == data.encode(long, tokenizer, length - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.encode_all([short, long], tokenizer, length) == [data.encode(short, tokenizer, 100), whole]


@pytest.mark.parametrize("fields", [{"prompt": "what is two", "completion": "four"}, {"messages": [USER, ANSWER]}])
def test_a_prompt_that_fills_the_length_is_refused(tokenizer, fields):
    length = len(data.encode_prompt(row(**fields), tokenizer))
    message = f"data.jsonl:17: the prompt has {length} tokens, which leaves no room for an answer within max_length={length}; raise"
    for refused in (data.encode, lambda r, t, n: data.encode_all([r], t, n)):
        with pytest.raises(DataError, match=message):
            refused(row(**fields), tokenizer, length)
    assert len(learned(data.encode(row(**fields), tokenizer, length + 1))[0]) == 1


def test_lengths_that_leave_nothing_to_learn_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"max_length must be at least 2 .* got 1"):
        data.encode(row(text="two plus two"), tokenizer, 1)


def test_texts_beyond_the_tokenizers_own_limit_do_not_warn(caplog):
    tokenizer = build_tokenizer(model_max_length=4)
    data.encode(row(text="two plus two " * 9), tokenizer, 4)
    data.encode(row(messages=[USER, ANSWER]), tokenizer, 100)
    data.encode_prompt(row(messages=[USER, ANSWER]), tokenizer)
    assert not caplog.records


def test_encoding_no_rows_is_refused(tokenizer):
    with pytest.raises(DataError, match="expected at least one row to encode, got none"):
        data.encode_all([], tokenizer, 100)


def test_read_rows_can_be_encoded(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    fields = [{"text": "two"}, {"prompt": "what", "completion": "two"}, {"messages": [USER, ANSWER]}]
    path.write_text("\n".join(json.dumps(f) for f in fields))
    rows = data.read_rows(str(path))
    assert data.encode_all(rows, tokenizer, 100) == [data.encode(r, tokenizer, 100) for r in rows]


@pytest.mark.parametrize(
    ("max_positions", "tokenizer_limit", "requested", "expected"),
    [
        (64, 32, None, 32),
        (64, 128, None, 64),
        (None, 32, None, 32),
        (64, None, None, 64),
        (64, 32, 64, 64),
        (None, 32, 99, 99),
        (64, 32, 2, 2),
    ],
)
def test_context_length(tokenizer, monkeypatch, max_positions, tokenizer_limit, requested, expected):
    monkeypatch.setattr(tokenizer, "model_max_length", tokenizer_limit or VERY_LARGE_INTEGER)
    assert data.context_length(max_positions, tokenizer, requested) == expected


@pytest.mark.parametrize(
    ("max_positions", "requested", "message"),
    [
        (64, 65, "at most the model's 64 tokens, got 65"),
        (64, 1, "got 1"),
        (None, 0, "at least 2 tokens, got 0"),
        (None, None, "set max_length"),
    ],
)
def test_impossible_context_lengths_are_refused(tokenizer, max_positions, requested, message):
    assert tokenizer.model_max_length == VERY_LARGE_INTEGER
    with pytest.raises(ConfigError, match=message):
        data.context_length(max_positions, tokenizer, requested)


# Batches


def test_batches_are_padded_on_the_right():
    examples = [Example(input_ids=[5, 6, 7], labels=[-100, 6, 7]), Example(input_ids=[8], labels=[8])]
    batch = Collator(pad_token_id=9)(examples)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 6, 7], [8, -100, -100]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert examples[1] == {"input_ids": [8], "labels": [8]}  # not padded in place


@pytest.mark.parametrize(("length", "multiple", "width"), [(3, 4, 4), (4, 4, 4), (5, 4, 8), (5, 1, 5)])
def test_batches_can_be_padded_to_a_multiple(length, multiple, width):
    batch = Collator(0, pad_to_multiple_of=multiple)([Example(input_ids=[1] * length, labels=[1] * length)])
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(1, width)}
    assert batch["attention_mask"].sum() == length


def test_padding_that_is_also_the_end_keeps_the_end_learned(tokenizer):
    rows = [row(text="two plus two"), row(text="two")]
    batch = Collator(tokenizer.eos_token_id)(data.encode_all(rows, tokenizer, 100))
    last = batch["attention_mask"][1].sum() - 1
    assert batch["labels"][1, last] == tokenizer.eos_token_id
    assert (batch["labels"][1, last + 1 :] == -100).all()
