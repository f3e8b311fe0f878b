"""The spool of a claim: what its trainer told, a line a message, among the job's files.

While Redis is away, or when a worker dies with points it had not stored yet, the history is still here. It is complete from
step 0: who goes on from a checkpoint starts the own spool with what was told up to there.
"""

import json
from typing import Any

from core.jobs import artifacts
from core.storage import Storage

Message = dict[str, Any]  # {"type": "block" | "epoch", ...}, as the trainer sends it


class Spool:
    """In a folder it is written as it goes on, so that it outlives its process; in a bucket it is as old as the last sync.

    It is synced before each checkpoint. Raises OSError.
    """

    def __init__(self, files: Storage, folder: str) -> None:
        self._log = files.log(f"{folder}/{artifacts.SPOOL}")

    def add(self, message: Message) -> None:
        self._log.add(json.dumps(message, allow_nan=False) + "\n")

    def sync(self) -> None:
        self._log.sync()

    def close(self) -> None:
        self._log.close()


def read(files: Storage, folder: str) -> list[Message]:
    """The messages of a claim's spool, up to a line that was cut short. Raises StorageAway."""
    pieces = sorted(path for path in files.find(folder) if path.startswith(f"{folder}/{artifacts.SPOOL}"))
    messages = []
    try:
        for line in b"".join(files.get(path) for path in pieces).splitlines():
            messages.append(json.loads(line))
    except (FileNotFoundError, ValueError):
        pass  # it ends here
    return messages
