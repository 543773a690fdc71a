"""What can go wrong with a request: a status and a body as OpenAI's clients know them."""

from typing import Any

from shadowpeft.errors import UserError

# OpenAI's word for what went wrong, by status.
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(UserError):
    """A request that is not answered.

    Args:
        message: one sentence for the caller.
        status: the HTTP status.
        param: the field that is at fault.
        code: a word for programs.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """Return the body of the reply."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that the status asks for."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


class UpstreamError(RequestError):
    """A server elsewhere did not answer, or not as it must.

    Args:
        message: one sentence for the caller.
        status: the HTTP status.
        kind: why, for counting: `unreachable`, `timeout`, `status`, `garbage`, `cut` or `open`.
        again: whether another try may succeed.
    """

    def __init__(self, message: str, status: int = 502, kind: str = "garbage", again: bool = False) -> None:
        super().__init__(message, status, code=f"upstream_{kind}", retry_after=1 if status == 503 else None)
        self.kind, self.again = kind, again


def internal() -> RequestError:
    """Return the reply to a request that failed by a fault of ours, which is told to the log alone."""
    return RequestError("the server failed; its log says why", 500, code="internal_error")


def where_of(error: BaseException) -> str:
    """Say an error's type and where it was raised, without its message, in which there may be a prompt."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f" in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}{place}"
