"""The models that jobs have left, and the aliases that name them."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from core.errors import FieldProblem, InvalidRequest, ModelNotReady, NotFound, Unavailable
from core.jobs import names
from core.jobs.database import Database, reaching_redis
from core.jobs.job import from_ms
from core.jobs.owners import Owned
from core.jobs.record import hash_of
from core.jobs.store import LOOK, MOVES, READS

MAX_ALIASES = 500
_PREFIX = "descent:job:"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model in the list: of which job, how good, which file, and by which names."""

    job_id: str
    dataset: str
    test_accuracy: float | None
    sha256: str
    size_bytes: int
    created_at: datetime
    finished_at: datetime | None  # None while the job is trained further
    names: tuple[str, ...]  # kept ones first


class ModelStore(Owned):
    """Models in Redis. Every method raises Unavailable when Redis cannot be reached or refuses the write."""

    noun = "job"

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._moves = database.script(MOVES)
        self._reads = database.script(READS)

    @reaching_redis
    async def page(self, *, after: str | None, limit: int, dataset: str | None) -> tuple[list[ModelEntry], str | None]:
        """Models, those of the newest jobs first, older than the id `after`; and the id to go on from, when there are more."""
        kept, label = await self._kept(), f"model:{dataset}" if dataset else "model"
        look = limit + 1 if self._caller.sees_all else LOOK
        found: list[ModelEntry] = []
        seen = after
        while True:
            upper, wanted = f"({seen}" if seen else "+", limit + 1 - len(found)
            seen, *parts = await self._reads(args=["page", self._own("descent:jobs"), upper, look, wanted, label])
            pairs = zip(parts[::3], parts[1::3], strict=True)
            found += [_entry(job_id, hash_of(record), kept, self._caller.owner) for job_id, record in pairs]
            if len(found) > limit:
                return found[:limit], found[limit - 1].job_id
            if not seen:
                return found, None

    @reaching_redis
    async def get(self, name: str) -> ModelEntry:
        """The model that an alias, a kept name or a job id names. Raises NotFound, also for a job without a model."""
        where = names.found_by(name, owner=self._caller.owner, own=self._own)
        job_id, fields, _ = await self._reads(args=["named", *where]) or ("", [], None)
        record = hash_of(fields)
        if "model" not in record or not self._caller.may_see(record.get("owner", "")):
            raise NotFound("no such model")
        return _entry(job_id, record, await self._kept(), self._caller.owner)

    @reaching_redis
    async def aliases(self) -> dict[str, str]:
        """All names in use, those that the server keeps first: name -> job id."""
        given = await self._redis.hgetall(names.aliases_key(self._caller.owner))
        return await self._kept() | {alias.rpartition("/")[2]: job_id for alias, job_id in sorted(given.items())}

    @reaching_redis
    async def name(self, alias: str, job_id: str) -> None:
        """Have the alias name a job's model, whatever it named before. Raises NotFound, ModelNotReady, InvalidRequest."""
        await self._see(job_id)
        match await self._moves(args=["name", names.stored(alias, self._caller.owner), job_id, MAX_ALIASES]):
            case "":
                raise NotFound("no such job")
            case "not_ready":
                raise ModelNotReady("the job has not succeeded, so it has no model to name")
            case "many":
                raise InvalidRequest(FieldProblem("path alias", f"there are {MAX_ALIASES} aliases: delete some"))
            case "full":
                raise Unavailable("the server's memory is nearly full: delete jobs that are not needed")

    @reaching_redis
    async def unname(self, alias: str) -> None:
        """Forget an alias; the model stays. Raises NotFound."""
        if not await self._moves(args=["unname", names.stored(alias, self._caller.owner)]):
            raise NotFound("no such alias")

    async def _kept(self) -> dict[str, str]:
        """What the names that the server keeps name, as far as they name anything."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names.KEPT:
                pipe.zrevrange(self._own(names.ranking_key(name)), 0, 0)
            firsts = await pipe.execute()
        return {name: first[0] for name, first in zip(names.KEPT, firsts, strict=True) if first}


def _entry(job_id: str, record: dict[str, str], kept: dict[str, str], owner: str) -> ModelEntry:
    file = json.loads(record["model"])["safetensors"]
    given = names.own_aliases(record.get("aliases"), owner)
    return ModelEntry(
        job_id=job_id,
        dataset=json.loads(record["spec"])["dataset"],
        test_accuracy=json.loads(record.get("result", "{}")).get("test_accuracy"),
        sha256=file["sha256"],
        size_bytes=file["size_bytes"],
        created_at=cast(datetime, from_ms(record["created_ms"])),
        finished_at=from_ms(record.get("finished_ms")),
        names=(*(name for name, named in kept.items() if named == job_id), *given),
    )
