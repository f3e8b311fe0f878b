"""`descent up` as a process: several side by side, refusals, long paths, and nothing left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2

from client.client import Client
from core.settings import Settings
from tests.conftest import ROOT, eventually, is_alive, serving


def up(home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """`descent up` that is expected to refuse."""
    env = os.environ | {"DESCENT_HOME": str(home), "DESCENT_PORT": "0"}
    env |= {f"DESCENT_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "client.cli", "up"], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_two_servers_stand_side_by_side(tmp_path: Path, cache: Path) -> None:
    with serving(tmp_path / "a", cache) as one, serving(tmp_path / "b", cache) as other:
        assert one.url != other.url
        with Client(one.url) as client:
            job_id = client.submit(optimizer="sgd", learning_rate=0.1, device="gpu:15")["id"]
        assert httpx2.get(f"{other.url}/jobs/{job_id}").status_code == 404


def test_a_second_server_on_a_home_is_refused(tmp_path: Path, cache: Path) -> None:
    with serving(tmp_path, cache) as running:
        refused = up(tmp_path)
        assert refused.returncode == 1
        assert f"process {running.process.pid}" in refused.stderr
        assert "HOME_DIR" in refused.stderr
        assert httpx2.get(f"{running.url}/readyz").status_code == 200


def test_a_taken_port_is_refused_with_a_hint(tmp_path: Path, cache: Path) -> None:
    with serving(tmp_path / "a", cache) as running:
        refused = up(tmp_path / "b", port=running.url.rpartition(":")[2])
        assert refused.returncode == 1
        assert "PORT=" in refused.stderr


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    refused = up(tmp_path, workers="none")
    assert refused.returncode == 1
    assert "DESCENT_WORKERS" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_home_with_a_long_path_works(tmp_path: Path, cache: Path) -> None:
    home = tmp_path / ("long" * 20) / ("longer" * 10)
    with serving(home, cache) as running:
        socket = Settings(home=home).socket
        assert socket.exists()
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert httpx2.get(f"{running.url}/readyz").status_code == 200
    assert not socket.exists()
    assert not socket.parent.exists()


def test_the_home_is_private(tmp_path: Path, cache: Path) -> None:
    with serving(tmp_path, cache):
        assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_killed_parent_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    with serving(tmp_path, cache) as running:
        family = running.pids
        assert len(family) >= 4
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait(10)
        eventually(lambda: not any(is_alive(pid) for pid in family), within_s=15, what="the end of all")
    with serving(tmp_path, cache) as again:
        assert httpx2.get(f"{again.url}/readyz").status_code == 200


def test_a_service_that_dies_is_started_again(tmp_path: Path, cache: Path) -> None:
    with serving(tmp_path, cache) as running:
        (api,) = (pid for pid in running.pids if "api.app" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(api, signal.SIGKILL)

        def answers() -> bool:
            try:
                return httpx2.get(f"{running.url}/healthz").status_code == 200
            except httpx2.TransportError:
                return False

        eventually(lambda: not is_alive(api), what="its death")
        eventually(answers, what="its return")
