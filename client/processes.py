"""Child processes that never outlive us."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """A process in a session of its own (Ctrl-C reaches only us), which the kernel ends when we die (Linux)."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_file: Path,
        env: Mapping[str, str] | None = None,
        keep_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        with log_file.open("ab") as log:
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


def _die_with_parent() -> None:
    """SIGTERM, unlike a trainer's SIGKILL: a worker then gives its job back, and the database writes its last."""
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
