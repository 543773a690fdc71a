"""Small tokenizers made on the spot, with and without a chat template."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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
