"""Answer prompts one by one, streaming to the terminal."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from shadowpeft import arch
from shadowpeft.data.encode import context_length
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id, stop_ids
from shadowpeft.evaluation.answers import encode_prompts


class Sampling(NamedTuple):
    """How to choose tokens; see the flags of `generate`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    raw: bool,
    sampling: Sampling,
    as_json: bool,
) -> None:
    """Print the answer to each prompt, token by token, or all as JSON at the end.

    Raises:
        DataError: a prompt leaves no room for its answer.
    """
    chat = tokenizer.chat_template is not None and not raw
    rows = [
        Row(
            {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text},
            f"prompt {number}",
        )
        for number, text in enumerate(prompts, start=1)
    ]
    limit = context_length(arch.context_of(model.config), tokenizer, None)
    streamer = None if as_json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    choice = (
        {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        if sampling.temperature
        else {}
    )
    transformers.set_seed(sampling.seed)
    results = []
    for text, ids in zip(
        prompts, encode_prompts(rows, tokenizer, limit, sampling.max_new_tokens), strict=True
    ):
        ids_1T = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            out_1T = model.generate(  # type: ignore[operator]
                ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                max_new_tokens=sampling.max_new_tokens,
                do_sample=bool(choice),
                pad_token_id=padding_id(tokenizer),
                eos_token_id=stop_ids(model, tokenizer),
                streamer=streamer,
                **choice,
            )
        new = out_1T[0, len(ids) :]
        results.append(
            {"prompt": text, "answer": tokenizer.decode(new, skip_special_tokens=True), "tokens": len(new)}
        )
    if as_json:
        print(json.dumps({"answers": results}, indent=2, ensure_ascii=False))
