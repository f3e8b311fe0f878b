"""The process a training runs in: what must be set before Paddle is imported (see docs/training.md), and its end."""

import ctypes
import os
import platform
import signal
import sys
import warnings
from pathlib import Path

# glibc's mallopt parameters (malloc.h), by the variables that set them for any program
_MALLOC = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 1 << 28),
}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # found now: a forked child should not search


def prepare(threads: int) -> None:
    """Set up this process as a trainer with `threads` CPU threads. Call before the first `import paddle`.

    The other variables are left alone where they are set already, so each can be overridden. Raises RuntimeError when
    Paddle has been imported already.
    """
    if "paddle" in sys.modules:
        raise RuntimeError("prepare() must come before the first import of paddle")
    warnings.filterwarnings(
        "ignore", message="No ccache found"
    )  # of Paddle's own extension builder, which we never use
    os.environ["OMP_NUM_THREADS"] = str(threads)  # unset means one thread
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # on a GPU, float32 is float32
    if _is_amd():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")  # Paddle's MKL is slow on AMD otherwise
    if platform.libc_ver()[0] == "glibc":
        _keep_freed_memory()


def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()[:1000]


def _keep_freed_memory() -> None:
    """Let malloc keep what a step frees; it would give it back, and every step would fault its pages in afresh."""
    libc = ctypes.CDLL(None)
    for variable, (parameter, value) in _MALLOC.items():
        if variable not in os.environ:
            libc.mallopt(parameter, value)


def die_with_parent() -> None:
    """Linux: have the kernel kill this process when its parent dies, however that happens. Elsewhere nothing."""
    if _libc is not None:
        parent = os.getppid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)
