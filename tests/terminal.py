"""A terminal of a given size, as a command sees it, and what stands on its screen afterwards."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.training import runtime

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MOVE = re.compile(r"\r|\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Shown:
    """What a command has written to its terminal, and its exit code."""

    raw: str
    code: int

    @property
    def text(self) -> str:
        """Without colours; each line that was drawn, also where it was drawn over later."""
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        return [line for line in _MOVE.sub("\n", _COLOUR.sub("", self.raw)).splitlines() if line]


def as_typed() -> None:
    """In a process just forked: Ctrl-C reaches it, also where whoever runs the tests has been told to ignore that (nohup)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    runtime.die_with_parent()


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    columns: int = 80,
    rows: int = 24,
    interrupt_at: Callable[[str], bool] = lambda _: False,
    within_s: float = 120,
) -> Shown:
    """Run a command with stdin, stdout and stderr on a terminal; Ctrl-C is typed once its text fits `interrupt_at`."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    tty.setcbreak(theirs)  # no echo; Ctrl-C is still a signal

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        as_typed()

    process = subprocess.Popen(
        command,
        env={**env, "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    text, until, typed = b"", time.monotonic() + within_s, False
    try:
        while time.monotonic() < until:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # Linux: whoever was at the other end is gone
                    break
                if not piece:
                    break
                text += piece
            if not typed and interrupt_at(text.decode(errors="replace")):
                typed = True
                os.write(ours, b"\x03")
        return Shown(text.decode(), process.wait(5))
    finally:
        os.close(ours)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    shown = run(sys.argv[2:], env=os.environ, columns=int(sys.argv[1]))
    sys.stdout.write(shown.raw)
