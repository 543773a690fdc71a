"""Hand a compiled kernel its arguments, without Triton's launcher looking at each of them again."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

# What a pointer has to be a multiple of for Triton to compile wide loads.
_ALIGNED = 16


class Call:
    """A kernel with its grid and its constants; `call(*arguments)` launches it on the current stream of the current device.

    At each launch Triton's launcher works out what to compile for: of each tensor the type and whether it begins at a multiple of 16 bytes,
    of each number the type. With some forty arguments that takes the host longer than most of these kernels run. Who keeps a `Call` gives
    it arguments of one kind (`kinds_of`) each time, so that only the first goes through the launcher; the others go to the compiled kernel
    that it gave back, as in Triton's tutorial on the fused softmax.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], constants: dict[str, Any], **options: Any) -> None:
        """Keep a jitted kernel, the number of its programs, the values of its constants by name, and what Triton compiles it with."""
        self._kernel, self._grid = kernel, (*grid, 1, 1)[:3]
        self._constants, self._options = constants, options
        self._compiled: Any = None
        self._last: tuple[Any, ...] = ()

    def __call__(self, *arguments: Tensor | float | None) -> None:
        """Launch; tensors and numbers in the kernel's order, without the constants that follow them."""
        if self._compiled is not None:
            self._compiled(*arguments, *self._last)
            return
        compiled = self._kernel[self._grid](*arguments, **self._constants, **self._options)
        if compiled is not None:  # Triton's interpreter compiles nothing
            self._last = tuple(self._constants[name] for name in self._kernel.arg_names[len(arguments) :])
            self._compiled = compiled[self._grid]


def kinds_of(tensors: Iterable[Tensor | None]) -> tuple[object, ...]:
    """Tell tensors apart as Triton does: by type, by alignment, and whether there is one. What torch allocates anew is always aligned."""
    return tuple(
        None if tensor is None else (tensor.dtype, tensor.data_ptr() % _ALIGNED == 0) for tensor in tensors
    )
