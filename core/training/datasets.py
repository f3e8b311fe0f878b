"""Data sets: names to NumPy arrays, whatever file they come in, always the same bytes.

A data set is kept in the cache as its four uncompressed IDX files, each verified against a SHA-256 whenever it is read. It is
looked for in this order: a folder of the user's, the cache, a mirror of the user's, a package, public mirrors.
"""

import gzip
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.errors import DatasetUnavailable
from core.training import idx, sources
from core.training.idx import Bytes
from core.training.sources import SOURCES, Report, Sources

_LESSON_FILE = "mnist.json.gz"
_TEST_LIMIT_S = 30  # for each of two small files, while somebody waits for an answer

log = logging.getLogger(__name__)


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
    mirror: str | None = None,
    report: Report = lambda *_: None,
    origin: Sources | None = None,
) -> Dataset:
    """A data set by name, from the first place that has it, verified; fetched from `origin` into `cache` when it is nowhere.

    `folder` holds the four IDX files (plain or .gz) or the lesson's `mnist.json.gz`, in a subfolder of the data set's name or
    itself. `mirror` is an address or a folder to fetch from before all others. Raises DatasetUnavailable naming the ways to
    provide it.
    """
    if name not in SOURCES:
        raise DatasetUnavailable(f"the data sets are: {', '.join(SOURCES)}")
    arrays = _from_folder(folder, name, cache / name) or _from_cache(cache / name, name)
    if arrays is None:
        arrays = sources.fetch(name, origin or SOURCES[name], report, mirror=mirror)
        idx.keep(cache / name, name, arrays)
    images, labels, test_images, test_labels = arrays
    return Dataset(
        name,
        train=Split(images[:50_000], labels[:50_000]),
        valid=Split(images[50_000:], labels[50_000:]),
        test=Split(test_images, test_labels),
    )


def load_test(name: str, *, cache: Path, folder: Path | None = None, mirror: str | None = None) -> Split:
    """The test images alone, verified, from the first place that has their files; fetched from nowhere but `mirror`.

    The lesson's own file is not read for this: parsing it takes gigabytes; `load`, which does, keeps IDX files in the cache.
    Raises DatasetUnavailable when they are nowhere, or damaged.
    """
    for place in [*_places(folder, name), cache / name, *sources.installed_in(SOURCES[name])]:
        if (arrays := idx.read(place, name, idx.TEST)) is not None:
            return Split(*arrays)
    if mirror:
        return Split(*sources.from_mirror(name, mirror, wanted=idx.TEST, limit_s=_TEST_LIMIT_S))
    raise DatasetUnavailable(f"the files of {name} are not here")


def is_here(name: str, *, cache: Path, folder: Path | None = None) -> bool:
    """Whether a data set's files can be found without fetching; of them only the smallest is read."""
    own = _places(folder, name)
    return (
        any(_lesson_file(place, name) for place in own)
        or any(idx.is_in(place, name) for place in [*own, cache / name])
        or sources.is_installed(SOURCES[name], name)
    )


def _places(folder: Path | None, name: str) -> list[Path]:
    return [folder / name, folder] if folder else []


def _lesson_file(place: Path, name: str) -> Path | None:
    path = place / _LESSON_FILE
    return path if name == "mnist" and path.is_file() else None


def _from_folder(folder: Path | None, name: str, cache: Path) -> list[Bytes] | None:
    """What the user's folder holds. A damaged file there is an error, not a reason to look elsewhere.

    The lesson's file is kept in the cache as IDX files, too, for those who want a part of it (`load_test`).
    """
    for place in _places(folder, name):
        arrays = idx.read(place, name)
        if arrays is None and (path := _lesson_file(place, name)):
            arrays = _parsed(path, name)
            if not idx.is_in(cache, name):
                with suppress(OSError):  # it is good as it is
                    idx.keep(cache, name, arrays)
        if arrays is not None:
            return arrays
    return None


def _parsed(path: Path, name: str) -> list[Bytes]:
    """The arrays of the lesson's file."""
    try:
        with gzip.open(path) as file:
            return sources.from_splits(name, json.load(file))
    except (*idx.DAMAGED, ValueError, TypeError) as error:
        raise DatasetUnavailable(f"{path} cannot be read: {error}") from error


def _from_cache(folder: Path, name: str) -> list[Bytes] | None:
    """What the cache holds; a damaged file there is fetched again."""
    try:
        return idx.read(folder, name)
    except DatasetUnavailable as error:
        log.warning("cached data set is damaged", extra={"reason": str(error)})
        return None
