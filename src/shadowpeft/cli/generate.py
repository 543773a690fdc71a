"""`shadowpeft generate`."""

import os
import sys

from shadowpeft.cli._choice import Dtype, ModelChoice
from shadowpeft.errors import ConfigError


def run(
    model: str,
    adapter: str | None = None,
    prompt: list[str] | str | None = None,
    detached: bool = False,
    raw: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    draft: str | None = None,
    draft_tokens: int | str | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    speed: bool = False,
    json: bool = False,
) -> None:
    """Answer prompts with a base and its adapter, with the shadow alone, or (without an adapter) with the
    base.

    Args:
        model: folder or hub id of the base, or of an exported model; of a multimodal checkpoint its language
            model is taken, which reads text alone.
        adapter: folder or hub id of the adapter.
        prompt: a prompt; may be given several times; by default one is read from standard input. Where the
            tokenizer has a chat template, it is put around the prompt.
        detached: answer with the shadow alone.
        raw: continue the prompt as it is, without the tokenizer's chat template; right for an adapter trained
            on prompt and completion rows, which are learned without the template.
        max_new_tokens: the most tokens of an answer.
        temperature: 0 to take the likeliest token at every step, above 0 to sample.
        top_p: sample from the likeliest tokens that together have this probability.
        top_k: sample from this many of the likeliest tokens; 0 for all.
        seed: decides what is sampled.
        draft: shadow to let the adapter's shadow propose tokens, which one pass of the base then verifies:
            the same answers, in less time where it guesses well.
        draft_tokens: how many tokens the base reads in a pass, the last one of the text among them; auto, the
            default, for as many as pay.
        dtype: type of the weights; auto for the one they are stored in.
        device: auto, cpu, cuda, cuda:1, mps.
        speed: tell tokens a second of each answer, from the reading of its prompt to its last token, and
            with drafts the tokens that a pass of the base gave; on standard error, with json beside the
            answer. The first answer of a process takes longer.
        json: print the answers as JSON, whole, where they would else be printed token by token.
    """
    prompts = _prompts(prompt)
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ConfigError(
            "max_new_tokens must be 1 or more, temperature and top_k 0 or more, "
            "and top_p above 0 and at most 1"
        )

    if draft is not None and (adapter is None or detached):
        raise ConfigError(
            "the shadow drafts for the base that it stands beside: give --draft with --adapter, and without "
            "--detached"
        )

    from shadowpeft.cli import _answers, _models
    from shadowpeft.generate import drafting_of

    drafting_of(draft, draft_tokens)  # raises if one of them is not what it may be
    choice = ModelChoice(model, adapter, detached, dtype=dtype, device=device)
    loaded, tokenizer = _models.load(choice)
    drafts = {} if draft is None else {"draft": draft, "draft_tokens": draft_tokens}
    sampling = _answers.Sampling(max_new_tokens, temperature, top_p, top_k=top_k, seed=seed, drafts=drafts)
    _answers.answer(loaded, tokenizer, prompts, raw=raw, sampling=sampling, as_json=json, speed=speed)


def _prompts(given: list[str] | str | None) -> list[str]:
    if isinstance(given, str):
        given = [given]
    return [_typed(text) for text in given or []] or [_read_stdin()]


def _typed(text: str) -> str:
    """Return a word of the command line read as UTF-8, which it is where the locale's encoding is another."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        return text


def _read_stdin() -> str:
    if sys.stdin.isatty():
        raise ConfigError("no prompt: give --prompt, or pipe one in")
    try:
        text = sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt on standard input must be UTF-8: {error}") from error
    if not text:
        raise ConfigError("no prompt: standard input is empty")
    return text
