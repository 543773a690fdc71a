"""Answers of a server that speaks OpenAI's protocol, with what it says of each token.

Only what routing is calibrated on: whole answers at temperature 0, several at a time.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
from tqdm.auto import tqdm

from shadowpeft.data.rows import Chat, Pair, Row, parse_form
from shadowpeft.errors import ConfigError, DataError, UserError
from shadowpeft.evaluation.scored import Scored, expected_answers
from shadowpeft.route.scores import TokenScores

# Likeliest tokens to ask for: a margin needs two.
_TOP = 2
_TRIES = 4
# Seconds before the second try; each later one waits twice as long.
_PAUSE = 0.5
# Statuses after which another try may succeed.
_BUSY = (429, 502, 503, 504)


class Endpoint:
    """A server's model.

    Args:
        url: of the server, such as http://127.0.0.1:8080/v1.
        model: what the server calls the model; by default its first one.
        key: what is shown to it.
        seconds: how long an answer may take.
        transport: how requests travel; the network by default.

    Raises:
        ConfigError: the address is none.
        UserError: the server cannot be reached or has no model.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        seconds: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ConfigError(f"expected an address such as http://127.0.0.1:8080/v1, got {url!r}")
        self.url = url.rstrip("/")
        self._seconds, self._transport = seconds, transport
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.model = model or self._first_model()

    def _client(self) -> httpx.Client:
        return httpx.Client(headers=self._headers, timeout=self._seconds, transport=self._transport)

    def _first_model(self) -> str:
        with self._client() as client:
            listed = self._json(client, "GET", "/models", None)
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{self.url}/models names no model; say which one with --model") from None

    def answers(
        self, rows: Sequence[Row], max_new_tokens: int | None, workers: int, progress: bool = True
    ) -> list[Scored]:
        """Answer rows at temperature 0; right is an answer that equals the expected one but for white space.

        Args:
            rows: rows that have an answer.
            max_new_tokens: tokens of an answer; by default as many as the longest one expected has bytes.
            workers: requests at a time.
            progress: show a progress bar, if standard error is a terminal.

        Raises:
            DataError: a row has no answer, or is a text without a question.
            UserError: the server fails, or gives no log-probabilities.
        """
        expected = expected_answers(rows)
        most = max_new_tokens or 1 + max(len(answer.encode()) for answer in expected)
        asked = [_request(row, self.model, most) for row in rows]
        replies = list(self._all(asked, workers, progress))
        return [
            Scored(answer, wanted, answer == wanted, tokens)
            for (answer, tokens), wanted in zip(replies, expected, strict=True)
        ]

    def _all(
        self, asked: Sequence[tuple[str, dict[str, Any]]], workers: int, progress: bool
    ) -> Iterator[tuple[str, TokenScores]]:
        def one(request: tuple[str, dict[str, Any]]) -> tuple[str, TokenScores]:
            path, body = request
            return _read(self._json(client, "POST", path, body), self.url)

        with self._client() as client, ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(one, request) for request in asked]
            try:
                # To tqdm, None means: hidden unless a terminal is there.
                shown = None if progress else True
                yield from (each.result() for each in tqdm(futures, "ask", leave=False, disable=shown))
            finally:
                # After a failure nothing more is asked.
                pool.shutdown(cancel_futures=True)

    def _json(self, client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Return what the server replies, asking again where it is busy."""
        for attempt in range(_TRIES):
            is_last = attempt + 1 == _TRIES
            try:
                response = client.request(method, self.url + path, json=body)
            except httpx.TimeoutException:
                raise UserError(f"{self.url} did not answer in time") from None
            except httpx.HTTPError as error:
                if is_last or not isinstance(error, httpx.ConnectError):
                    raise UserError(f"{self.url} cannot be reached ({type(error).__name__})") from None
            else:
                if response.status_code == 200:
                    return _parsed(response, self.url)
                if is_last or response.status_code not in _BUSY:
                    raise UserError(f"{self.url}{path} replied {response.status_code}: {_message(response)}")
            time.sleep(_PAUSE * 2**attempt)
        raise AssertionError("the last try returns or raises")


def _parsed(response: httpx.Response, url: str) -> Any:
    try:
        return response.json()
    except ValueError:
        raise UserError(
            f"{url} sent something that is not JSON; is it the address of a server's /v1?"
        ) from None


def _message(response: httpx.Response) -> str:
    """Return the beginning of what a server says of a failure, on one line."""
    return " ".join(response.text[:300].split()) or "nothing more"


def _request(row: Row, model: str, most: int) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a request."""
    form = parse_form(row)
    common = {"model": model, "max_tokens": most, "temperature": 0}
    if isinstance(form, Pair):
        return "/completions", {**common, "prompt": form.prompt, "logprobs": _TOP}
    assert isinstance(form, Chat), "a row with an answer is a chat or a pair"
    if form.options:
        raise DataError(
            f"{row.where}: {', '.join(form.options)} cannot be sent to a server; leave such rows out"
        )
    body = {**common, "messages": form.messages[:-1], "logprobs": True, "top_logprobs": _TOP}
    return "/chat/completions", body


def _read(reply: Any, url: str) -> tuple[str, TokenScores]:
    """Return the text of a reply and the scores of its tokens."""
    try:
        (choice,) = reply["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        logprobs = choice.get("logprobs")
        tokens = None if logprobs is None else _tokens(logprobs)
        answer = "" if text is None else str(text).strip()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{url} sent a reply that is none of OpenAI's protocol ({type(error).__name__}: {error})"
        ) from None
    if answer and (tokens is None or not tokens.logprobs):
        raise UserError(
            f"{url} gives no log-probabilities, which every score but 'deferral' reads; start the server so "
            "that it answers 'logprobs'"
        )
    return answer, tokens or TokenScores(())


def _tokens(logprobs: Mapping[str, Any]) -> TokenScores:
    """Read log-probabilities as chats have them (`content`), or in columns as older completions have."""
    if logprobs.get("content") is not None:
        entries = list(logprobs["content"])
        # llama.cpp tells of the token that ends an answer, which has no text, in chats that are no streams
        # alone, and a gateway reads streams. What has no text and bytes that are not known is a part of a
        # letter.
        if entries and entries[-1]["token"] == "" and entries[-1].get("bytes", ()) is not None:
            entries.pop()
        chosen = [entry["logprob"] for entry in entries]
        tops = [[top["logprob"] for top in entry.get("top_logprobs") or ()] for entry in entries]
        entropies = [entry.get("entropy") for entry in entries]
    else:
        chosen = logprobs.get("token_logprobs") or []
        tops = [list((top or {}).values()) for top in logprobs.get("top_logprobs") or [None] * len(chosen)]
        # Another gateway of ours gives these, other servers do not.
        entropies = logprobs.get("entropies") or [None] * len(chosen)
    margins = [_margin(top) for top in tops]
    return TokenScores(_whole(chosen, float) or (), _whole(margins, float), _whole(entropies, float))


def _margin(top: Sequence[float]) -> float | None:
    if len(top) < _TOP:
        return None
    first, second, *_ = sorted(map(float, top), reverse=True)
    return first - second


def _whole(values: Sequence[Any], kind: Callable[[Any], float]) -> tuple[float, ...] | None:
    """Return the values if there is one for every token."""
    return None if any(value is None for value in values) else tuple(map(kind, values))
