"""One after the other: what takes long, or much memory, and is therefore not done by several requests at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter

from core.errors import Unavailable

_LONGEST_WAIT_S = 30  # for those who came before


@asynccontextmanager
async def turn(limiter: CapacityLimiter, busy: str) -> AsyncIterator[None]:
    """As many at a time as the limiter has places. Raises Unavailable, saying `busy`, for a request that waits too long."""
    try:
        async with asyncio.timeout(_LONGEST_WAIT_S):
            await limiter.acquire()
    except TimeoutError:
        raise Unavailable(busy, retry_after_s=10) from None
    try:
        yield
    finally:
        limiter.release()
