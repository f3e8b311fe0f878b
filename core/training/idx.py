"""IDX files (LeCun's format: a big-endian header, then the bytes), and the four that each data set is made of.

A file is known by the SHA-256 of its uncompressed bytes, so it does not matter where it comes from.
"""

import gzip
import hashlib
import http.client
import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.errors import DatasetUnavailable

Bytes = npt.NDArray[np.uint8]

DAMAGED = (OSError, EOFError, zlib.error, http.client.HTTPException)  # what a cut or garbled file or answer raises
_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SHAPES = ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))
_SMALLEST = 3  # the labels of the test images, 10 KB
ALL, TEST = slice(0, 4), slice(2, 4)  # which of the files: all, or the test images and their labels


@dataclass(frozen=True)
class IdxFile:
    """One of the four files: its usual name, its array's shape, the digest of its uncompressed bytes."""

    name: str
    shape: tuple[int, ...]
    sha256: str


def _four(*digests: str) -> tuple[IdxFile, ...]:
    return tuple(IdxFile(*about) for about in zip(_NAMES, _SHAPES, digests, strict=True))


FILES = {
    "mnist": _four(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": _four(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


def verified(file: IdxFile, content: bytes) -> Bytes:
    """The array of an IDX file's bytes. Raises DatasetUnavailable when it is not exactly the file we know."""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DatasetUnavailable(f"{file.name} is not the file it should be (its SHA-256 differs)")
    return np.frombuffer(content, np.uint8, offset=len(_header(file.shape))).reshape(file.shape)


def verified_arrays(name: str, arrays: Sequence[Bytes]) -> list[Bytes]:
    """The four arrays of another format, checked by writing them as IDX. Raises DatasetUnavailable."""
    pairs = zip(FILES[name], arrays, strict=True)
    return [verified(file, _header(file.shape) + np.ascontiguousarray(array).tobytes()) for file, array in pairs]


def read(folder: Path, name: str, wanted: slice = ALL) -> list[Bytes] | None:
    """The four arrays of a data set, or those wanted, uint8, from a folder with its files, plain or .gz.

    None when they are not all there, or are another data set's. Raises DatasetUnavailable when they are damaged.
    """
    paths = _paths(folder, name)
    if paths is None:
        return None
    try:
        if _is_another(name, _content(paths[_SMALLEST])):
            return None
        return [verified(file, _content(path)) for file, path in zip(FILES[name][wanted], paths[wanted], strict=True)]
    except (DatasetUnavailable, *DAMAGED) as error:
        raise DatasetUnavailable(f"{folder}: {error}") from error


def is_in(folder: Path, name: str) -> bool:
    """Whether a folder has the four files of a data set; only the smallest is read."""
    paths = _paths(folder, name)
    try:
        return paths is not None and not _is_another(name, _content(paths[_SMALLEST]))
    except DAMAGED:
        return True  # reading it will say what is wrong


def keep(folder: Path, name: str, arrays: Sequence[Bytes]) -> None:
    """Write the IDX files, each by a rename, so that two who fetch at once do not disturb each other."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in zip(FILES[name], arrays, strict=True):
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
        with os.fdopen(handle, "wb") as out:
            out.write(_header(file.shape) + array.tobytes())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(folder / file.name)


def _header(shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return bytes([0, 0, 8, len(shape)]) + sizes  # 8: unsigned bytes


def _paths(folder: Path, name: str) -> list[Path] | None:
    paths = [path for file in FILES[name] if (path := _existing(folder, file.name))]
    return paths if len(paths) == len(FILES[name]) else None


def _existing(folder: Path, name: str) -> Path | None:
    """`name` or `name.gz`; some copies spell it with a dot (`train-images.idx3-ubyte`)."""
    dotted = name.replace("-idx", ".idx")
    candidates = (folder / (stem + end) for stem in (name, dotted) for end in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def _is_another(name: str, smallest: bytes) -> bool:
    """All data sets call their files the same; whose they are, the smallest one's digest tells."""
    digest = hashlib.sha256(smallest).hexdigest()
    return any(files[_SMALLEST].sha256 == digest for other, files in FILES.items() if other != name)
