"""Small tokenizers made on the spot, with and without a chat template, and what they make of rows."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from shadowpeft.data.encode import Example

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: the last answer gets an empty thinking block, earlier answers lose theirs.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No special tokens: the space before the answer is part of its first token, a blank line ends a turn.
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

SENTENCES = [
    "user: what is two plus two? assistant: two plus two is four\n\n",
    "system you are\n assistant hello\n user what think the city",
]

SPECIAL = ["<s>", "<|im_end|>", "<pad>", "<|im_start|>"]


def build_tokenizer(
    template: str | None = CHATML, post: Any = None, **special: str | None
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES * 3,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if post is not None:
        tokenizer.post_processor = post
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"} | special
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<|im_start|>"], **names
    )
    wrapped.chat_template = template
    return wrapped


def with_specials(single: str) -> PreTrainedTokenizerFast:
    ids = [(token, SPECIAL.index(token)) for token in ("<s>", "<|im_end|>")]
    return build_tokenizer(post=processors.TemplateProcessing(single=single, special_tokens=ids))


def words_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "yes": 2, "no": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def template_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any
) -> list[int]:
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
