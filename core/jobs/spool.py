"""The spool of a claim: what its trainer told, a line a message, in the job's folder.

While Redis is away, or when a worker dies with points it had not stored yet, the history is still here. It is complete from
step 0: who goes on from a checkpoint starts the own spool with what was told up to there.
"""

import json
import os
from pathlib import Path
from typing import Any

from core.jobs import artifacts

Message = dict[str, Any]  # {"type": "block" | "epoch", ...}, as the trainer sends it


class Spool:
    """Written as it goes on, so that it outlives its process; synced before each checkpoint, for a power cut."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / artifacts.SPOOL).open("w", encoding="utf-8")

    def add(self, message: Message) -> None:
        self._file.write(json.dumps(message, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())


def read(path: Path) -> list[Message]:
    """The messages of a spool, up to a line that was cut short."""
    messages = []
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                messages.append(json.loads(line))
    except (OSError, ValueError):
        pass  # it ends here
    return messages
