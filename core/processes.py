"""Child processes that never outlive us, and that are started again when they end."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from core.errors import StackError

_PR_SET_PDEATHSIG = 1
_RESTART_PAUSE_S = 1.0
_MOST_RESTARTS = 5  # within a minute

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

Say = Callable[[str], None]


class Child:
    """A process in a session of its own (Ctrl-C reaches only us), which the kernel ends when we die (Linux).

    What it says goes to `log_file`, or where ours goes.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_file: Path | None = None,
        env: Mapping[str, str] | None = None,
        keep_fds: Sequence[int] = (),
    ) -> None:
        self.name, self.log_file = name, log_file
        with log_file.open("ab") if log_file else contextlib.nullcontext() as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                pass_fds=tuple(keep_fds),
                start_new_session=True,
                preexec_fn=_die_with_parent if _libc is not None else None,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def stop(self, limit_s: float) -> None:
        """End it: SIGTERM, and SIGKILL to all of its session when it takes longer than `limit_s`."""
        self.terminate()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()


class Family(dict[str, Child]):
    """Children by name, each of which `spawn` starts, and starts again."""

    def __init__(self, spawn: Callable[[str], Child]) -> None:
        super().__init__()
        self._spawn = spawn
        self._restarts: dict[str, list[float]] = {}

    def start(self, name: str) -> None:
        self[name] = self._spawn(name)

    def watch(self, say: Say) -> NoReturn:
        """Start again what ends, for ever. Raises StackError when one ends over and over."""
        while True:
            time.sleep(0.2)
            for name, child in list(self.items()):
                if child.exit_code is not None:
                    say(f"{name} ended with {child.exit_code}; starting it again")
                    self._count_restart(name, child)
                    time.sleep(_RESTART_PAUSE_S)
                    self.start(name)

    def _count_restart(self, name: str, child: Child) -> None:
        now = time.monotonic()
        self._restarts[name] = [at for at in self._restarts.get(name, []) if at > now - 60] + [now]
        if len(self._restarts[name]) > _MOST_RESTARTS:
            raise StackError(f"{child.name} keeps ending: see {child.log_file or 'what it said'}")

    def stop(self, kind: str, limit_s: float) -> None:
        """End, at the same time, all whose names begin so."""
        ending = [self.pop(name) for name in list(self) if name.startswith(kind)]
        for child in ending:
            child.terminate()
        deadline = time.monotonic() + limit_s
        for child in ending:
            child.stop(max(0.0, deadline - time.monotonic()))


def leave_on_signals() -> None:
    """Have Ctrl-C, SIGTERM and SIGHUP all raise KeyboardInterrupt.

    SIGINT is set too, because a shell starts what runs in the background with it ignored; an ignored SIGHUP is nohup's
    wish and stays so.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def ignore_signals() -> None:
    """While everything is stopped a second Ctrl-C changes nothing: each part has its limit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _die_with_parent() -> None:
    """SIGTERM, unlike a trainer's SIGKILL: a worker then gives its job back, and the database writes its last."""
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
