"""`@autotune`: a kernel that finds its own constexpr values, once for each shape class."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any

from tilus.errors import LaunchError, SyntaxNotSupported
from tilus.runtime import dynamo
from tilus.runtime.arguments import is_torch_tensor
from tilus.runtime.kernel import Kernel
from tilus.runtime.tuning.result import Result
from tilus.runtime.tuning.search import tune
from tilus.runtime.tuning.space import Choice, Space
from tilus.runtime.tuning.store import bucket as size_class
from tilus.runtime.tuning.store import identity


class Autotuned:
    """A kernel whose constexpr values are chosen at its first call for each shape class, dtypes and device.

    The first call on a GPU searches within the budget, or takes what an earlier process found. On CPU tensors the
    cost model chooses. During the capture of a CUDA graph nothing is searched: a call whose choice is not known is an
    error that says to tune before.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self, kernel: Kernel, space: Space, *, bucket: Sequence[str] = ("m",), **options: Any
    ) -> None:
        self.kernel = kernel
        self.space = space
        self.bucket = tuple(bucket)
        self.options = options
        self._chosen: dict[str, Kernel] = {}
        self._lock = threading.RLock()
        update_wrapper(self, kernel, updated=())
        dynamo.calls(Autotuned.__call__)

    def __reduce__(self) -> str:
        # By name, as Python pickles and copies functions.
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<autotuned {self.kernel!r} of {', '.join(self.space.names)}>"

    def __call__(self, *args: Any, **constexprs: Any) -> None:
        """Launch the kernel with the values that are best for these arguments."""
        self.best_kernel(*args, **constexprs)(*args, **constexprs)

    def best_kernel(self, *args: Any, **constexprs: Any) -> Kernel:
        """Return the kernel with the values that are best for some arguments, searching if they are not known."""
        key = self._key(args, constexprs)
        found = self._chosen.get(key)
        if found is None:
            with self._lock:
                found = self._chosen.get(key)
                if found is None:
                    found = self._chosen[key] = self.tune(*args, **constexprs).best_kernel
        return found

    def tune(self, *args: Any, **constexprs: Any) -> Result:
        """Search for some arguments, with the options of `tilus.runtime.tuning.tune`."""
        on_gpu = any(is_torch_tensor(value) and value.is_cuda for value in args)
        if on_gpu:
            from tilus.runtime.cuda import is_capturing

            if is_capturing():
                raise LaunchError(
                    f"{self.__name__} is not tuned for these arguments, and a CUDA graph is being captured",
                    hint=f"{self.__name__}.tune(...) with the same arguments before the capture",
                )
        # Where nothing is measured, one candidate is compiled: the one that the model prefers.
        options = {"keep": 16 if on_gpu else 1, **self.options}
        result = tune(
            self.kernel, args, space=self.space, constexprs=constexprs, bucket=self.bucket, **options
        )
        self._chosen[self._key(args, constexprs)] = result.best_kernel.bind(**constexprs)
        return result

    def best(self, *args: Any, **constexprs: Any) -> Choice:
        """Return the values that are best for some arguments."""
        bound = self.best_kernel(*args, **constexprs).bound
        return {name: bound[name] for name in self.space.names}

    def _key(self, args: Sequence[Any], constexprs: dict[str, Any]) -> str:
        parts: dict[str, Any] = {f"={name}": value for name, value in constexprs.items()}
        for param, value in zip(self.kernel.source.runtime_params, args):
            parts[param.name] = f"{getattr(value, 'dtype', '')} {getattr(value, 'device', '')}"
            for dim, extent in zip(param.dims if param.kind == "tensor" else (), getattr(value, "shape", ())):
                if isinstance(dim, str):
                    parts[f"size {dim}"] = size_class(extent) if dim in self.bucket else int(extent)
        return identity(parts)


def autotune(
    space: Space, *, bucket: Sequence[str] = ("m",), **options: Any
) -> Callable[[Kernel], Autotuned]:
    """Let a kernel choose constexpr values by itself; stands above `@tilus.kernel`.

    Parameters
    ----------
    space : Space
        What to choose.
    bucket : sequence of str
        Dimensions whose sizes count as the next power of two; a change of any other size is a search of its own.
    **options
        Of `tilus.runtime.tuning.tune`, such as `budget_seconds`.

    Returns
    -------
    function
        From a kernel to an `Autotuned`.
    """

    def decorate(kernel: Kernel) -> Autotuned:
        if not isinstance(kernel, Kernel):
            raise SyntaxNotSupported(
                f"tilus.autotune takes a kernel, not {kernel!r}",
                hint="@tilus.autotune(...) above @tilus.kernel",
            )
        return Autotuned(kernel, space, bucket=bucket, **options)

    return decorate
