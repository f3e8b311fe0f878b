"""Files at an address, through fsspec: today `s3://bucket/prefix`. This module is its only home.

An object store has no rename and needs none: an object is there as a whole or not at all, and one request makes it.
"""

import contextlib
import hashlib
import logging
import math
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from core.errors import StackError, StorageAway, StorageRefused

_CONNECT_S, _SILENCE_S = 3, 10  # of one try
_PATIENCE_S = 20  # after which what fails is not tried again
_FIRST_PAUSE_S = 0.2  # between tries; it doubles
_REST_S = 2.0  # after a failure others fail at once, so that they do not all wait for the same
_GOOD_S = 10.0  # how long an answer is a sign of life
_CLEARINGS = 5  # of a folder that somebody writes to
_SEGMENT_BYTES = 1 << 20  # of a log
_COPIES_BYTES = 1 << 30
_PROBE = ".probe"
_MESSAGES = {
    StorageAway: "the storage of files cannot be reached",
    StorageRefused: "the storage of files refuses this server",
}

log = logging.getLogger(__name__)


class Remote:
    """Files below an address. Each operation tries again with growing pauses, and takes no longer than `limit_s`.

    Listings are never remembered. A file that is got by its digest leaves a copy here.
    """

    is_far: ClassVar[bool] = True

    def __init__(self, url: str, *, setting: str, copies: Path | None, limit_s: float) -> None:
        scheme, _, self._base = url.partition("://")
        self._url, self._setting, self._limit_s = url, setting, limit_s
        self._copies = Copies(copies) if copies else None
        self._fs, self._failures = _KINDS[scheme](setting)
        self._answered_at, self._away_until = -math.inf, -math.inf
        self._failure: tuple[type[StorageAway], str] | None = None  # the last, while nothing has succeeded since

    def put(self, name: str, content: bytes, *, anew: bool = True) -> None:
        """One request makes the object. It is read again, so whoever is told of it afterwards gets these bytes."""
        self._call("_pipe_file", name, content)
        if self._call("_cat_file", name) != content:
            raise StorageAway("the storage of files gives back other bytes than it was given", reason=self._url)
        if not anew and set(self.find(name.rpartition("/")[0])) <= {name}:
            self.remove([name])
            raise FileNotFoundError(f"the files beside {name} are gone")

    def get(self, name: str, sha256: str | None = None) -> bytes:
        if sha256 and self._copies and (copy := self._copies.get(sha256)) is not None:
            return copy
        content: bytes = self._call("_cat_file", name)
        if sha256 and self._copies and hashlib.sha256(content).hexdigest() == sha256:
            self._copies.add(sha256, content)
        return content

    def find(self, below: str = "") -> dict[str, int]:
        found = self._call("_find", below, detail=True)
        return {path.removeprefix(f"{self._base}/"): int(about["size"]) for path, about in found.items()}

    def remove(self, names: Iterable[str]) -> None:
        if paths := [f"{self._base}/{name}" for name in names]:
            self._call("_rm", paths)

    def clear(self, below: str) -> None:
        """Who adds a file meanwhile without `anew` looks afterwards whether the others are there, so none stays behind."""
        for _ in range(_CLEARINGS):
            if not (found := self.find(below)):
                return
            self.remove(found)
        raise OSError(f"somebody still writes below {below}")

    def log(self, name: str) -> "Segments":
        return Segments(self, name)

    def probe(self) -> str:
        """Files must also go again: who deletes many at once is not told that it may not (s3fs leaves that out)."""
        if self._failure or time.monotonic() > self._answered_at + _GOOD_S:
            name = f"{_PROBE}-{secrets.token_hex(8)}"  # somebody else may look just now
            self.put(name, b"Descent looks whether it can write here, and remove what it wrote.\n")
            self.remove([name])
            if self.find(name):
                self._fail(
                    StorageRefused, "files may be written there, and not deleted: look at the policies of the bucket"
                )
        return "answers"

    def _call(self, operation: str, where: str | list[str], *given: Any, **options: Any) -> Any:
        """Have fsspec do something, within the limit. Raises FileNotFoundError, StorageAway, StorageRefused."""
        from fsspec.asyn import sync

        began, failure = time.monotonic(), self._failure
        if failure and began < self._away_until:
            raise _problem(*failure)
        place = where if isinstance(where, list) else f"{self._base}/{where}".rstrip("/")
        pause, deadline = _FIRST_PAUSE_S, began + self._limit_s
        while True:
            try:
                act, left_s = getattr(self._fs, operation), max(deadline - time.monotonic(), 0.1)
                answer = sync(self._fs.loop, act, place, *given, timeout=left_s, **options)
            except self._failures as error:
                self._judge(error, is_last=time.monotonic() + pause > min(deadline, began + _PATIENCE_S))
                time.sleep(pause)
                pause *= 2
            else:
                self._answered_at, self._failure = time.monotonic(), None
                return answer

    def _judge(self, error: Exception, *, is_last: bool) -> None:
        """Raise what a failure means, unless the next try may do better."""
        said = f"{type(error).__name__}: {error}"[:200]
        match _kind_of(error):
            case "NoSuchBucket":
                bucket = self._base.partition("/")[0]
                self._fail(StorageRefused, f"there is no bucket {bucket}: make it, or correct {self._setting}")
            case "FileNotFoundError":
                self._answered_at = time.monotonic()
                raise FileNotFoundError(said)
            case "NoCredentialsError" | "PartialCredentialsError":
                self._fail(StorageRefused, "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
            case "PermissionError":
                self._fail(
                    StorageRefused,
                    f"the credentials are wrong, or may not list, read, write and delete there ({said}): look at "
                    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the policies of the bucket",
                )
        if is_last:
            self._fail(
                StorageAway,
                f"it cannot be reached or does not do as it is asked ({said}): look at AWS_ENDPOINT_URL, AWS_REGION and "
                "the network",
            )

    def _fail(self, kind: type[StorageAway], reason: str) -> None:
        self._failure, self._away_until = (kind, f"{self._url}: {reason}"), time.monotonic() + _REST_S
        problem = _problem(*self._failure)
        log.warning(str(problem), extra={"reason": problem.reason})
        raise problem


class Segments:
    """A log in an object store, which cannot add to objects: the last segment is written anew until it is large.

    A sync writes what was added since the one before; if it fails, the next one does. The first segment is there at once,
    empty: who looks for logs sees that this one was begun.
    """

    def __init__(self, files: Remote, name: str) -> None:
        self._files, self._name = files, name
        self._number, self._text, self._is_new = 0, bytearray(), True
        self.sync()

    def add(self, line: str) -> None:
        self._text += line.encode()
        self._is_new = True

    def sync(self) -> None:
        if not self._is_new:
            return
        self._files.put(f"{self._name}.{self._number:06d}", bytes(self._text))
        self._is_new = False
        if len(self._text) > _SEGMENT_BYTES:
            self._number, self._text = self._number + 1, bytearray()

    def close(self) -> None:
        """There is nothing to close. What was added since the last sync is not kept."""


class Copies:
    """Copies of files by their digest, in a folder that never grows beyond a size: those unused for longest go first."""

    def __init__(self, folder: Path, *, most_bytes: int = _COPIES_BYTES) -> None:
        self._folder, self._most_bytes = folder, most_bytes

    def get(self, sha256: str) -> bytes | None:
        """The copy; None when there is none, or a damaged one."""
        path = self._folder / sha256
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == sha256:
                os.utime(path)
                return content
        return None

    def add(self, sha256: str, content: bytes) -> None:
        """Keep a copy. A disk that refuses costs only time."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f".{secrets.token_hex(8)}.tmp"
            temporary.write_bytes(content)
            temporary.replace(self._folder / sha256)
            self._make_room()
        except OSError as error:
            log.warning("no copy could be kept", extra={"reason": str(error)})

    def _make_room(self) -> None:
        there = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(self._folder))
        size = sum(size for _, size, _ in there)
        for _, freed, path in there:
            if size <= self._most_bytes:
                break
            Path(path).unlink(missing_ok=True)
            size -= freed


def _problem(kind: type[StorageAway], reason: str) -> StorageAway:
    return kind(_MESSAGES[kind], reason=reason)


def _kind_of(error: Exception) -> str:
    """A failure's kind: the store's own word for what it has no exception of its own for, or the name of the exception."""
    answer = getattr(error.__cause__, "response", None) or {}
    if answer.get("Error", {}).get("Code") == "NoSuchBucket":
        return "NoSuchBucket"
    return next(
        (kind.__name__ for kind in (FileNotFoundError, PermissionError) if isinstance(error, kind)),
        type(error).__name__,
    )


def _s3(setting: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """The file system, and what it raises. It takes address and credentials from the usual AWS variables and files."""
    try:
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError
        from s3fs import S3FileSystem
    except ImportError as error:
        raise StackError(
            f"{setting} is an s3:// address, and what speaks to those is not installed: pip install s3fs"
        ) from error
    limits = {"connect_timeout": _CONNECT_S, "read_timeout": _SILENCE_S, "retries": {"total_max_attempts": 1}}
    region = (
        {"region_name": os.environ["AWS_REGION"]} if os.environ.get("AWS_REGION") else {}
    )  # botocore asks for the other
    fs = S3FileSystem(
        config_kwargs=limits,
        client_kwargs=region,
        use_listings_cache=False,
        skip_instance_cache=True,
        max_concurrency=1,
    )
    fs.retries = 1  # we try again
    return fs, (OSError, BotoCoreError, ClientError)


_KINDS = {"s3": _s3}
