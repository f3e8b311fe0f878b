"""Several API processes on one port: what starts them, watches them and ends them, and serves nothing itself."""

import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from api.app import create_app, serve
from api.metrics import Metrics, Sharing
from core.errors import StackError
from core.processes import Child, Family, ignore_signals, leave_on_signals
from core.settings import Settings, configure_logging, read_settings

log = logging.getLogger(__name__)

_STOP_S = 6.5  # an answer under way may take 5 s (`api.app.serve`); `descent up` waits 8 s for us
_START_LIMIT_S = 20
_MEMORY = Path("/dev/shm")  # what is mapped from a disk waits for the disk, and dies with SIGBUS when it is full


def supervise(settings: Settings) -> None:
    """Serve in `api_processes` children until SIGTERM or SIGINT.

    Raises StackError when the port is taken, or the children end over and over.
    """
    leave_on_signals()
    in_memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with (
        suppress(KeyboardInterrupt),
        _bind(settings) as port,
        tempfile.TemporaryDirectory(prefix="descent-api-", dir=in_memory) as folder,
    ):

        def spawn(name: str) -> Child:
            number = name.removeprefix("api-")
            Sharing(Path(folder), number).clear()
            command = [sys.executable, "-P", "-m", "api.processes", number, str(port.fileno()), folder]
            return Child(name, command, keep_fds=[port.fileno()])

        children = Family(spawn)
        try:
            for number in range(1, settings.api_processes + 1):
                children.start(f"api-{number}")
            where = {"host": settings.host, "port": port.getsockname()[1]}
            log.info("listening", extra={**where, "processes": settings.api_processes})
            children.watch(log.warning)
        finally:
            ignore_signals()
            children.stop("api", _STOP_S)


def _bind(settings: Settings) -> socket.socket:
    """Take the port, for the children to share. Raises StackError when it is taken, by another server of ours as well."""
    port = _unbound(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    try:
        port.bind((settings.host, settings.port))
    except OSError as error:
        port.close()
        raise StackError(f"{settings.host}:{settings.port} cannot be used ({error.strerror})") from None
    if sys.platform == "linux":
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # from now on others of this user may bind it, too
    return port


def _unbound(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does it
    return made


def _own(port: socket.socket) -> socket.socket:
    """A socket of this process alone on the port, among which Linux spreads the connections.

    From one that is shared whoever wakes first takes all that wait (docs/decisions.md); other systems have only that.
    """
    if sys.platform != "linux":
        return port
    own = _unbound(port.family)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    own.bind(port.getsockname())
    port.close()
    return own


def _serve(number: str, port: socket.socket, folder: Path) -> None:
    """Be one of the children."""
    leave_on_signals()  # else Uvicorn, once it has ended in order, ends us by the signal again
    parent = os.getppid()
    settings = read_settings()
    configure_logging(settings.log_level)
    sharing = Sharing(folder, number)
    with suppress(KeyboardInterrupt):
        app = create_app(settings, Metrics(sharing))
        sharing.arrive()
        _await_all(sharing, settings.api_processes)
        serve(app, settings, _own(port))
    if os.getppid() != parent:  # it was killed, and has not cleared up
        shutil.rmtree(folder, ignore_errors=True)


def _await_all(sharing: Sharing, processes: int) -> None:
    """At the first start, begin together: all who connect to the first that is up would stay with it."""
    deadline = time.monotonic() + _START_LIMIT_S
    while len(sharing.pids()) < processes and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    _number, _fd, _folder = sys.argv[1:]
    _serve(_number, socket.socket(fileno=int(_fd)), Path(_folder))
