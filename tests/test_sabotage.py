"""The sabotages that must turn the tests red: without the fence, the count of attempts, the safe publishing or the digest.

Each is one edit in a copy of the source; the product has no switch for it. The same tests are green on a copy that was left
as it is, so what makes them red is the edit.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

MOVES, ARTIFACTS, STORAGE = "core/jobs/moves.lua", "core/jobs/artifacts.py", "core/storage.py"
FENCE = "tests/test_store.py::test_a_stale_claim_writes_nothing"
ATTEMPTS = "tests/test_store.py::test_attempts_are_counted_and_end_in_worker_lost"
ORDER = "tests/test_publish.py::test_a_file_gets_its_name_when_its_bytes_are_on_disk_and_then_the_folders_follow"
KILLS = "tests/test_publish.py::test_a_kill_at_any_moment_leaves_a_model_absent_or_complete"
READER = "tests/test_publish.py::test_a_reader_never_sees_a_part_of_a_file_that_is_published_again_and_again"
DAMAGED_MODEL = "tests/test_publish.py::test_a_damaged_model_is_noticed"
DAMAGED_CHECKPOINT = "tests/test_publish.py::test_a_damaged_checkpoint_is_passed_over_for_the_one_before"
GUARDS = (FENCE, ATTEMPTS, ORDER, KILLS, READER, DAMAGED_MODEL, DAMAGED_CHECKPOINT)

SAFE_PUBLISHING = """            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
"""
SABOTAGES = {  # what is missing -> (file, the text there, what stands there instead, the tests that notice)
    "no fence": (MOVES, "return record[2] == token and HELD[record[1]]", "return HELD[record[1]]", (FENCE,)),
    "no count at the claim": (MOVES, "    redis.call('HINCRBY', key(id), 'attempt', 1)\n", "", (ATTEMPTS,)),
    "no limit of attempts": (MOVES, "'attempt')) >= tonumber(max_attempts)", "'attempt')) < 0", (ATTEMPTS,)),
    "no fsync": (STORAGE, "                os.fsync(file.fileno())\n", "", (ORDER,)),
    "no rename": (STORAGE, SAFE_PUBLISHING, "            path.write_bytes(content)\n", (ORDER, KILLS, READER)),
    "no digest": (
        ARTIFACTS,
        "if hashlib.sha256(content).hexdigest() != sha256:",
        "if False:",
        (DAMAGED_MODEL, DAMAGED_CHECKPOINT),
    ),
}
SOURCE = ("api", "client", "core", "worker", "tests", "pyproject.toml", "README.md")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source, to be spoilt."""
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


def run(copy: Path, cache: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """The tests of a copy, in processes of their own that see nothing of this checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DESCENT_", "PYTEST_"))}
    env |= {"PYTHONPATH": str(copy), "DESCENT_CACHE": str(cache)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=300)


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_without_sabotage_the_guards_are_green(copy: Path, cache: Path) -> None:
    done = run(copy, cache, *GUARDS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("missing", SABOTAGES)
def test_a_sabotage_turns_its_guards_red(copy: Path, cache: Path, missing: str) -> None:
    name, old, new, guards = SABOTAGES[missing]
    spoil(copy / name, old, new)
    done = run(copy, cache, *guards)
    assert done.returncode == 1, done.stdout  # 1: tests failed; anything else: they could not run
    for guard in guards:
        assert f"FAILED {guard}" in done.stdout
