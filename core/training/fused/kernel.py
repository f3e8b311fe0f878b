"""The kernel for training: `kernel = load(cache)`, `layer = kernel.conv_relu_pool if kernel else plain_conv_relu_pool`."""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from core.training.fused import selfcheck
from core.training.fused.layer import Kernel
from core.training.fused.library import COMPILE_LIMIT_S, COMPILERS, Unavailable, open_first

logger = logging.getLogger(__name__)


def load(
    cache: Path,
    *,
    wanted: bool = True,
    prebuilt: Path | None = None,
    compilers: Sequence[str] = COMPILERS,
    compile_limit_s: float = COMPILE_LIMIT_S,
) -> Kernel | None:
    """The kernel for this machine, ready in `prebuilt` (see `build`) or in `cache`, else compiled into `cache`.

    None where there is none, with one log line that says why: train with `plain_conv_relu_pool` then. Never raises for
    a machine's fault. The first call takes a second where it compiles, 0.1 s where it only checks the kernel; the same
    call again costs nothing.
    """
    return _load(cache.absolute(), wanted, prebuilt and prebuilt.absolute(), tuple(compilers), compile_limit_s)


@functools.cache
def _load(
    cache: Path, wanted: bool, prebuilt: Path | None, compilers: tuple[str, ...], compile_limit_s: float
) -> Kernel | None:
    if not wanted:
        logger.info("the fused kernel is switched off, Paddle's operators are used")
        return None
    try:
        kernel = open_first(Kernel, cache, prebuilt=prebuilt, compilers=compilers, limit_s=compile_limit_s)
        if reason := selfcheck.remembered_failure(kernel, cache):
            raise Unavailable(f"{kernel.library.name} failed its self-check: {reason}")
    except (Unavailable, OSError) as reason:
        logger.warning("no fused kernel, Paddle's operators are used: %s", reason)
        return None
    logger.info("fused kernel %s from %s", kernel.name, kernel.library)
    return kernel
