"""`descent up` as a process: several side by side, refusals, long paths, and nothing left behind."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from client.client import Client, JobFailed
from client.redis_server import RedisServer
from client.stack import Stack
from core.settings import Settings, read_settings
from core.training import runtime
from tests.conftest import DOOMED, ROOT, eventually, is_alive, serving
from worker.trainer_process import Setup


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
            job_id = client.jobs.submit(**DOOMED).id
        assert httpx2.get(f"{other.url}/jobs/{job_id}").status_code == 404


def test_a_second_server_on_a_home_is_refused(tmp_path: Path, cache: Path) -> None:
    with serving(tmp_path, cache) as running:
        refused = up(tmp_path)
        assert refused.returncode == 1
        assert f"process {running.process.pid}" in refused.stderr
        assert "HOME_DIR" in refused.stderr
        assert httpx2.get(f"{running.url}/readyz").status_code == 200
        with redis.Redis(unix_socket_path=str(Settings(home=tmp_path).socket)) as fresh:
            assert fresh.ping()  # the refused one has not taken the first one's socket away


def test_a_program_is_told_where_the_server_is(tmp_path: Path, cache: Path) -> None:
    env = os.environ | {"DESCENT_HOME": str(tmp_path), "DESCENT_PORT": "0", "DESCENT_CACHE": str(cache)}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "client.cli", "up", "--json", "--workers", "2"], env=env, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=runtime.die_with_parent,
    ) as process:  # fmt: skip
        assert process.stdout
        told = json.loads(process.stdout.readline())
        assert httpx2.get(f"{told['url']}/readyz").status_code == 200
        assert (told["home"], told["keys_required"]) == (str(tmp_path), False)
        assert [(worker["name"], worker["gpu"]) for worker in told["workers"]] == [
            ("worker-1", None),
            ("worker-2", None),
        ]
        assert (Path(told["logs"]) / "worker-2.log").exists()
        process.terminate()
        rest, words = process.communicate(timeout=60)
    assert (rest, process.returncode) == ("", 0)
    assert "Ready." in words
    assert words.endswith("Stopped.\n")
    for name in ("api", "worker-1", "worker-2"):  # to the last line
        assert all(json.loads(line) for line in (Path(told["logs"]) / f"{name}.log").read_text().splitlines())


def test_a_trainer_that_is_told_to_end_while_paddle_loads_says_nothing(tmp_path: Path, cache: Path) -> None:
    """Paddle's own handler of SIGTERM would write a page into the log, whose lines are JSON."""
    setup = Setup.of(Settings(home=tmp_path, cache=cache))
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "worker.trainer_process", json.dumps(dataclasses.asdict(setup))], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=runtime.die_with_parent,
    ) as trainer:  # fmt: skip
        caught = Path(f"/proc/{trainer.pid}/status")

        def is_paddles() -> bool:
            (mask,) = (line.split()[1] for line in caught.read_text().splitlines() if line.startswith("SigCgt"))
            return bool(int(mask, 16) & 1 << (signal.SIGTERM - 1))

        eventually(is_paddles, what="Paddle's handler")
        trainer.terminate()
        said = trainer.communicate(timeout=30)
    assert (said, trainer.returncode) == (("", ""), -signal.SIGTERM)


def test_a_stack_of_its_own_ignores_the_redis_of_the_shell(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESCENT_REDIS_URL", "redis://127.0.0.1:9/0")
    settings = Settings(home=tmp_path, cache=cache, port=0).model_copy(update={"redis_url": None})
    stack = Stack(settings)
    try:
        stack.start(lambda _: None)
        assert httpx2.get(f"{stack.url}/readyz").status_code == 200
    finally:
        stack.stop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


def test_a_proxy_is_not_asked_for_our_own_address(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(tmp_path, cache) as running:
        assert httpx2.get(f"{running.url}/readyz", trust_env=False).status_code == 200


def test_the_working_folders_modules_are_not_run(tmp_path: Path, cache: Path) -> None:
    foreign = tmp_path / "project"
    for package in ("api", "worker"):
        (foreign / package).mkdir(parents=True)
        (foreign / package / "__init__.py").write_text("raise SystemExit('foreign code')")
    with serving(tmp_path / "home", cache, folder=foreign) as running, Client(running.url) as client:
        with pytest.raises(JobFailed) as failed:
            client.jobs.submit(**DOOMED).wait(60)
        assert failed.value.code == "diverged"


def test_several_workers_train_several_jobs(tmp_path: Path, cache: Path) -> None:
    long_job: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1000, "log_every": 100}
    with serving(tmp_path, cache, workers="2") as running, Client(running.url) as client:
        jobs = [client.jobs.submit(**long_job) for _ in range(3)]
        eventually(lambda: [job.refresh().status for job in jobs] == ["running", "running", "queued"], what="two jobs")
        jobs[0].cancel()
        eventually(lambda: jobs[2].refresh().status == "running", what="the third job")


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
        api = running.pid_of("api.app")
        os.kill(api, signal.SIGKILL)

        def answers() -> bool:
            try:
                return httpx2.get(f"{running.url}/healthz").status_code == 200
            except httpx2.TransportError:
                return False

        eventually(lambda: not is_alive(api), what="its death")
        eventually(answers, what="its return")


@pytest.mark.parametrize("durability", ["everysec", "always"])
def test_the_database_syncs_as_often_as_it_is_told(tmp_path: Path, durability: str) -> None:
    settings = read_settings(home=tmp_path, durability=durability)
    server = RedisServer(settings)
    child = server.start()
    try:
        with redis.Redis(unix_socket_path=str(settings.socket)) as store:
            assert store.config_get("appendfsync") == {"appendfsync": durability}
    finally:
        child.stop(10)
        server.release()
