"""Where files are kept: one small interface, and the local or shared folder that is the default.

Names are relative and have slashes (`job_.../7/model.safetensors`). What stands behind an address is in `core.remote`.
"""

import contextlib
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Protocol


class Log(Protocol):
    """A text that is added to while it comes about."""

    def add(self, line: str) -> None: ...

    def sync(self) -> None:
        """When this returns, what was added outlives the process and the machine. Raises OSError."""

    def close(self) -> None: ...


class Storage(Protocol):
    """Files by name. Each is absent or complete for whoever reads, at every moment.

    What cannot be done raises an OSError: FileNotFoundError for a file that is not there, StorageAway when the whole storage
    cannot be reached or used.
    """

    is_far: ClassVar[bool]  # whether to get a file takes a network's time, and may take long

    def put(self, name: str, content: bytes, *, anew: bool = True) -> None:
        """Publish a file: when this returns it is there, and stays. Without `anew` its folder must have files already."""

    def get(self, name: str, sha256: str | None = None) -> bytes:
        """A file's bytes. Who knows their digest may be given a copy that is nearer."""

    def find(self, below: str = "") -> dict[str, int]:
        """The names of all files below a folder, and their sizes; empty when there is no such folder."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, in this order; those that are gone already are none the worse."""

    def clear(self, below: str) -> None:
        """Remove all files below a folder."""

    def log(self, name: str) -> Log:
        """Begin a text. It is found under names that begin with `name`, in order."""

    def probe(self) -> str:
        """See whether files can be written. Returns a word for people."""


class Folder:
    """A folder of this machine, or one that machines share. A file gets its name when its bytes are on the disk."""

    is_far: ClassVar[bool] = False

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, name: str, content: bytes, *, anew: bool = True) -> None:
        """Temp, fsync, rename, fsync of the folders: the file is absent or complete, also after a power cut."""
        path, is_new = self._root / name, not self._root.exists()
        if anew:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)  # a full disk needs the room
            raise
        for folder in path.parents:
            _fsync_folder(folder)
            if folder == (self._root.parent if is_new else self._root):
                break

    def get(self, name: str, sha256: str | None = None) -> bytes:
        return (self._root / name).read_bytes()

    def find(self, below: str = "") -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self._root / below):
            for path in (Path(folder) / name for name in names):
                with contextlib.suppress(FileNotFoundError):  # somebody removes it
                    found[path.relative_to(self._root).as_posix()] = path.stat().st_size
        return found

    def remove(self, names: Iterable[str]) -> None:
        paths = [self._root / name for name in names]
        for path in paths:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in paths} - {self._root}:
            with contextlib.suppress(OSError):  # there is more in it
                folder.rmdir()

    def clear(self, below: str) -> None:
        if (self._root / below).exists():
            shutil.rmtree(self._root / below)
            _fsync_folder(self._root)

    def log(self, name: str) -> "Log":
        return _FileLog(self._root / name)

    def probe(self) -> str:
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._root) as file:
            file.write(b"ok")
        return "writable"


class _FileLog:
    """Written as it goes on, so that it outlives its process; synced for a power cut."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def add(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@functools.cache
def storage_at(location: str, *, setting: str, copies: Path | None = None, limit_s: float = 20) -> Storage:
    """The storage at a folder's path or at an address; the same one for all of this process that ask.

    `setting` is the variable that names it, for messages. An address' `copies` are kept in that folder; each of its
    operations takes `limit_s` seconds at most. Raises StackError when what speaks to such addresses is not installed.
    """
    if "://" not in location:
        return Folder(Path(location))
    from core.remote import Remote

    return Remote(location, setting=setting, copies=copies, limit_s=limit_s)
