"""Keys: who may use the server, and whose jobs are whose.

A key is `dsc_<id>_<secret>`, the secret 256 random bits. It is shown once; Redis holds its SHA-256, in `descent:keys`
(id -> JSON); `descent:keys:used` says when each was last used (id -> milliseconds).
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime

from core.errors import FieldProblem, InvalidRequest, NotFound, StackError, Unavailable
from core.jobs.database import Database, connect, reaching_redis
from core.jobs.job import from_ms
from core.jobs.owners import Caller

OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
REMEMBERED_S = 5.0  # a process looks a key up so often at most; a revoked one works so long at most
_USED_EVERY_S = 60
_MOST_REMEMBERED = 10_000
_KEY = re.compile(r"dsc_([0-9a-f]{12})_[0-9a-f]{64}")
_KEYS, _USED = "descent:keys", "descent:keys:used"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Key:
    """What is known about a key: all but the key."""

    id: str
    owner: str
    admin: bool  # sees everybody's jobs, those from before there were keys as well
    created_at: datetime | None
    used_at: datetime | None = None

    @property
    def caller(self) -> Caller:
        return Caller(owner=self.owner, sees_all=self.admin)


@dataclass(frozen=True)
class _Stored:
    """A key as Redis has it."""

    owner: str
    admin: bool
    sha256: str
    created_ms: int

    def known_as(self, key_id: str, used_ms: str | None = None) -> Key:
        created = from_ms(self.created_ms)
        return Key(id=key_id, owner=self.owner, admin=self.admin, created_at=created, used_at=from_ms(used_ms))


class KeyStore:
    """Keys in Redis. Every method raises Unavailable when Redis cannot be reached."""

    def __init__(self, database: Database, *, remembered_s: float = REMEMBERED_S) -> None:
        """`remembered_s`: how long what Redis said about a key is good."""
        self._redis, self._remembered_s = database.redis, remembered_s
        self._remembered: dict[str, tuple[_Stored | None, float]] = {}  # None: there is no such key
        self._used_at: dict[str, float] = {}

    @reaching_redis
    async def create(self, owner: str, *, admin: bool = False) -> tuple[Key, str]:
        """A new key of an owner, who may have several, and its text. Raises InvalidRequest for a name that is none."""
        if not OWNER.fullmatch(owner):
            problem = "1 to 64 letters, digits and . _ @ -, the first a letter or a digit"
            raise InvalidRequest(FieldProblem("/owner", problem))
        while True:
            key_id = secrets.token_hex(6)
            text = f"dsc_{key_id}_{secrets.token_hex(32)}"
            stored = _Stored(owner=owner, admin=admin, sha256=_digest(text), created_ms=round(time.time() * 1000))
            if await self._redis.hsetnx(_KEYS, key_id, json.dumps(asdict(stored))):
                return stored.known_as(key_id), text

    @reaching_redis
    async def all(self) -> list[Key]:
        """All keys, the oldest first."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(_KEYS)
            pipe.hgetall(_USED)
            stored, used = await pipe.execute()
        keys = [_Stored(**json.loads(text)).known_as(key_id, used.get(key_id)) for key_id, text in stored.items()]
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    @reaching_redis
    async def exist(self) -> bool:
        return bool(await self._redis.exists(_KEYS))

    @reaching_redis
    async def revoke(self, key_id: str) -> None:
        """Raises NotFound."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(_KEYS, key_id)
            pipe.hdel(_USED, key_id)
            gone, _ = await pipe.execute()
        if not gone:
            raise NotFound("no such key; `descent keys list` shows them")

    async def find(self, text: str) -> Key | None:
        """The key whose text this is. What Redis said is remembered for some seconds."""
        match = _KEY.fullmatch(text)
        stored = await self._recall(match[1]) if match else None
        if match is None or stored is None or not hmac.compare_digest(_digest(text), stored.sha256):
            return None
        await self._note_use(match[1])
        return stored.known_as(match[1])

    async def _recall(self, key_id: str) -> _Stored | None:
        stored, until = self._remembered.get(key_id, (None, 0.0))
        if time.monotonic() < until:
            return stored
        return await self._look_up(key_id)

    @reaching_redis
    async def _look_up(self, key_id: str) -> _Stored | None:
        text = await self._redis.hget(_KEYS, key_id)
        stored = None if text is None else _Stored(**json.loads(text))
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[key_id] = (stored, time.monotonic() + self._remembered_s)
        return stored

    async def _note_use(self, key_id: str) -> None:
        """Once a minute. A database that takes no writes is no reason to refuse a reader."""
        now = time.monotonic()
        if now - self._used_at.get(key_id, -_USED_EVERY_S) < _USED_EVERY_S:
            return
        self._used_at[key_id] = now
        with suppress(Unavailable):
            await self._write_use(key_id)

    @reaching_redis
    async def _write_use(self, key_id: str) -> None:
        await self._redis.hset(_USED, key_id, round(time.time() * 1000))


async def refuse_without_keys(store_url: str, host: str) -> None:
    """Raises StackError when there is no key at all, so that nobody could use the server.

    A Redis that cannot be asked is no reason: as long as it is away, no request that needs a key gets through.
    """
    async with connect(store_url) as database:
        try:
            exist = await KeyStore(database).exist()
        except Unavailable as error:
            log.warning("cannot look for keys; until Redis is there, nobody gets in", extra={"reason": str(error)})
            return
    if not exist:
        raise StackError(
            f"keys are required (DESCENT_HOST is {host}), and there are none: make one with `descent keys create NAME`, "
            "or say --insecure (DESCENT_INSECURE=1) to let in whoever reaches the port"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
