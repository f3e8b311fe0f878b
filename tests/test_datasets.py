import gzip
import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from core.catalogue import DATASETS
from core.errors import DatasetUnavailable
from core.spec import JobSpec
from core.training import sources
from core.training.datasets import Dataset, Split, is_here, load, scaled
from core.training.idx import FILES
from core.training.pictures import FITS
from core.training.sources import SOURCES, DebianPackage, Sources

MNIST, FASHION = FILES["mnist"], FILES["fashion-mnist"]


def same(a: Dataset, b: Dataset) -> bool:
    return all(
        np.array_equal(getattr(one, part), getattr(other, part))
        for one, other in ((a.train, b.train), (a.valid, b.valid), (a.test, b.test))
        for part in ("images", "labels")
    )


def nowhere(cache: Path, folder: Path | None = None, mirrors: tuple[str, ...] = (), name: str = "mnist") -> Dataset:
    """Load without the package."""
    return load(name, cache=cache, folder=folder, origin=Sources(package=None, mirrors=mirrors))


@pytest.fixture(scope="module")
def idx(cache: Path, mnist: Dataset) -> Path:
    """The folder of the four IDX files."""
    assert len(mnist.train) == 50_000
    return cache / "mnist"


def test_the_splits_are_the_lessons(mnist: Dataset) -> None:
    assert [len(split) for split in (mnist.train, mnist.valid, mnist.test)] == [50_000, 10_000, 10_000]
    assert mnist.train.images.dtype == np.uint8
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_grey_values_are_scaled_as_in_the_lesson(mnist: Dataset) -> None:
    images = scaled(mnist.train.images[:100])
    assert images.shape == (100, 1, 28, 28)
    assert images.dtype == np.float32
    assert images.max() == np.float32(0.99609375)
    assert images[0, 0, 5, 12] == mnist.train.images[0, 5, 12] / 256


def test_the_cache_is_a_folder_for_others(idx: Path, mnist: Dataset, tmp_path: Path) -> None:
    assert same(nowhere(tmp_path / "none", folder=idx), mnist)
    assert same(nowhere(tmp_path / "none", folder=idx.parent), mnist)


def test_gzipped_and_dotted_names_are_taken(idx: Path, mnist: Dataset, tmp_path: Path) -> None:
    for file in MNIST:
        name = file.name.replace("-idx", ".idx") + ".gz"
        (tmp_path / name).write_bytes(gzip.compress((idx / file.name).read_bytes(), 1))
    assert same(nowhere(tmp_path / "none", folder=tmp_path), mnist)


def test_the_lessons_own_file_is_taken(mnist: Dataset, tmp_path: Path) -> None:
    grey = [repr(value / 256).encode() for value in range(256)]

    def as_json(split: Split) -> bytes:  # json.dump takes a minute for 55 million numbers
        images = (b"[" + b",".join([grey[value] for value in image.tobytes()]) + b"]" for image in split.images)
        return b"[[" + b",".join(images) + b"]," + json.dumps(split.labels.tolist()).encode() + b"]"

    with gzip.open(tmp_path / "mnist.json.gz", "wb", compresslevel=1) as file:
        file.write(b"[" + b",".join(as_json(split) for split in (mnist.train, mnist.valid, mnist.test)) + b"]")
    assert same(nowhere(tmp_path / "none", folder=tmp_path), mnist)


def test_a_count_that_does_not_match_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "mnist.json.gz", "wt") as file:
        json.dump([[[[0.0] * 784], [1, 2]]] * 3, file)
    with pytest.raises(DatasetUnavailable, match="1 images and 2 labels"):
        nowhere(tmp_path / "none", folder=tmp_path)


