"""The Dockerfile: what it promises is read, and its installing of libraries is run, with wheels made here."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.containers import ROOT, dockerfile, final_stage, service

# --- the Dockerfile as a text ----------------------------------------------------------------------------------------


def test_image_runs_as_a_user_who_is_not_root() -> None:
    assert final_stage("USER") == ["10001:10001"]


def test_image_runs_the_api_without_a_shell() -> None:
    assert json.loads(final_stage("CMD")[-1]) == ["descent", "api"] == service("api")["command"]
    assert not final_stage("ENTRYPOINT")


def installs() -> list[str]:
    return [i.words for i in dockerfile() if i.name == "RUN" and "pip install" in i.words]


def test_our_own_code_brings_no_library() -> None:
    libraries, ours = installs()

    assert "-r requirements.lock" in libraries
    assert ours.split(" && ")[-1] == "pip install --no-deps --no-build-isolation ."


def test_final_image_has_no_compiler() -> None:
    packages = [word for line in final_stage("RUN") for word in line.split()]

    assert "libgomp1" in packages  # Paddle's own check would fail at the first import without it
    assert not {"gcc", "g++", "clang", "build-essential", "make"} & set(packages)


def test_no_image_is_named_without_its_version() -> None:
    base = next(i.words.partition("=")[2] for i in dockerfile() if i.name == "ARG")
    stages = [i.words.split() for i in dockerfile() if i.name == "FROM"]
    own = {words[-1] for words in stages if "AS" in words}
    assert {words[0] for words in stages} <= {"${BASE}"} | own

    for image in (base, *(service(name)["image"] for name in ("redis", "prometheus", "grafana"))):
        assert re.search(r":v?\d+\.\d+", image)
        assert "latest" not in image


def test_every_package_of_ours_gets_into_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]

    assert rules[0] == "*"  # what is not named stays out: no secrets, no jobs, no virtual environment
    for path in [*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], project["project"]["readme"]]:
        assert f"!{path}" in rules


# --- the libraries' installation, run -----------------------------------------------------------------------------------


class Index:
    """A package index in a folder, with small wheels in it. `lock` has the lines of a lock file for those that it made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, "# made by hand\n"
        folder.mkdir()

    def add(self, name: str, version: str, *, needs: tuple[str, ...] = (), says: str = "") -> None:
        """Put a wheel there whose one module is `name`, with a variable `SAYS`."""
        module = "paddle" if name.startswith("paddlepaddle") else name.replace("-", "_")
        file = self.folder / name / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        file.parent.mkdir(exist_ok=True)
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        contents = {
            f"{module}.py": f"SAYS = {says!r}\n",
            f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in needs),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        with zipfile.ZipFile(file, "w") as wheel:
            for path, text in contents.items():
                wheel.writestr(path, text)
            wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*contents, f"{info}/RECORD"]))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.lock += f"{name}=={version} \\\n    --hash=sha256:{digest}\n    # via descent (pyproject.toml)\n"


@pytest.fixture
def usual(tmp_path: Path) -> Index:
    """What the lock file has: two libraries and Paddle for CPUs."""
    index = Index(tmp_path / "usual")
    index.add("numbers-of-paddle", "1.0", says="locked")
    index.add("paddlepaddle", "3.3.1", needs=("numbers-of-paddle",), says="cpu")
    index.add("zebra", "2.0", says="locked")
    return index


@pytest.fixture
def paddles_own(tmp_path: Path) -> Index:
    """An index like Paddle's: its build for GPUs, CUDA's libraries, and newer versions of what the lock has."""
    index = Index(tmp_path / "paddles_own")
    index.add("paddlepaddle-gpu", "3.3.1", needs=("numbers-of-paddle", "cuda-library"), says="gpu")
    index.add("cuda-library", "12.0", says="12")
    index.add("numbers-of-paddle", "9.0", says="newer")
    return index


