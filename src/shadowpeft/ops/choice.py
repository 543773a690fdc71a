"""Choose what computes the boundary.

An implementation that is asked for by name serves or says why it cannot; only `auto` may fall back.

| impl | |
| --- | --- |
| `reference` | plain torch; inside an outer `torch.compile` it is fused with what is around it |
| `compile` | `torch.compile` of the reference, boundary by boundary |
| `triton` | the fused kernels: an NVIDIA GPU (or Triton's interpreter), bfloat16 or float32 |
| `auto` | `triton` where it can serve, else `reference` |
"""

import functools
import importlib.util
import shutil
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable
from typing import get_args

import torch
from torch import Tensor

from shadowpeft.config import Impl
from shadowpeft.errors import ConfigError
from shadowpeft.ops import reference
from shadowpeft.ops.reference import Crossing, InjectionWeights, UpdateWeights

# A function with the arguments and results of `reference.boundary`.
Boundary = Callable[[Tensor, Tensor, Crossing], tuple[Tensor, Tensor]]


def boundary_of(impl: str) -> Boundary:
    """Return the function that computes boundaries, if this machine has what it needs.

    Raises:
        ConfigError: there is no such implementation, or it cannot run here.
    """
    if impl not in get_args(Impl):
        raise ConfigError(f"impl must be {', '.join(map(repr, get_args(Impl)))}, got {impl!r}")
    if impl == "compile":
        _require_compiler()
        return compiled
    if impl == "triton":
        reason = no_triton()
        if reason is not None:
            raise ConfigError(f"impl='triton' {reason}; set impl='auto' or 'reference'")
        from shadowpeft.ops.triton import op

        return op.boundary
    if impl == "auto" and torch.cuda.is_available() and no_triton() is None:
        from shadowpeft.ops.triton import op

        return op.boundary_or_reference
    return reference.boundary


def require_served(
    impl: str, dtype: torch.dtype, widths: Iterable[int], norms: Iterable[Callable[[Tensor], Tensor]]
) -> None:
    """Refuse, before any forward pass, a model that the named implementation cannot serve.

    Args:
        impl: the implementation; only `triton` has limits of its own.
        dtype: the type of the stream.
        widths: r and update_width.
        norms: the norms that are read through.

    Raises:
        ConfigError: says what is expected and which setting to change.
    """
    if impl != "triton":
        return
    from shadowpeft.ops.triton import op

    op.require(dtype, widths, norms)


def no_triton() -> str | None:
    """Return why the kernels cannot run on this machine, `None` if they can."""
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if torch.cuda.is_available():
        if torch.version.hip is not None:
            return "needs an NVIDIA GPU"
        major, minor = torch.cuda.get_device_capability()
        if (major, minor) >= (8, 0):
            return None
        return f"needs a GPU of compute capability 8.0 or higher, got {major}.{minor}"
    from shadowpeft.ops.triton import op

    if op.INTERPRETED.value:
        return None
    return "needs a GPU that torch can use, found none"


def _require_compiler() -> None:
    """Refuse `compile` where torch has nothing to compile with."""
    if torch.cuda.is_available():
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(
                "impl='compile' on a GPU needs the package triton, which is not installed; "
                "set impl='reference'"
            )
        return
    known: tuple[str, ...] = ("g++", "clang++", "c++", sysconfig.get_config_var("CXX") or "g++")
    if sys.platform == "win32":
        known = ("cl",)
    if not any(shutil.which(name.split()[0]) for name in known):
        raise ConfigError(
            "impl='compile' on a CPU needs a C++ compiler, found none; install g++ or set impl='reference'"
        )


def compiled(h_BTD: Tensor, s_BTD: Tensor, crossing: Crossing) -> tuple[Tensor, Tensor]:
    """Compute `reference.boundary` through `torch.compile`; arguments and results as there."""
    # An outer compilation traces the reference itself.
    if torch.compiler.is_compiling():
        return reference.boundary(h_BTD, s_BTD, crossing)
    # The kind of a call: all that torch would compile anew for.
    kind = (
        crossing.rule,
        _kinds(crossing.update_w),
        _kinds(crossing.inject_w),
        h_BTD.dtype,
        s_BTD.dtype,
        h_BTD.device.type,
        h_BTD.requires_grad,
        s_BTD.requires_grad,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )
    return _compiled(kind)(h_BTD, s_BTD, crossing)


def _kinds(weights: UpdateWeights | InjectionWeights | None) -> tuple[object, ...]:
    """Return shape and type of the weights, `None` for each that is missing or no tensor."""
    return tuple((*part.shape, part.dtype) if isinstance(part, Tensor) else None for part in weights or ())


@functools.cache
def _compiled(kind: tuple[object, ...]) -> Boundary:
    """Return a compiled copy of the reference for one kind of call.

    Each kind has its own, because torch gives up on a function that it had to compile for the ninth time.
    """
    code = reference.boundary.__code__.replace(co_name=f"boundary_{abs(hash(kind))}")
    return torch.compile(types.FunctionType(code, reference.boundary.__globals__), fullgraph=True)
