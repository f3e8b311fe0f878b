"""The kernel for predictions: the layer over NumPy arrays, in a process that must not import Paddle."""

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.training.fused.library import COMPILE_LIMIT_S, COMPILERS, Unavailable, open_first, openmp_runtime

Floats = npt.NDArray[np.float32]
Layer = Callable[[Floats, Floats, Floats], Floats]

logger = logging.getLogger(__name__)


def plain_conv_relu_pool(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """5x5 convolution (padding 2), bias, relu and 2x2 max-pool: [N, C, H, W] -> [N, O, H/2, W/2]."""
    count, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(2, 3))  # [N, C, H, W, 5, 5]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, channels * 25)
    y = columns @ weight.reshape(len(weight), -1).T
    y = y.reshape(count, height // 2, 2, width // 2, 2, len(weight)).max(axis=(2, 4)) + bias
    return np.ascontiguousarray(np.maximum(y, 0).transpose(0, 3, 1, 2), dtype=np.float32)


class ArrayKernel:
    """The compiled layer, by one thread of the caller's: others answer requests on the other cores. Thread-safe.

    `conv_relu_pool` takes contiguous float32 arrays of even height and width, unchecked. Raises MemoryError.
    """

    def __init__(self, name: str, library: Path, entry: ctypes.CDLL) -> None:
        """Raises AttributeError where the library is another one."""
        entry.fused_forward.argtypes = [*[ctypes.c_int] * 5, *[ctypes.c_void_p] * 5]
        self.name, self.library = name, library
        self._entry = entry
        runtime = openmp_runtime()
        self._set_threads = ctypes.CDLL(str(runtime)).omp_set_num_threads if runtime else None

    def conv_relu_pool(self, x: Floats, weight: Floats, bias: Floats) -> Floats:
        """As `plain_conv_relu_pool`."""
        count, channels, height, width = x.shape
        outputs = len(weight)
        out = np.empty((count, outputs, height // 2, width // 2), np.float32)
        winner = np.empty(out.shape, np.int8)  # training wants it
        if self._set_threads:
            self._set_threads(1)  # of the calling thread alone
        pointers = [array.ctypes.data for array in (x, weight, bias, out, winner)]
        if self._entry.fused_forward(count, channels, height, width, outputs, *pointers):
            raise MemoryError("the fused kernel got no working memory")
        return out


@functools.cache
def load(
    cache: Path,
    *,
    wanted: bool = True,
    prebuilt: Path | None = None,
    compilers: Sequence[str] = COMPILERS,
    compile_limit_s: float = COMPILE_LIMIT_S,
) -> Layer:
    """The layer: by the kernel for this machine, found or compiled as `kernel.load` does it, else by NumPy.

    One log line says which, and why. Never raises for a machine's fault; may compile, for a second, the first time.
    """
    try:
        if not wanted:
            raise Unavailable("it is switched off")
        kernel = open_first(ArrayKernel, cache, prebuilt=prebuilt, compilers=compilers, limit_s=compile_limit_s)
        _check(kernel)
    except (Unavailable, OSError) as reason:
        logger.warning("no fused kernel, predictions are NumPy's: %s", reason)
        return plain_conv_relu_pool
    logger.info("predictions by %s from %s", kernel.name, kernel.library)
    return kernel.conv_relu_pool


def _check(kernel: ArrayKernel) -> None:
    """Raises Unavailable where it differs from NumPy. All values are small integers, whose sums are exact in any order."""
    values = np.random.default_rng(0)
    for channels, size in ((1, 28), (20, 14)):
        x, weight, bias = (
            values.integers(-2, 3, shape).astype(np.float32)
            for shape in ((3, channels, size, size), (20, channels, 5, 5), (20,))
        )
        if not np.array_equal(kernel.conv_relu_pool(x, weight, bias), plain_conv_relu_pool(x, weight, bias)):
            raise Unavailable(f"{kernel.library.name} differs from NumPy on images of {size}x{size}")