@dataclass(frozen=True)
class Builder:
    """Runs the Dockerfile's installation of libraries, in a virtual environment of its own and with indexes of this machine."""

    folder: Path
    url: str  # below it lies each index

    def install(self, **arguments: str) -> "subprocess.CompletedProcess[str]":
        """The build with these arguments; the others are as the Dockerfile has them."""
        given = {i.words.partition("=")[0]: "" for i in dockerfile() if i.name == "ARG" and i.words.endswith('=""')}
        assert set(given) == {"PADDLE", "PADDLE_INDEX"}
        (stage,) = {i.stage for i in dockerfile() if i.words == installs()[0]}
        own = [word for i in dockerfile() if (i.stage, i.name) == (stage, "ENV") for word in i.words.split()]
        env = dict(word.split("=", 1) for word in own) | {
            "PIP_INDEX_URL": f"{self.url}/usual",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_PYTHON": str(self.python),
        }
        env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **given, **arguments}
        command = ["/bin/sh", "-c", installs()[0]]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=120)

    @property
    def python(self) -> Path:
        return self.folder / "opt" / "bin" / "python"

    def says(self, module: str) -> str:
        """What the installed one says; '' when it is not there."""
        code = f"import {module}; print({module}.SAYS)"
        return subprocess.run([self.python, "-c", code], capture_output=True, text=True).stdout.strip()


@pytest.fixture
def builder(tmp_path: Path, usual: Index, paddles_own: Index) -> Iterator[Builder]:
    (tmp_path / "requirements.lock").write_text(usual.lock)
    venv.create(tmp_path / "opt", with_pip=False)
    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Builder(tmp_path, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_without_arguments_the_image_holds_exactly_what_the_lock_file_names(builder: Builder) -> None:
    done = builder.install()

    assert done.returncode == 0, done.stderr
    assert [builder.says(name) for name in ("paddle", "numbers_of_paddle", "zebra")] == ["cpu", "locked", "locked"]


def test_for_gpus_paddle_comes_from_its_index_and_all_else_from_the_lock(builder: Builder) -> None:
    done = builder.install(PADDLE="paddlepaddle-gpu==3.3.1", PADDLE_INDEX=f"{builder.url}/paddles_own")

    assert done.returncode == 0, done.stderr
    assert [builder.says(name) for name in ("paddle", "cuda_library")] == ["gpu", "12"]
    assert [builder.says(name) for name in ("numbers_of_paddle", "zebra")] == ["locked", "locked"]
    assert "Downloading" in done.stdout
    assert "paddlepaddle-3.3.1" not in done.stdout  # 3.3.1 for CPUs has not been there meanwhile


def test_paddle_for_gpus_may_be_named_with_a_digest(builder: Builder) -> None:
    index = f"{builder.url}/paddles_own"
    (wheel,) = (builder.folder / "paddles_own" / "paddlepaddle-gpu").iterdir()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = f"paddlepaddle-gpu @ {index}/paddlepaddle-gpu/{wheel.name}#sha256="

    wrong = builder.install(PADDLE=package + digest[::-1], PADDLE_INDEX=index)

    assert wrong.returncode != 0
    assert "DO NOT MATCH THE HASHES" in wrong.stderr
    assert not builder.says("paddle")
    right = builder.install(PADDLE=package + digest, PADDLE_INDEX=index)
    assert right.returncode == 0, right.stderr
    assert builder.says("paddle") == "gpu"


def test_a_library_that_is_not_the_locks_stops_the_build(builder: Builder) -> None:
    wheel = next((builder.folder / "usual" / "zebra").iterdir())
    wheel.write_bytes(wheel.read_bytes() + b"more")

    done = builder.install(PADDLE="paddlepaddle-gpu==3.3.1", PADDLE_INDEX=f"{builder.url}/paddles_own")

    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not builder.says("paddle")


def test_a_paddle_for_gpus_that_needs_other_libraries_stops_the_build(builder: Builder, paddles_own: Index) -> None:
    paddles_own.add("paddlepaddle-gpu", "3.3.2", needs=("numbers-of-paddle>=9",))

    done = builder.install(PADDLE="paddlepaddle-gpu==3.3.2", PADDLE_INDEX=f"{builder.url}/paddles_own")

    assert done.returncode != 0
    assert "conflicting dependencies" in done.stderr
    assert builder.says("numbers_of_paddle") == "locked"


def test_paddle_for_gpus_without_its_index_says_what_is_missing(builder: Builder) -> None:
    done = builder.install(PADDLE="paddlepaddle-gpu==3.3.1")

    assert done.returncode != 0
    assert "PADDLE_INDEX: is needed with PADDLE" in done.stderr