def test_a_flipped_byte_in_the_users_folder_is_an_error(idx: Path, tmp_path: Path) -> None:
    for file in MNIST:
        (tmp_path / file.name).write_bytes((idx / file.name).read_bytes())
    content = bytearray((tmp_path / MNIST[1].name).read_bytes())
    content[100] ^= 1
    (tmp_path / MNIST[1].name).write_bytes(content)
    with pytest.raises(DatasetUnavailable, match="SHA-256"):
        nowhere(tmp_path / "none", folder=tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b\x08 not gzip", gzip.compress(b"[1, 2]", mtime=0), gzip.compress(b"{", mtime=0)]
)
def test_a_damaged_lessons_file_is_an_error_that_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mnist.json.gz").write_bytes(content)
    with pytest.raises(DatasetUnavailable, match=r"mnist\.json\.gz"):
        nowhere(tmp_path / "none", folder=tmp_path)


@pytest.mark.parametrize("keep", [10, 1000, -1])
def test_a_cut_gzip_file_is_an_error_that_says_so(keep: int, idx: Path, tmp_path: Path) -> None:
    for file in MNIST:
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress((idx / file.name).read_bytes(), 1)[:keep])
    with pytest.raises(DatasetUnavailable, match=str(tmp_path)):
        nowhere(tmp_path / "none", folder=tmp_path)


@pytest.fixture
def mirror(idx: Path, tmp_path: Path) -> Iterator[str]:
    """A real HTTP server with the gzipped IDX files."""
    for file in MNIST:
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress((idx / file.name).read_bytes(), 1))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_mirror_fills_the_cache_and_a_damaged_cache_is_filled_again(
    mirror: str, mnist: Dataset, tmp_path: Path
) -> None:
    seen: list[int] = []
    cache = tmp_path / "cache"
    origin = Sources(package=None, mirrors=("http://127.0.0.1:9/", mirror))
    found = load("mnist", cache=cache, origin=origin, report=lambda what, done, total: seen.append(done))
    assert same(found, mnist)
    assert seen
    assert same(nowhere(cache), mnist)
    (cache / "mnist" / MNIST[0].name).write_bytes(b"cut off")
    with pytest.raises(DatasetUnavailable):
        nowhere(cache)
    assert same(nowhere(cache, mirrors=(mirror,)), mnist)


def test_two_who_fetch_at_once_both_get_it(mirror: str, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from core.training.datasets import Sources, load;"
        "origin = Sources(package=None, mirrors=(sys.argv[2],));"
        "print(len(load('mnist', cache=pathlib.Path(sys.argv[1]), origin=origin).train))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), mirror]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["50000", "50000"]
    assert sorted(path.name for path in (tmp_path / "cache" / "mnist").iterdir()) == sorted(f.name for f in MNIST)


def test_nothing_anywhere_says_how_to_provide_it(tmp_path: Path) -> None:
    for name in SOURCES:
        with pytest.raises(DatasetUnavailable) as caught:
            nowhere(tmp_path, mirrors=("http://127.0.0.1:9/",), name=name)
        for way in ("DESCENT_DATASETS", "train-images-idx3-ubyte", "mnist.json.gz", f"descent data fetch {name}"):
            assert way in str(caught.value)


# --- more than one data set --------------------------------------------------------------------------------------------


def test_every_data_set_is_in_every_table() -> None:
    assert set(DATASETS) == set(FILES) == set(SOURCES) == set(FITS)
    for name in DATASETS:
        assert JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.1, "dataset": name}).dataset == name


def test_fashion_is_split_as_the_lesson_splits(fashion: Dataset) -> None:
    assert [len(split) for split in (fashion.train, fashion.valid, fashion.test)] == [50_000, 10_000, 10_000]
    assert fashion.train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert fashion.test.labels[:5].tolist() == [9, 2, 1, 1, 6]
    assert fashion.train.images.shape[1:] == (28, 28)


def test_a_folder_may_hold_both_and_files_in_it_itself_are_whose_they_are(
    cache: Path, idx: Path, mnist: Dataset, fashion: Dataset, tmp_path: Path
) -> None:
    none = tmp_path / "none"
    assert same(nowhere(none, folder=cache, name="fashion-mnist"), fashion)
    assert same(nowhere(none, folder=cache), mnist)
    assert same(nowhere(none, folder=cache / "fashion-mnist", name="fashion-mnist"), fashion)
    with pytest.raises(DatasetUnavailable, match="fashion-mnist is not here"):
        nowhere(none, folder=idx, name="fashion-mnist")  # those are mnist's, and not damaged
    assert [is_here(name, cache=none, folder=idx) for name in ("mnist", "fashion-mnist")] == [True, IS_INSTALLED]
    assert is_here("fashion-mnist", cache=cache)
    labels = tmp_path / "mixed"
    labels.mkdir()
    for file in FASHION:
        (labels / file.name).symlink_to((cache if file == FASHION[3] else idx.parent) / "fashion-mnist" / file.name)
    (labels / FASHION[0].name).unlink()
    (labels / FASHION[0].name).symlink_to(idx / FASHION[0].name)
    with pytest.raises(DatasetUnavailable, match="train-images-idx3-ubyte is not the file"):
        nowhere(none, folder=labels, name="fashion-mnist")


