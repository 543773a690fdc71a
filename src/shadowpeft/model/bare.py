"""The switch of `disabled()`: which calls run the bare base."""

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

from shadowpeft.errors import UserError


class _Entry:
    """One `disabled()` context, and the threads that were running when it was entered."""

    def __init__(self) -> None:
        self.running = weakref.WeakSet(threading.enumerate())


# The entries that this context is inside of, whichever model's. A context is that of a thread or of an
# asyncio task, and asyncio.to_thread() takes it along.
_entries: ContextVar[tuple[_Entry, ...]] = ContextVar("bare_entries", default=())


class BareSwitch:
    """Whether the calls of one model run the bare base. A copy of it is off."""

    def __init__(self) -> None:
        self._open: dict[_Entry, None] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Turn it on while the context lasts, for this thread or asyncio task."""
        entry = _Entry()
        self._open[entry] = None
        _entries.set((*_entries.get(), entry))
        try:
            yield
        finally:
            del self._open[entry]
            _entries.set(tuple(other for other in _entries.get() if other is not entry))

    def is_on_here(self) -> bool:
        """Return whether this thread or task turned it on."""
        # Asked first, because a compiled graph cannot look at a context.
        return bool(self._open) and any(entry in self._open for entry in _entries.get())

    def is_on(self, adapter: str | None) -> bool:
        """Return whether a call runs the bare base.

        A thread does not inherit the context it is started in, so one that was started meanwhile may want
        either.

        Args:
            adapter: the adapter that the call names; a call that names one wants it.

        Raises:
            UserError: the thread of the call was started while another one had turned it on.
        """
        if not self._open or self.is_on_here():
            return bool(self._open)
        thread = threading.current_thread()
        if adapter is None and any(thread not in entry.running for entry in list(self._open)):
            raise UserError(
                "this thread was started while another was inside disabled(), which a thread does not "
                "inherit: enter disabled() in this thread too, or name the adapter (adapter=...)"
            )
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        return BareSwitch, ()


class bare_where_read:
    """A method that runs bare if it was read inside `disabled()`, in whatever thread it is called.

    So `Thread(target=model.generate)`, as streamers need it, does there what `model.generate()` does.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        functools.update_wrapper(self, method)  # type: ignore[arg-type]
        self._method = method

    def __get__(self, model: Any, owner: type | None = None) -> Callable[..., Any]:
        if model is None:
            return self._method
        method = MethodType(self._method, model)
        if not model._bare.is_on_here():
            return method

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with model.disabled():
                return method(*args, **kwargs)

        return call
