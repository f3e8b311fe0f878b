"""Redis: the one home of its client. The stores that stand on it know the keys."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection, RedisSSLContext
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as Disconnected

from core.errors import Unavailable

_IN_A_SCRIPT = ("user executing the script can't", "ACL failure in script")  # a right that is missing there

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
    """Who finds all connections taken waits for one. One comes back also when who had it is cancelled meanwhile.

    Over TLS all share one context: each one's own would read the system's certificates again, for 30 ms of the loop.
    """

    _tls: RedisSSLContext | None = None

    def make_connection(self) -> AbstractConnection:
        connection: AbstractConnection = super().make_connection()  # type: ignore[no-untyped-call]
        if isinstance(connection, SSLConnection):
            connection.ssl_context = self._tls = self._tls or connection.ssl_context
        return connection

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
    """Turn whatever redis-py raises into Unavailable, so that nobody else needs to know it.

    On Python 3.11 redis-py loses a cancel that comes just when a command was written (`asyncio.wait_for`); it is raised here.
    """

    @wraps(method)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            done = await method(*args, **kwargs)
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {type(error).__name__}") from error
        if task and task.cancelling() > cancels:
            raise asyncio.CancelledError
        return done

    return guarded


def what_is_wrong(error: BaseException) -> str | None:
    """What is set up wrong, and what to do, when no waiting would help; None when the server is merely away."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for each in reversed(chain):  # the innermost knows best
        if isinstance(each, ssl.SSLError) and (why := _wrong_in_tls(each)):
            return why
        if isinstance(each, RedisError) and (why := _refused(each)):
            return why
    return None


def _wrong_in_tls(error: ssl.SSLError) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _wrong_in_certificate(error)
    if "ALERT" in (error.reason or ""):
        return (
            f"it refuses our certificate or asks for one ({error.reason}): DESCENT_REDIS_CERT and DESCENT_REDIS_KEY name one "
            "that an authority which it trusts has signed"
        )
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return "what answers there speaks no TLS: use the server's TLS port, or `redis://`"
    return None


def _wrong_in_certificate(error: ssl.SSLCertVerificationError) -> str:
    expired, not_yet, other_name, other_address = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_...
    match error.verify_code:
        case code if code == expired:
            return "its certificate has expired: give the server a new one (and look at this machine's clock)"
        case code if code == not_yet:
            return "its certificate is not valid yet: look at the clocks of both machines"
        case code if code in (other_name, other_address):
            return (
                "its certificate is for another name than the host in DESCENT_REDIS_URL: say there a name that the "
                "certificate has, or give the server a certificate for this one"
            )
    return (
        f"its certificate is not signed by an authority trusted here ({error.verify_message}): name the authority's "
        "certificate in DESCENT_REDIS_CA"
    )


def _refused(error: RedisError) -> str | None:
    text = str(error)
    if any(words in text for words in ("NOAUTH", "Authentication required", "HELLO must be called with")):
        return "it asks who we are: name a user in DESCENT_REDIS_URL, and the password's file in DESCENT_REDIS_PASSWORD_FILE"
    if isinstance(error, AuthenticationError):
        return (
            "it knows no such user with this password, or the user is off: see DESCENT_REDIS_URL and "
            "DESCENT_REDIS_PASSWORD_FILE"
        )
    if isinstance(error, NoPermissionError) or any(words in text for words in _IN_A_SCRIPT):
        return f"its user lacks rights ({text}). docs/operations.md has the rights of each process, ready to use"
    if "DB index is out of range" in text:
        return "it has no database of the number in DESCENT_REDIS_URL"
    if "compiling script" in text or "acl_check_cmd" in text:
        return "it is too old: Redis 7.0 or newer is needed, or Valkey"
    return None
