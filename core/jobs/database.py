"""Redis: the one home of its client. The stores that stand on it know the keys."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError

from core.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

_SCRIPTS = Path(__file__).parent


class Database:
    """A Redis-protocol server, as one event loop talks to it."""

    def __init__(self, redis: "Redis") -> None:
        self.redis: Any = redis  # its types give every reply as whatever any server could ever send

    def script(self, source: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        """A Lua script that is sent once; call it with `args`."""
        return self.redis.register_script(source)  # type: ignore[no-any-return]


class _Pool(BlockingConnectionPool):
    """Who finds all connections taken waits for one. One comes back also when who had it is cancelled meanwhile."""

    async def release(self, connection: Any) -> None:
        try:
            await super().release(connection)
        except asyncio.CancelledError:
            if connection in self._in_use_connections:  # the cancelling came while it waited for the pool's lock
                await asyncio.shield(super().release(connection))
            raise


def script_of(name: str) -> str:
    """The Lua script in a file beside this one. Behind its first line, which a server reads by itself, come the queues."""
    first_line, _, rest = (_SCRIPTS / name).read_text().partition("\n")
    return f"{first_line}\n{(_SCRIPTS / 'queues.lua').read_text()}\n{rest}"


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Database]:
    """The server at `url`, for the calling event loop. Connects on first use, and every wait has a limit."""
    pool = _Pool.from_url(
        url,
        max_connections=100,
        timeout=5,
        decode_responses=True,
        socket_timeout=2,
        socket_connect_timeout=2,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2, (Disconnected,)),  # silence was waited for already
        health_check_interval=30,
    )
    redis = Redis.from_pool(pool)
    try:
        yield Database(redis)
    finally:
        await redis.aclose()


def reaching_redis(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turn whatever redis-py raises into Unavailable, so that nobody else needs to know it."""

    @wraps(method)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {type(error).__name__}") from error

    return guarded
