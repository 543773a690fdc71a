"""The answers of `generate`: one prompt after the other, streamed to the terminal or as JSON."""

import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from shadowpeft import arch
from shadowpeft.cli._models import print_result
from shadowpeft.data.encode import Opening, encode_opening, stated_limit
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id, stop_ids
from shadowpeft.evaluation.answers import encode_prompts
from shadowpeft.generate import DraftedOutput, DraftReport


class Sampling(NamedTuple):
    """How the tokens of an answer are chosen; the flags of `generate` explain each field.

    `drafts` has the arguments of `ShadowedModel.generate` that make the shadow draft, or none.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    drafts: dict[str, Any]


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    raw: bool,
    sampling: Sampling,
    as_json: bool,
    speed: bool = False,
) -> None:
    """Print the answer to each prompt, token by token, or all as JSON at the end.

    Args:
        model: what answers, in evaluation mode.
        tokenizer: its tokenizer.
        prompts: the texts to answer.
        raw: leave out the tokenizer's chat template.
        sampling: how the tokens are chosen.
        as_json: print all answers as JSON.
        speed: tell how fast each answer came, beside it in the JSON or on standard error.

    Raises:
        DataError: a prompt leaves no room for its answer.
    """
    limit = stated_limit(arch.context_of(model.config), tokenizer)
    chat = tokenizer.chat_template is not None and not raw
    if chat:
        _warn_of_rendered(prompts, tokenizer)
    rows = _rows(prompts, chat)
    openings = [encode_opening(row, tokenizer) for row in rows]
    # Tokens of the answer are counted without what the template opens it with.
    most = sampling.max_new_tokens + max(opening.length for opening in openings)
    encoded = encode_prompts(rows, tokenizer, limit, most)
    transformers.set_seed(sampling.seed)
    results = []
    for text, ids, opening in zip(prompts, encoded, openings, strict=True):
        streamer = None if as_json else _Streamer(tokenizer, opening)
        allowed = sampling._replace(max_new_tokens=sampling.max_new_tokens + opening.length)
        began = time.perf_counter()
        new_T, report = _generate(model, tokenizer, ids, sampling=allowed, streamer=streamer)
        seconds = time.perf_counter() - began
        whole = str(tokenizer.decode(new_T, skip_special_tokens=True))
        reply = opening.content_of(whole)
        tokens = len(new_T) - (opening.length if reply != whole else 0)
        result = {"prompt": text, "answer": reply, "tokens": tokens}
        if speed:
            result |= _speed(len(new_T), seconds, report)
        if speed and not as_json:
            print(_speed_line(result), file=sys.stderr)
        results.append(result)
    if as_json:
        print_result({"answers": results}, as_json=True)


class _Streamer(TextStreamer):
    """A printer of an answer as it is generated, without what the chat template opens it with.

    Args:
        tokenizer: the model's tokenizer.
        opening: what the template opens the answer with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, opening: Opening) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._opening = opening
        self._held: str | None = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece, or hold it back while it may be part of the opening."""
        if self._held is not None:
            self._held += text
            begun, opening = self._held.strip(), self._opening.text.strip()
            if opening and opening.startswith(begun) and not stream_end:
                return
            text, self._held = self._opening.content_of(self._held), None
        super().on_finalized_text(text, stream_end)


def _warn_of_rendered(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    found = [token for token in tokenizer.all_special_tokens if any(token in text for text in prompts)]
    if found:
        warnings.warn(
            f"a prompt holds the special token {found[0]}, and the chat template is put around it all the "
            "same; give --raw if the prompt is rendered already",
            stacklevel=2,
        )


def _rows(prompts: Sequence[str], chat: bool) -> list[Row]:
    """Make a row of each prompt: the turn of a user, or a text to be continued."""
    rows = []
    for number, text in enumerate(prompts, start=1):
        fields: dict[str, Any] = {"prompt": text}
        if chat:
            fields = {"messages": [{"role": "user", "content": text}]}
        rows.append(Row(fields, f"prompt {number}"))
    return rows


def _speed(tokens: int, seconds: float, report: DraftReport | None) -> dict[str, float]:
    """Return how fast an answer of so many tokens came, those that the template opens it with among them."""
    found = {"seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 2)}
    if report is not None:
        found["tokens_per_round"] = round(report.tokens_per_round, 2)
    return found


def _speed_line(result: dict[str, Any]) -> str:
    line = f"{result['tokens_per_second']:g} tokens/s ({result['tokens']} tokens in {result['seconds']:g} s"
    if "tokens_per_round" in result:
        line += f", {result['tokens_per_round']:g} a pass of the base"
    return f"{line})"


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    sampling: Sampling,
    streamer: TextStreamer | None,
) -> tuple[Tensor, DraftReport | None]:
    """Return the ids that answer a prompt, (T,), and how well drafting went, if the shadow drafted."""
    ids_1T = torch.tensor([ids], device=model.device)
    # Without sampling, transformers warns of every setting that only sampling reads.
    settings: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        settings = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    out = model.generate(  # type: ignore[operator]
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=padding_id(tokenizer),
        eos_token_id=stop_ids(model, tokenizer),
        streamer=streamer,
        return_dict_in_generate=True,
        **sampling.drafts,
        **settings,
    )
    report = out.draft_report if isinstance(out, DraftedOutput) else None
    return out.sequences[0, len(ids) :], report
