"""Owners: whose records are whose, and the part that all stores of such records share."""

from collections.abc import Callable, Coroutine
from copy import copy
from dataclasses import asdict, dataclass
from functools import wraps
from json import dumps
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar

from core.errors import NotFound
from core.jobs.database import Database
from core.origin import current

_KEPT = 100_000

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """On whose behalf something is asked. What is made belongs to `owner`; '' is nobody, while keys are off."""

    owner: str = ""
    sees_all: bool = True

    def may_see(self, owner: str) -> bool:
        return self.sees_all or owner == self.owner


ANYBODY = Caller()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many jobs there may be: of one owner that have not ended, of one owner in all, and of all that wait."""

    most_live: int = 1000
    most_kept: int = 10_000
    most_queued: int = 20_000


UNLESS_TOLD = Limits()


class Owned:
    """A store of records with owners, as one caller sees it: what belongs to others is not there.

    `noun` names the records: one is the hash `descent:<noun>:<id>`, with `created_ms` and, if it has one, `owner`.
    """

    noun: ClassVar[str]

    def __init__(self, database: Database, limits: Limits = UNLESS_TOLD) -> None:
        self.database = database
        self._redis = database.redis
        self._limits = limits
        self._caller = ANYBODY
        self._owners: dict[str, str] = {}  # id -> owner; they never change, and ids never come back

    def of(self, caller: Caller) -> Self:
        """The same store as `caller` sees it."""
        seen = copy(self)
        seen._caller = caller
        return seen

    @property
    def caller(self) -> Caller:
        return self._caller

    @property
    def _by(self) -> str:
        """Who asks, with which request, and what limits there are, as the moves want it."""
        request = current()
        asked = {"request": asdict(request)} if request else {}
        return dumps({"owner": self._caller.owner, **asdict(self._limits), **asked})

    def _own(self, name: str) -> str:
        """The name of a list: everybody's, or the caller's own."""
        return name if self._caller.sees_all else f"{name}:{self._caller.owner}"

    async def _see(self, record_id: str) -> None:
        """Raises NotFound for a record that the caller may not see, as for one that does not exist."""
        if self._caller.sees_all:
            return
        if self._owners.get(record_id) == self._caller.owner:
            return
        # Somebody else's is asked for each time, like one that does not exist: else the time would tell which it is.
        created, owner = await self._redis.hmget(f"descent:{self.noun}:{record_id}", ["created_ms", "owner"])
        if created is None or not self._caller.may_see(owner or ""):
            raise NotFound(f"no such {self.noun}")
        self._remember(record_id, owner or "")

    def _remember(self, record_id: str, owner: str) -> None:
        if len(self._owners) >= _KEPT:
            self._owners.clear()
        self._owners[record_id] = owner


S = TypeVar("S", bound=Owned)
About = Callable[Concatenate[S, str, P], Coroutine[Any, Any, T]]


def seen_by_caller(method: About[S, P, T]) -> About[S, P, T]:
    """A method about one record, by its id: somebody else's is NotFound, exactly as one that does not exist."""

    @wraps(method)
    async def checked(self: S, record_id: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        await self._see(record_id)
        return await method(self, record_id, *args, **kwargs)

    return checked
