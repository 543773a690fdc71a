"""Hand a compiled kernel its arguments, without Triton's launcher looking at each of them again.

Beside it stands what all launches share.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# What a pointer has to be a multiple of for Triton to compile wide loads.
ALIGNED = 16
# Plans kept at once, of some kilobytes each. There is one for each number of rows (batches are padded to many
# lengths), and forward and backward passes have their own.
PLANS = 1024


class Call:
    """A kernel with its grid and its constants; `call(*arguments)` launches it on the current stream.

    At each launch Triton's launcher works out what to compile for: of each tensor the type and whether it
    begins at a multiple of 16 bytes, of each number the type. With some forty arguments that takes the host
    longer than most of these kernels run. So only the first launch goes through the launcher, and the others
    go to the compiled kernel that it returned, as in Triton's tutorial on the fused softmax. The arguments
    have to be of the same kind (`kinds_of`) each time.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], constants: dict[str, Any], **options: Any) -> None:
        """Prepare the launches.

        Args:
            kernel: a jitted kernel.
            grid: the number of its programs, in up to three dimensions.
            constants: the values of its constants by name.
            options: what Triton compiles it with.
        """
        self._kernel, self._grid = kernel, (*grid, 1, 1)[:3]
        self._constants, self._options = constants, options
        self._compiled: Any = None
        self._last: tuple[Any, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether the kernel has been compiled and loaded."""
        return self._compiled is not None

    def __call__(self, *arguments: Tensor | float | None) -> None:
        """Launch; tensors and numbers in the kernel's order, without the constants that follow them."""
        if self._compiled is not None:
            self._compiled(*arguments, *self._last)
            return
        compiled = self._kernel[self._grid](*arguments, **self._constants, **self._options)
        if compiled is not None:  # Triton's interpreter compiles nothing
            self._last = tuple(self._constants[name] for name in self._kernel.arg_names[len(arguments) :])
            self._compiled = compiled[self._grid]

    def at(self, places: Sequence[int | None], tensors: Sequence[Tensor | None], *numbers: float) -> None:
        """Launch, with the tensors' places in memory known: a compiled kernel takes these.

        It would ask each tensor for its place, and the driver whether a GPU can read there.

        Args:
            places: of the tensors; all on the device of the launch.
            tensors: come first among the kernel's arguments. They must live until this returns.
            *numbers: the arguments that follow.
        """
        if self._compiled is None:
            self(*tensors, *numbers)
            return
        self._compiled(*places, *numbers, *self._last)


def kinds_of(tensors: Iterable[Tensor | None]) -> tuple[object, ...]:
    """Return what Triton distinguishes tensors by: the type and the alignment, or `None` for a missing one.

    What torch allocates anew is always aligned, so it needs no entry.
    """
    return tuple(
        None if tensor is None else (tensor.dtype, tensor.data_ptr() % ALIGNED == 0) for tensor in tensors
    )


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on the device that holds the tensors, whichever is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def result(like: Tensor, written: bool) -> Tensor:
    """Allocate a result, empty where no kernel writes it."""
    return torch.empty_like(like) if written else like.new_empty(0)
