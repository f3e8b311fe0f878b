"""What is held open: event streams, and answers that `Prefer: wait` delays. There is a limit to it, of one owner and of all."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import RateLimited

MOST_HELD = 256
MOST_HELD_OF_ONE = 32  # where keys tell who is who


class Holds:
    """Of this API process. Each counts the jobs that it watches, so that all together read Redis so often and no more."""

    def __init__(self, *, has_owners: bool) -> None:
        self._most_of_one = MOST_HELD_OF_ONE if has_owners else MOST_HELD
        self._held: Counter[str] = Counter()
        self.watched = 0

    @contextmanager
    def held(self, owner: str, *, jobs: int = 1) -> Iterator[None]:
        """For the length of a block. Raises RateLimited when as much is held as may be."""
        if self._held[owner] >= self._most_of_one or self._held.total() >= MOST_HELD:
            raise RateLimited("too many event streams and waits (`Prefer: wait`) are open", retry_after_s=5)
        self._held[owner] += 1
        self.watched += jobs
        try:
            yield
        finally:
            self.watched -= jobs
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]
