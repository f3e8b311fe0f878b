"""The compiled kernel as a file: which one this machine can run, where it lies, and how it is compiled.

A library is named `fused-VARIANT-SOURCE-COMPILER-CONTENT.so`: what it is built for, then digests of what it is built
from, of the compiler's version and of the file itself. So one folder serves different machines and versions, a changed
source or compiler never finds an old library, and a damaged file is not taken for a library.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SOURCE = Path(__file__).parent / "source"
COMPILERS = ("c++", "g++", "clang++")
COMPILE_LIMIT_S = 60.0
_OPTIONS = ("-std=c++17", "-O3", "-fPIC")


class Unavailable(Exception):
    """There is no compiled kernel; the message says why, for the log."""


@dataclass(frozen=True)
class Variant:
    """An instruction set. Its features bear the names that Linux, GCC and clang share: `avx2` is `-mavx2`."""

    name: str
    features: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        openmp = ("-fopenmp",) if openmp_runtime() else ()
        return (*_OPTIONS, *openmp, *(f"-m{feature}" for feature in self.features))


_X86 = (
    Variant("avx512", ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma")),
    Variant("avx2", ("avx2", "fma")),
    Variant("sse2"),
)
_ARM = (Variant("neon"),)
VARIANTS = {"x86_64": _X86, "aarch64": _ARM, "arm64": _ARM}
"""By `platform.machine()`, best first; the last of each runs everywhere."""


def variants() -> tuple[Variant, ...]:
    """All variants of this architecture, best first; none on a system that was never tried."""
    return VARIANTS.get(platform.machine(), ()) if platform.system() in ("Linux", "Darwin") else ()


def runnable_variants() -> list[Variant]:
    features = cpu_features()
    return [variant for variant in variants() if features.issuperset(variant.features)]


@functools.cache
def cpu_features() -> frozenset[str]:
    """What this CPU can do and its system allows, in Linux's names; empty where it cannot be read."""
    try:
        if platform.system() == "Darwin":
            listing = subprocess.run(["/usr/sbin/sysctl", "hw.optional"], capture_output=True, text=True, timeout=10)
            pairs = (line.partition(": ")[::2] for line in listing.stdout.splitlines())
            return frozenset(name.removeprefix("hw.optional.").removesuffix("_0") for name, on in pairs if on == "1")
        return frozenset(cpu_description().get("flags", "").split())
    except (OSError, subprocess.SubprocessError):
        return frozenset()


def cpu_description() -> dict[str, str]:
    """The first processor of Linux's /proc/cpuinfo; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in first.splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


@functools.cache
def openmp_runtime() -> Path | None:
    """Paddle's own OpenMP runtime. With a second one (libgomp) the two pools of threads fight over the cores, and
    libgomp hangs after fork(); so where Paddle ships none the kernel is built for a single thread.
    """
    try:
        paddle = importlib.util.find_spec("paddle")  # where it is; importing it takes a second
    except ValueError:  # a module that came about in some other way
        return None
    runtime = Path(paddle.origin).parent / "libs" / "libiomp5.so" if paddle and paddle.origin else None
    return runtime if runtime and runtime.is_file() else None


def find(folder: Path, variant: Variant, *, compiler: str | None = None) -> Path | None:
    """An undamaged library of today's source in `folder`, from this compiler or from any."""
    built_by = _compiler_digest(compiler) if compiler else "*"
    for path in sorted(folder.glob(f"fused-{variant.name}-{_source_digest(variant)}-{built_by}-*.so")):
        if path.stem.rpartition("-")[2] == _digest(path.read_bytes()):
            return path
    return None


def build(folder: Path, variant: Variant, *, compiler: str, limit_s: float = COMPILE_LIMIT_S) -> Path:
    """Compile into `folder`. Several processes may do so at once: each builds apart and renames its finished file.

    Raises Unavailable (also for a compiler that takes longer than `limit_s`) and OSError.
    """
    runtime = openmp_runtime()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as work:
        code, library = Path(work, "fused.o"), Path(work, "fused.so")
        _run([compiler, *variant.options, "-c", str(SOURCE / "fused.cc"), "-o", str(code)], limit_s)
        # Linked without -fopenmp, which would add the compiler's own runtime.
        _run([compiler, "-shared", str(code), *([str(runtime)] if runtime else []), "-o", str(library)], limit_s)
        content = _digest(library.read_bytes())
        name = f"fused-{variant.name}-{_source_digest(variant)}-{_compiler_digest(compiler)}-{content}.so"
        return library.replace(folder / name)


def find_compiler(names: Sequence[str] = COMPILERS) -> str:
    """The first of these commands or paths that exists. Raises Unavailable."""
    for name in names:
        if found := shutil.which(name):
            return found
    raise Unavailable(f"there is no C++ compiler ({', '.join(names) or 'none was to be used'})")


def candidates(
    cache: Path, *, prebuilt: Path | None, compilers: Sequence[str], limit_s: float
) -> Iterator[tuple[Variant, Path]]:
    """Libraries for this machine, best first: ready in `prebuilt`, else ready in `cache`, else compiled into it.

    Raises Unavailable and OSError.
    """
    runnable = runnable_variants()
    if not runnable:
        raise Unavailable(f"it was not written for {platform.system()} on {platform.machine()}")
    for variant in runnable if prebuilt else ():
        if prebuilt and (path := find(prebuilt, variant)):
            yield variant, path
    best = runnable[0]
    try:
        compiler = find_compiler(compilers)
    except Unavailable:
        if path := find(cache, best):
            yield best, path
        raise
    yield best, find(cache, best, compiler=compiler) or build(cache, best, compiler=compiler, limit_s=limit_s)


def open_first(
    face: Callable[[str, Path, ctypes.CDLL], T],
    cache: Path,
    *,
    prebuilt: Path | None,
    compilers: Sequence[str],
    limit_s: float,
) -> T:
    """The best library that opens, as `face` makes it of its name, file and handle. Raises Unavailable with every reason."""
    reasons = []
    try:
        for variant, path in candidates(cache, prebuilt=prebuilt, compilers=compilers, limit_s=limit_s):
            name = f"fused-{variant.name}" + ("" if openmp_runtime() else "-serial")
            try:
                return face(name, path, open_library(path))
            except (OSError, AttributeError) as error:
                reasons.append(f"{path.name} cannot be opened: {error}")
    except (Unavailable, OSError) as error:
        reasons.append(str(error))
    raise Unavailable("; ".join(reasons))


def open_library(path: Path) -> ctypes.CDLL:
    """Raises OSError. The library names Paddle's runtime without a path, so that it may move: it is opened first."""
    if runtime := openmp_runtime():
        ctypes.CDLL(str(runtime))
    return ctypes.CDLL(str(path))


def _source_digest(variant: Variant) -> str:
    sources = [path.name.encode() + path.read_bytes() for path in sorted(SOURCE.iterdir()) if path.is_file()]
    return _digest("\0".join(variant.options).encode(), *sources)


@functools.cache
def _compiler_digest(compiler: str) -> str:
    return _digest(_run([compiler, "--version"], limit_s=10.0).encode())


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _run(command: list[str], limit_s: float) -> str:
    """What the command prints. Raises Unavailable where it fails or takes too long; it never outlives the call."""
    with tempfile.TemporaryFile() as output:
        # A group of its own: a compiler starts others, and all of them must go when its time is up.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{command[0]} took more than {limit_s:g} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        first = next((line for line in text.splitlines() if "error" in line), text.strip()[:200])
        raise Unavailable(f"{command[0]} failed with status {process.returncode}: {first}")
    return text
