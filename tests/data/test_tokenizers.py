"""Tokenizers: those that differ are refused for a shadow, and the ids that pad a batch and end an answer."""

import json
from types import SimpleNamespace

import pytest
from helpers.tokenizers import build_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from shadowpeft import ConfigError
from shadowpeft.data.tokenizers import padding_id, refuse_other_tokenizer, stop_ids


def changed(change) -> PreTrainedTokenizerFast:
    """The tokenizer of the tests with its file edited."""
    content = json.loads(build_tokenizer().backend_tokenizer.to_str())
    change(content)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<|im_end|>"
    )


def swap(content, one: str, other: str) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def test_the_same_tokenizer_passes():
    """Special roles and templates may differ, as a base's and its chat version's do."""
    refuse_other_tokenizer(build_tokenizer(), build_tokenizer(None))
    refuse_other_tokenizer(build_tokenizer(), build_tokenizer(eos_token="<pad>"))


def test_tokens_that_differ_are_named():
    with pytest.raises(
        ConfigError,
        match=r"id \d+ is 'A' to the base and 'B' to the shadow; "
        r"id \d+ is 'B' to the base and 'A' to the shadow; ",
    ):
        refuse_other_tokenizer(build_tokenizer(), changed(lambda content: swap(content, "A", "B")))


def test_only_the_first_few_are_named():
    def swap_many(content) -> None:
        for one, other in ("AB", "CD", "EF"):
            swap(content, one, other)

    with pytest.raises(ConfigError, match=r"\(and 3 more\); choose a shadow with the base's"):
        refuse_other_tokenizer(build_tokenizer(), changed(swap_many))


def test_a_token_that_one_lacks_is_named():
    """Catches a comparison over the ids of one side alone."""
    longer = build_tokenizer()
    longer.add_tokens(["<think>"])
    size = len(build_tokenizer())
    with pytest.raises(ConfigError, match=rf"id {size} is no token to the base and '<think>' to the shadow"):
        refuse_other_tokenizer(build_tokenizer(), longer)
    with pytest.raises(ConfigError, match=rf"id {size} is '<think>' to the base and no token to the shadow"):
        refuse_other_tokenizer(longer, build_tokenizer())


def test_one_vocabulary_with_other_merges_is_refused():
    """Catches a comparison of vocabularies alone: without merges, text falls into single letters."""
    with pytest.raises(
        ConfigError,
        match=r"cut the text .The quick.* differently: from token \d+ on the base reads '.*', the shadow '",
    ):
        refuse_other_tokenizer(build_tokenizer(), changed(lambda content: content["model"].update(merges=[])))


def test_padding_is_the_padding_token_or_the_end_or_anything():
    """Catches an id of 0 that counts as missing."""
    assert padding_id(build_tokenizer()) == build_tokenizer().convert_tokens_to_ids("<pad>") == 2
    assert padding_id(build_tokenizer(pad_token=None)) == 1
    assert padding_id(build_tokenizer(pad_token="<s>")) == 0
    assert padding_id(build_tokenizer(pad_token=None, eos_token=None)) == 0


@pytest.mark.parametrize(
    ("given", "eos", "expected"),
    [
        (7, "<|im_end|>", [1, 7]),
        ([9, 1, 7], "<|im_end|>", [1, 7, 9]),
        (None, "<|im_end|>", [1]),
        (7, None, [7]),
        (0, "<s>", [0]),
        (None, None, None),
    ],
)
def test_an_answer_ends_at_the_ids_of_model_and_tokenizer(given, eos, expected):
    """Catches ids of one side alone, and an id of 0 that counts as missing."""
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=given))
    assert stop_ids(model, build_tokenizer(eos_token=eos)) == expected
    if given is None:
        assert stop_ids(SimpleNamespace(generation_config=None), build_tokenizer(eos_token=eos)) == expected
