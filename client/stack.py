"""`descent up`: the embedded server, the API and the workers as children of one process, started and stopped together."""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import httpx2

from client.redis_server import RedisServer
from core import devices
from core.errors import StackError
from core.jobs import artifacts
from core.jobs.access import refuse_without_access
from core.jobs.keys import refuse_without_keys
from core.processes import Child, Family, Say, ignore_signals, leave_on_signals
from core.settings import Settings, is_loopback

_READY_LIMIT_S = 60
_API_STOP_S, _REDIS_STOP_S = 8.0, 20.0


class Stack:
    """Everything one home needs to serve. Start order: server, API, workers; stopped in the order API, workers, server."""

    def __init__(self, settings: Settings) -> None:
        self._slots = devices.slots(settings)
        settings = settings.model_copy(update={"workers": len(self._slots)})
        self.settings = settings if settings.port else settings.model_copy(update={"port": free_port(settings.host)})
        self._server = None if settings.redis_url else RedisServer(self.settings)
        self._children = Family(self._spawn)

    @property
    def url(self) -> str:
        host = self.settings.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.port}"

    @property
    def facts(self) -> dict[str, Any]:
        """What runs, and where, for programs."""
        settings = self.settings
        return {
            "url": self.url,
            "home": str(settings.home),
            "logs": str(settings.logs_dir),
            "artifacts": settings.artifacts_at,
            "keys_required": settings.keys_required,
            "workers": [
                {
                    "name": name,
                    "device": f"gpu:{slot.number}" if slot.gpu else settings.device,
                    "gpu": slot.gpu and (slot.gpu.name or slot.gpu.id),
                    "threads": settings.threads_per_trainer,
                }
                for name, slot in zip(self._names()[1:], self._slots, strict=True)
            ],
        }

    def start(self, say: Say) -> None:
        """Start all and wait until a job could run. Raises StackError; nothing is left running then."""
        settings = self.settings
        _refuse_taken_port(settings.host, settings.port)
        settings.logs_dir.mkdir(parents=True, exist_ok=True)
        artifacts.require_storage(settings)
        try:
            if self._server:
                self._children["redis"] = self._server.start()
            say(f"  redis    {settings.store_name}")
            if settings.artifacts:
                say(f"  files    {settings.artifacts}")
            refuse_without_access(settings, "descent-api", "descent-worker")
            if settings.keys_required:
                asyncio.run(refuse_without_keys(settings.store_url, settings.host))
            for name in self._names():
                self._children.start(name)
            self._await_ready()
            say(f"  api      {self.url}  (docs: {self.url}/docs)")
            if settings.api_processes > 1:
                say(f"           {settings.api_processes} processes")
            if not settings.keys_required and not is_loopback(settings.host):
                say("           no keys are asked for: whoever reaches this port can use it")
            for worker in self.facts["workers"]:
                gpu = f" ({worker['gpu']})" if worker["gpu"] else ""
                say(f"  {worker['name']} {worker['device']}{gpu}, {worker['threads']} threads")
        except BaseException:
            self.stop()
            raise

    def _names(self) -> list[str]:
        return ["api", *(f"worker-{n}" for n in range(1, len(self._slots) + 1))]

    def _spawn(self, name: str) -> Child:
        """A service as a child. It gets our settings as variables, so that both see the same."""
        if self._server and name == "redis":
            return self._server.respawn()
        kind, _, number = name.partition("-")
        command = [sys.executable, "-P", "-m", f"{kind}.app"]  # -P: never a module of the working folder
        command.append("--keys-checked" if kind == "api" else number)  # the keys were checked by us, when we began
        return Child(name, command, log_file=self.settings.logs_dir / f"{name}.log", env=self.settings.variables())

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_LIMIT_S
        why = ""
        while time.monotonic() < deadline:
            for child in self._children.values():
                if child.exit_code is not None:
                    raise StackError(f"{child.name} ended at once: see {self.settings.logs_dir / child.name}.log")
            try:
                answer = httpx2.get(f"{self.url}/readyz", timeout=5, trust_env=False)  # not through a proxy
                if answer.status_code == 200:
                    return
                why = answer.text
            except httpx2.TransportError as error:
                why = repr(error)
            time.sleep(0.05)
        raise StackError(f"not ready within {_READY_LIMIT_S} s: {why}")

    def watch(self, say: Say) -> NoReturn:
        """Start again what dies, for ever. Raises StackError when something dies over and over."""
        self._children.watch(lambda text: say(f"  {text}"))

    def stop(self) -> None:
        """Stop all: no new requests, then the workers give their jobs back, then the server writes its last."""
        ignore_signals()
        for kind, limit_s in (("api", _API_STOP_S), ("worker", self.settings.leave_s), ("redis", _REDIS_STOP_S)):
            self._children.stop(kind, limit_s)
        if self._server:
            self._server.release()


@contextmanager
def running(settings: Settings, say: Say) -> Iterator[Stack]:
    """A stack for the length of a block, which Ctrl-C, SIGTERM and SIGHUP leave by KeyboardInterrupt."""
    leave_on_signals()
    stack = Stack(settings)
    stack.start(say)
    try:
        yield stack
    finally:
        stack.stop()


def serve(settings: Settings, say: Say, began: Callable[[Stack], None] = lambda stack: None) -> None:
    """Run a stack until SIGINT, SIGTERM or SIGHUP. `began` is called when it is ready."""
    with contextlib.suppress(KeyboardInterrupt), running(settings, say) as stack:
        began(stack)
        say(
            f"\nReady. Ctrl-C stops everything. What is kept: {settings.home}. Logs: {settings.logs_dir}\n"
            f"Open {stack.url} in a browser, or try:"
        )
        key = "-H 'Authorization: Bearer dsc_...' " if settings.keys_required else ""
        say(
            f"  curl -s {stack.url}/jobs {key}-H 'Content-Type: application/json' "
            '-d \'{"optimizer": "adam", "learning_rate": 0.001, "epochs": 1}\''
        )
        try:
            stack.watch(say)
        finally:
            say("\nStopping.")
    say("Stopped.")


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"{host}:{port} cannot be used ({error.strerror}). Choose another: make up PORT=..."
            ) from None
