"""The server as commands meet it: how its refusals are told, and how short names of jobs become jobs."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, NoReturn

import typer

from client import output
from client.exits import Exit, ended
from client.options import Server

if TYPE_CHECKING:
    from client.client import Client, Job, Sweep
    from client.errors import ApiError, FieldProblem

_LOOKED_AT = 1000  # of the newest jobs, for a short name
_SHOWN = 5
_ID_LENGTH = 32  # hexadecimal digits behind `job_` and `sweep_`
_COMPLETED = 50
_COMPLETION_S = 2.0
_OPTIONS = {"learning_rate": "--lr", "learning_rates": "--rates", "max_runtime_s": "--max-runtime", "tags": "--tag",
            "early_stopping": "--asha", "jobs": "the jobs", "images": "the files"}  # fmt: skip


@contextmanager
def connected(server: Server) -> Iterator["Client"]:
    """A client, for the length of a block. Its errors end the command, with a message and the right exit code."""
    from client.client import Client
    from client.errors import ApiError, ClientError

    try:
        with Client(server.url, key=server.key) as client:
            yield client
    except ApiError as error:
        tell_refusal(error)
        raise typer.Exit(ended(error)) from None
    except ClientError as error:
        output.tell(f"descent: {error}", "red")
        raise typer.Exit(ended(error)) from None


def tell_refusal(error: "ApiError", *, files: Sequence[str] = ()) -> None:
    """Each thing that is wrong beside the option that it came from, or beside the file if these were sent."""
    if not error.errors:
        output.tell(f"descent: {error}", "red")
        return
    output.tell("descent: the server refuses this", "red")
    for problem in error.errors:
        image = re.match(r"/images/(\d+)", problem["pointer"]) if files else None
        place = files[int(image[1])] if image else option_of(problem["pointer"])
        sentence = _sentence(problem)
        output.tell(f"  {place}: {sentence.replace('a base64 ', 'a ') if image else sentence}")


def option_of(pointer: str) -> str:
    """`/optimizer/momentum` is `--optimizer (momentum)`, `?status` is `--status`."""
    if pointer.startswith("?"):
        return _option(pointer[1:])
    if pointer and not pointer.startswith("/"):  # of a header, or a part of the path
        return pointer
    name, *inside = pointer.strip("/").split("/")
    option = _option(name) if name else "the request"
    return f"{option} ({'.'.join(inside)})" if inside else option


def _option(field: str) -> str:
    return _OPTIONS.get(field, "--" + field.replace("_", "-"))


def _sentence(problem: "FieldProblem") -> str:
    hint = f"; did you mean {problem['did_you_mean']}?" if problem.get("did_you_mean") else ""
    detail, allowed = problem["detail"], problem.get("allowed", [])
    is_said = all(f"'{each}'" in detail for each in allowed)
    return f"{detail}{hint}" if is_said else f"{detail}{hint or '.'} Allowed: {', '.join(allowed)}."


# --- short names -------------------------------------------------------------------------------------------------------


def find_job(client: "Client", name: str) -> "Job":
    """A job by its id, a beginning or an end of it that no other has, or `@last`. Ends the command where there is none."""
    if name == "@last":
        newest = next(iter(client.jobs.list(limit=1)), None)
        return client.jobs.get(newest.id) if newest else _none("there are no jobs yet; `descent submit` makes one")
    if len(name.removeprefix("job_")) == _ID_LENGTH:
        return client.jobs.get(name if name.startswith("job_") else f"job_{name}")
    found = [job for job in client.jobs.list(limit=_LOOKED_AT) if is_short_for(name, job.id)]
    if len(found) == 1:
        return client.jobs.get(found[0].id)
    if not found:
        _none(f"no job's id begins or ends with {name} (of the newest {_LOOKED_AT:,}); `descent ls` shows them")
    _ambiguous(name, [f"{job.id}  {output.title_of(job.spec)}, {job.status}" for job in islice(found, _SHOWN + 1)])


def find_jobs(client: "Client", names: Sequence[str]) -> list["Job"]:
    return [find_job(client, name) for name in names]


def find_sweep(client: "Client", name: str) -> "Sweep":
    """A sweep by its id, or a beginning of it that no other has."""
    if len(name.removeprefix("sweep_")) == _ID_LENGTH:
        return client.sweeps.get(name if is_sweep(name) else f"sweep_{name}")
    found = [sweep.id for sweep in client.sweeps.list(limit=_LOOKED_AT) if is_short_for(name, sweep.id)]
    if len(found) == 1:
        return client.sweeps.get(found[0])
    if not found:
        _none(f"no sweep's id begins or ends with {name}; `descent ls --sweeps` shows them")
    _ambiguous(name, found[: _SHOWN + 1])


def is_sweep(name: str) -> bool:
    return name.startswith("sweep_")


def is_short_for(name: str, whole: str) -> bool:
    """Whether an id begins or ends so; its kind (`job_`) may be left out."""
    return bool(name) and (whole.startswith(name) or whole.partition("_")[2].startswith(name) or whole.endswith(name))


def _none(message: str) -> NoReturn:
    output.tell(f"descent: {message}", "red")
    raise typer.Exit(Exit.NOT_FOUND)


def _ambiguous(name: str, candidates: Sequence[str]) -> NoReturn:
    output.tell(f"descent: {name} could be each of these; type more of it", "red")
    for line in [*candidates[:_SHOWN], *(["..."] if len(candidates) > _SHOWN else [])]:
        output.tell(f"  {line}")
    raise typer.Exit(Exit.USAGE)


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """Ids for the shell, with what each job is; of sweeps for who has begun with one. Whatever is wrong: none."""
    if is_sweep(incomplete):
        return complete_sweep(incomplete)
    return _completed(lambda client: _jobs_for(client, incomplete))


def complete_sweep(incomplete: str) -> list[tuple[str, str]]:
    """The same of sweeps."""

    def found(client: "Client") -> list[tuple[str, str]]:
        sweeps = [sweep.data for sweep in client.sweeps.list(limit=_COMPLETED) if sweep.id.startswith(incomplete)]
        return [(data["id"], f"{data['progress']['jobs']} jobs, {data['status']}") for data in sweeps]

    return _completed(found)


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """The names that models go by, and jobs."""

    def found(client: "Client") -> list[tuple[str, str]]:
        names = [(name, job_id) for name, job_id in client.models.aliases().items() if name.startswith(incomplete)]
        return names + _jobs_for(client, incomplete)

    return _completed(found)


def _jobs_for(client: "Client", incomplete: str) -> list[tuple[str, str]]:
    jobs = [job for job in client.jobs.list(limit=_COMPLETED) if job.id.startswith(incomplete)]
    return [(job.id, f"{output.title_of(job.spec)}, {job.status}") for job in jobs]


def _completed(find: Callable[["Client"], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    from client.client import Client
    from client.errors import ClientError

    try:
        with Client(timeout_s=_COMPLETION_S, retries=0) as client:
            return find(client)
    except ClientError:
        return []
