"""Training examples: their order, and those that are too long."""

from helpers.tiny_tasks import TASKS
from transformers import AutoTokenizer

from shadowpeft.compare import examples
from shadowpeft.compare.tasks.base import Item


def test_order_uses_every_row_once_before_any_twice() -> None:
    """Catches sampling with replacement, and a second pass in the order of the first."""
    order = examples.ordered(range(10), 25, seed=3)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order == examples.ordered(range(10), 25, seed=3) != examples.ordered(range(10), 25, seed=4)


def test_long_texts_are_cut_and_long_prompts_dropped(tiny: str) -> None:
    """Catches answers that are cut off, on which a model would learn to stop early, and a text without
    tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    long, short = Item("cat " * 50, 1, " dog"), Item("cat", 0, " dog")
    (kept,) = examples.encode_items(TASKS["questions"], [long, short], tokenizer, 16)
    assert kept["input_ids"][-1] == kept["labels"][-1] == tokenizer.eos_token_id
    texts = examples.encode_items(TASKS["classes"], [long, short, Item("", 2)], tokenizer, 16)
    assert [len(text["input_ids"]) for text in texts] == [16, len(tokenizer("cat")["input_ids"]), 1]
