"""A second face for a module: the same object state, with a few attributes answered from elsewhere.

The base is lent to us, so nothing on it may change. A view of the base's decoder shares the decoder's `__dict__` (so its
weights, flags and hooks are always the live ones) but answers `layers` with blocks that inject and update. A view of an
implicit shadow answers `embed_tokens` with the base's table, so that the table belongs to the base alone.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from torch import nn
from transformers import PretrainedConfig


class Borrow:
    """An attribute that lives on another module: looked up at each use, so that it is never stale."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self) -> nn.Module:
        """Return the module as it is now."""
        return self.owner.get_submodule(self.name)


class StandIns:
    """The list of a decoder's blocks, each stood for by `stand_in(blocks, index, config)`, which finds its block at each call."""

    def __init__(
        self,
        stand_in: Callable[[nn.ModuleList, int, PretrainedConfig], Any],
        blocks: nn.ModuleList,
        config: PretrainedConfig,
    ) -> None:
        self.all = [stand_in(blocks, index, config) for index in range(len(blocks))]

    def __call__(self) -> list[Any]:
        """Return the list."""
        return self.all


class View:
    """A callable face of `module` on which each name of `answers` gives the result of calling its value.

    Not an `nn.Module`, so whoever keeps one does not own the module's parameters twice. Copying and pickling rebuild it.
    """

    def __init__(self, module: nn.Module, answers: Mapping[str, Callable[[], Any]]) -> None:
        self.module, self.answers = module, dict(answers)
        face_type = _face_type(type(module), tuple(sorted(answers)))  # type: ignore[arg-type]
        self._face = object.__new__(face_type)
        object.__setattr__(self._face, "__dict__", module.__dict__)
        face_type._answers.__set__(self._face, self.answers)  # type: ignore[attr-defined]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module through its face."""
        return self._face(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self.module, self.answers)


@cache
def _face_type(cls: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Make the subclass whose properties shadow `names`; it goes by its parent's name, which transformers looks up by string."""
    body: dict[str, Any] = {name: _answer(name) for name in names}
    # accelerate and torch.compile put these two on the instance, bound to the module itself: a face that used them would
    # run the module without its answers. Properties win over the shared `__dict__`.
    body["forward"] = property(lambda face: partial(cls.forward, face))
    body["_compiled_call_impl"] = property(lambda face: None)
    body.update(__slots__=("_answers",), __module__=cls.__module__, __qualname__=cls.__qualname__)
    return type(cls.__name__, (cls,), body)


def _answer(name: str) -> property:
    return property(lambda face: face._answers[name]())
