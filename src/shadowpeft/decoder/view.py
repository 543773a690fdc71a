"""Views of a module: the same weights and state, with a few attributes replaced.

The base is lent to us, so nothing on it may change. A view of the base's decoder shares the decoder's
`__dict__` (so its weights, flags and hooks are always the current ones), but its attribute `layers` is a list
of blocks that inject and update. In a view of an implicit shadow, `embed_tokens` is the base's table, so that
only the base owns the table.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from torch import nn
from transformers import PretrainedConfig


class BorrowedModule:
    """A replacement: a module of another owner, looked up at each use, so that it is never out of date."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self) -> nn.Module:
        """Return the module as it is now."""
        return self.owner.get_submodule(self.name)


class ListedBlocks:
    """A replacement: a decoder's own blocks, looked up at each use, as a plain list.

    Most decoders loop over a slice of their blocks. A slice of an `nn.ModuleList` is a new module, which the
    host would make for every token.
    """

    def __init__(self, decoder: nn.Module, name: str) -> None:
        self.decoder, self.name = decoder, name

    def __call__(self) -> list[nn.Module]:
        """Return the blocks as they are now."""
        blocks = self.decoder.get_submodule(self.name)
        assert isinstance(blocks, nn.ModuleList)
        return list(blocks)


class WrappedBlocks:
    """A replacement: a list with one wrapper for each of a decoder's blocks.

    Args:
        wrap: makes the wrapper from the blocks, an index and the decoder's configuration. A wrapper finds its
            block at each call, so that it is never out of date.
        blocks: the decoder's blocks.
        config: the decoder's configuration.
    """

    def __init__(
        self,
        wrap: Callable[[nn.ModuleList, int, PretrainedConfig], Any],
        blocks: nn.ModuleList,
        config: PretrainedConfig,
    ) -> None:
        self.wrappers = [wrap(blocks, index, config) for index in range(len(blocks))]

    def __call__(self) -> list[Any]:
        """Return the wrappers."""
        return self.wrappers


class ModuleView:
    """A callable view of `module` in which each name of `replacements` is what calling its value returns.

    Not an `nn.Module`, so a module that keeps a view does not register the parameters a second time. Copying
    and pickling build a new view.
    """

    def __init__(self, module: nn.Module, replacements: Mapping[str, Callable[[], Any]]) -> None:
        self.module, self.replacements = module, dict(replacements)
        view_class = _view_class(type(module), tuple(sorted(replacements)))  # type: ignore[arg-type]
        self._instance = object.__new__(view_class)
        # Not by nn.Module's __setattr__, which needs the state that is only being set here. The replacements
        # go into a slot, because the `__dict__` is the module's own.
        object.__setattr__(self._instance, "__dict__", module.__dict__)
        view_class._replacements.__set__(self._instance, self.replacements)  # type: ignore[attr-defined]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with its attributes replaced."""
        return self._instance(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return ModuleView, (self.module, self.replacements)


@cache
def _view_class(cls: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Make the subclass whose properties replace `names`."""
    body: dict[str, Any] = {name: _replaced(name) for name in names}
    # accelerate and torch.compile set these two on the instance, bound to the module itself: a view that used
    # them would run the module without the replacements. Properties win over the shared `__dict__`.
    body["forward"] = property(lambda view: partial(cls.forward, view))
    body["_compiled_call_impl"] = property(lambda view: None)
    # The subclass has its parent's name, because transformers looks classes up by name.
    body.update(__slots__=("_replacements",), __module__=cls.__module__, __qualname__=cls.__qualname__)
    return type(cls.__name__, (cls,), body)


def _replaced(name: str) -> property:
    return property(lambda view: view._replacements[name]())
