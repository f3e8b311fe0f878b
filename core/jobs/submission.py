"""Submitting jobs: what a move is sent of them, and what its answers mean."""

import hashlib
from collections.abc import Sequence

from core.errors import JobDeleted, KeyReused, QueueFull, Unavailable
from core.jobs.record import to_json
from core.spec import JobSpec


def facts_of(spec: JobSpec, sweep: str | None = None) -> tuple[str, str, int, str, str]:
    """What a new job's record begins with: the spec, its hash, its steps, the optimizer, and the labels of the list."""
    return spec.model_dump_json(), spec.hash(), spec.total_steps, spec.optimizer.name, to_json(_labels(spec, sweep))


def digests_of(idempotency_key: str | None, body: str, owner: str) -> tuple[str, str]:
    """What the store keeps of a client's key and of what was asked for with it; nothing without a key."""
    if idempotency_key is None:
        return "", ""
    return _digest(f"{owner}\n{idempotency_key}" if owner else idempotency_key), _digest(body)


def checked_outcome(outcome: Sequence[str]) -> tuple[str, bool]:
    """The id that a submit led to, and whether it is new. Raises KeyReused, JobDeleted, QueueFull or Unavailable."""
    said, found = outcome
    refuse(said)
    if said == "reused":
        raise KeyReused("this Idempotency-Key was used for another request")
    if said == "gone":
        raise JobDeleted("what was made with this Idempotency-Key was deleted since; take a new key to make another")
    return found, said == "created"


def refuse(said: str) -> None:
    """Raises QueueFull or Unavailable when a move says that there is no room for more."""
    if said == "full":
        raise Unavailable("the server's memory for jobs is nearly full: delete jobs that are not needed")
    if said == "long":
        raise QueueFull("the server's queue would be longer than it may be")
    if said == "crowded":
        raise QueueFull("you would have more jobs that have not ended than you may: let some end, or cancel some")
    if said == "hoarding":
        raise QueueFull("you would have more jobs than you may: delete some that have ended")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _labels(spec: JobSpec, sweep: str | None) -> list[str]:
    """What the list can be filtered by, beside the status: each is a set of jobs."""
    sweeps = [sweep_label(sweep)] if sweep else []
    tags = [label for tag in spec.tags.items() for label in (tag_label(tag[0], None), tag_label(*tag))]
    return [optimizer_label(spec.optimizer.name), *sweeps, *tags]


def optimizer_label(name: str) -> str:
    return f"optimizer:{name}"


def sweep_label(sweep_id: str) -> str:
    return f"sweep:{sweep_id}"


def tag_label(name: str, value: str | None) -> str:
    """The length keeps `a:b` without a value and `a` with the value `b` apart."""
    return f"tag:{len(name)}:{name}" if value is None else f"tag:{len(name)}:{name}:{value}"