IS_INSTALLED = sources.is_installed(SOURCES["fashion-mnist"], "fashion-mnist")


def test_an_installed_package_is_read_and_kept(cache: Path, fashion: Dataset, tmp_path: Path) -> None:
    origin = Sources(package=DebianPackage(name="any", folder=cache / "fashion-mnist"), mirrors=())
    assert same(load("fashion-mnist", cache=tmp_path, origin=origin), fashion)
    assert same(nowhere(tmp_path, name="fashion-mnist"), fashion)


@pytest.fixture
def archive(cache: Path, fashion: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DebianPackage:
    """A package like Debian's, in an archive of our own that apt asks instead of its usual ones."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("this system has no apt")
    assert len(fashion.test) == 10_000
    package, repository = tmp_path / "package", tmp_path / "repository"
    (package / "DEBIAN").mkdir(parents=True)
    control = "Package: clothes\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: clothes\n"
    (package / "DEBIAN" / "control").write_text(control)
    shutil.copytree(cache / "fashion-mnist", package / "usr" / "share" / "clothes")
    repository.mkdir()
    built = repository / "clothes_1_all.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--build", str(package), str(built)], check=True, capture_output=True)
    about = f"Filename: ./{built.name}\nSize: {built.stat().st_size}\n"
    digest = hashlib.sha256(built.read_bytes()).hexdigest()
    (repository / "Packages").write_text(f"{control}{about}SHA256: {digest}\n")
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{repository} ./\n")
    (tmp_path / "lists" / "partial").mkdir(parents=True)  # as after the installation of a system: apt knows of nothing
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{tmp_path}/sources.list";\nDir::Etc::SourceParts "-";\nDir::State::Lists "{tmp_path}/lists";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return DebianPackage(name="clothes", folder=Path("/usr/share/clothes"))


def test_apt_downloads_a_package_that_nobody_installs(archive: DebianPackage, fashion: Dataset, tmp_path: Path) -> None:
    reported: list[tuple[str, int]] = []
    origin = Sources(package=archive, mirrors=())
    found = load(
        "fashion-mnist", cache=tmp_path / "cache", origin=origin, report=lambda what, n, _: reported.append((what, n))
    )
    assert same(found, fashion)
    assert reported[-1][0] == "clothes"
    assert reported[-1][1] > 50_000_000
    assert not archive.folder.exists()
    assert list((tmp_path / "lists").rglob("*Packages*")) == []  # the system's own lists are left alone


def test_a_package_that_apt_does_not_know_says_so(archive: DebianPackage, tmp_path: Path) -> None:
    origin = Sources(package=DebianPackage(name="no-such-package", folder=archive.folder), mirrors=())
    with pytest.raises(DatasetUnavailable, match=r"apt could not download no-such-package.*Unable to locate"):
        load("fashion-mnist", cache=tmp_path / "cache", origin=origin)


def test_without_apt_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    origin = Sources(package=DebianPackage(name="clothes", folder=tmp_path / "none"), mirrors=())
    with pytest.raises(DatasetUnavailable, match=r"install the package clothes with apt.*there is no apt"):
        load("fashion-mnist", cache=tmp_path, origin=origin)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailable):
        load("../../etc/passwd", cache=tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("owned",)


def test_the_pickle_may_hold_arrays_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    old_names = pickle.dumps(array, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert np.array_equal(sources._ArraysOnly(io.BytesIO(old_names), encoding="latin1").load(), array)
    with pytest.raises(DatasetUnavailable, match=r"builtins\.print|__builtin__\.print"):
        sources._ArraysOnly(io.BytesIO(pickle.dumps(Evil()))).load()
    assert capsys.readouterr().out == ""
