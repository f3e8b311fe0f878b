"""The commands that need no server: they work on this machine's home, its data and its database."""

import asyncio
import contextlib
import io
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from client import output
from client.exits import Exit, usage
from client.options import AsJson, Server, dataset_names, devices, optimizer_names, unknown, with_options

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from core.jobs.keys import KeyStore
    from core.settings import Settings

T = TypeVar("T")

PANEL = "This machine"
_LISTING_LIMIT_S = 900  # of all files in a bucket, a thousand in a request

app = typer.Typer()
data_app = typer.Typer(no_args_is_help=True, help="Data sets.")
keys_app = typer.Typer(no_args_is_help=True, help="Keys: who may use the server.")
app.add_typer(data_app, name="data", rich_help_panel=PANEL)
app.add_typer(keys_app, name="keys", rich_help_panel=PANEL)


def settings_with(**given: Any) -> "Settings":
    """The settings of the environment, with what options say on top. Raises StackError."""
    from core.settings import read_settings

    return read_settings(**{name: value for name, value in given.items() if value is not None})


# --- looking -----------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=PANEL)
@with_options
def doctor(server: Server, as_json: AsJson = False) -> None:
    """Look for what is wrong with a set-up, here and at the server, and say what to do. --json: one finding a line."""
    from client import doctor as doctors

    is_broken = False
    for finding in doctors.examine(server.address, server.key or os.environ.get("DESCENT_API_KEY")):
        output.emit_json(asdict(finding)) if as_json else output.show(doctors.shown(finding))
        is_broken = is_broken or finding.state is doctors.State.BROKEN
    if is_broken:
        raise typer.Exit(Exit.FAILED)


@app.command(rich_help_panel=PANEL)
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    found = installed("descent")
    output.emit_json({"version": found}) if as_json else output.emit(found)


# --- training ----------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=PANEL)
def train(
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without any server.")] = False,
    optimizer: Annotated[
        str, typer.Option(help="sgd, momentum, adagrad, rmsprop, adam, ...", autocompletion=optimizer_names)
    ] = "adam",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.001,
    epochs: Annotated[int, typer.Option(min=1, help="How often over all images.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights and the order of the images.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu or gpu:N.", autocompletion=devices)] = None,
    dataset: Annotated[str, typer.Option(help="mnist or fashion-mnist.", autocompletion=dataset_names)] = "mnist",
    out: Annotated[
        Path | None, typer.Option(help="Where the weights go; default the data set's name.pdparams.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A last line says what came of it.")] = False,
) -> None:
    """Train the lesson's network here (--local); the loss points go to stdout as JSON lines."""
    if not local:
        raise usage("say --local; to train on a server: descent submit")
    out = out or Path(f"{dataset}.pdparams")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise usage(f"{out} cannot be written: it is a folder, or its own is missing or not ours", "--out")
    settings = settings_with()
    spec = {
        "optimizer": optimizer,
        "learning_rate": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "dataset": dataset,
        "device": device or settings.device,
    }
    try:
        outcome = _train_here(spec, settings, out)
    except KeyboardInterrupt:
        output.tell("\ninterrupted: no weights were written")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        output.emit_json(outcome)


def _train_here(fields: dict[str, Any], settings: "Settings", out: Path) -> dict[str, Any]:
    """Train, and say what came of it."""
    from pydantic import ValidationError
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from core.spec import JobSpec
    from core.training import runtime

    try:
        spec = JobSpec.model_validate(fields)
    except ValidationError as refused:
        raise usage("; ".join(_reason(error) for error in refused.errors())) from None
    runtime.prepare(settings.threads_per_trainer)
    with contextlib.redirect_stderr(io.StringIO()):  # Paddle's advice on the variables that are set on purpose
        from core.training import network, trainer
    from client import demo as demonstration
    from core.training.fused import kernel as fused
    from core.training.progress import Block, EpochEnd, Finished

    data = demonstration.fetch(settings, output.err, name=spec.dataset)
    outcome: dict[str, Any] = {}
    kernel = fused.load(settings.cache_dir / "kernels", wanted=settings.kernel == "fused", prebuilt=settings.kernels)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.err) as progress:
        task = progress.add_task(f"{spec.optimizer.name} {fields['learning_rate']:g}", total=spec.total_steps)
        for event in trainer.train(spec, data, kernel=kernel):
            if isinstance(event, Block):
                for point in event.points:
                    output.emit_json({"step": point.step, "epoch": point.epoch, "loss": point.loss})
                progress.update(task, completed=event.steps_done)
            elif isinstance(event, EpochEnd):
                output.tell(
                    f"epoch {event.epoch}: validation accuracy {event.valid_accuracy:.2%}, {event.seconds:.1f} s"
                )
            elif isinstance(event, Finished):
                out.write_bytes(network.to_pdparams(event.weights))
                outcome = {"test_accuracy": event.test_accuracy, "path": str(out)}
                output.tell(f"test accuracy {event.test_accuracy:.2%}, weights in {out}")
    return outcome


def _reason(error: "ErrorDetails") -> str:
    """One thing that is wrong with a job, and what is allowed."""
    field, context, message = str(error["loc"][0]) if error["loc"] else "spec", error.get("ctx", {}), error["msg"]
    if allowed := context.get("allowed"):
        hint = f"; did you mean {context['did_you_mean']}?" if context.get("did_you_mean") else "."
        message += f"{hint} Allowed: {', '.join(allowed)}."
    return f"{field}: {message}"


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="mnist or fashion-mnist.", autocompletion=dataset_names)] = "mnist",
    as_json: AsJson = False,
) -> None:
    """Fetch a data set into the cache, if it is nowhere here, and print where the cache has it."""
    from client import demo as demonstration
    from core.catalogue import DATASETS

    if name not in DATASETS:
        raise usage(f"there is no data set {name!r}{unknown(name, DATASETS)}", "NAME")
    settings = settings_with()
    demonstration.fetch(settings, output.err, name=name)
    place = str(settings.cache_dir / name)
    output.emit_json({"dataset": name, "path": place}) if as_json else output.emit(place)


# --- the database ------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=PANEL)
def reindex(as_json: AsJson = False) -> None:
    """Store every job anew that has files and no record, after a database was lost. Prints a line a job."""
    from core.jobs import artifacts
    from core.jobs.archive import reindex as store_anew
    from core.jobs.work import WorkStore

    settings = settings_with()
    artifacts.require_storage(settings)

    async def run() -> dict[str, str]:
        async with WorkStore.connect(settings.store_url) as store:
            return await store_anew(store, artifacts.storage(settings, limit_s=_LISTING_LIMIT_S))

    with _database(settings, "descent-worker"):
        outcome = asyncio.run(run())
    for job_id, what in outcome.items():
        output.emit_json({"job_id": job_id, "outcome": what}) if as_json else output.emit(f"{job_id} {what}")
    restored = sum(what == "restored" for what in outcome.values())
    output.tell(f"{restored} of {len(outcome)} restored")


@keys_app.command("create")
def create_key(
    owner: Annotated[str, typer.Argument(help="Whose jobs it will see. An owner may have several keys.")],
    admin: Annotated[bool, typer.Option("--admin", help="It sees everybody's jobs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It cannot be shown again."""
    from core.errors import InvalidRequest

    try:
        key, text = _with_keys(lambda keys: keys.create(owner, admin=admin))
    except InvalidRequest as error:
        raise usage(error.problems[0].detail, "OWNER") from None
    output.emit_json({"key": text, "id": key.id, "owner": key.owner, "admin": key.admin}) if as_json else output.emit(
        text
    )
    output.tell(f"key {key.id} of {key.owner}: keep it, it is not shown again")


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys: id, owner, when each was made and last used (to a minute). --json: one a line."""
    rows = [
        {
            "id": key.id,
            "owner": key.owner,
            "admin": key.admin,
            "created_at": _at(key.created_at),
            "used_at": _at(key.used_at),
        }
        for key in _with_keys(lambda keys: keys.all())
    ]
    if not rows:
        output.tell("no keys: whoever reaches the server may use it; `descent keys create OWNER` makes one")
    for row in rows:
        if as_json:
            output.emit_json(row)
            continue
        kind = "admin" if row["admin"] else "user"
        output.emit(
            f"{row['id']}  {row['owner']:<20} {kind:<6} made {row['created_at']}  used {row['used_at'] or 'never'}"
        )


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Its id, as `list` shows it: the middle part of the key.")],
    as_json: AsJson = False,
) -> None:
    """Make a key worthless, within some seconds. Its owner's jobs stay."""

    async def revoke(keys: "KeyStore") -> bool:
        await keys.revoke(key_id)
        return await keys.exist()

    are_left = _with_keys(revoke)
    if as_json:
        output.emit_json({"id": key_id, "revoked": True, "keys_are_left": are_left})
    output.tell(f"key {key_id} is revoked" + ("" if are_left else "; it was the last one"))


def _with_keys(use: "Callable[[KeyStore], Awaitable[T]]") -> T:
    from core.jobs.database import connect
    from core.jobs.keys import KeyStore

    settings = settings_with()

    async def connected() -> T:
        async with connect(settings.store_url) as database:
            return await use(KeyStore(database))

    with _database(settings, "descent-api"):
        return asyncio.run(connected())


def _at(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z") if moment else None


@contextlib.contextmanager
def _database(settings: "Settings", user: str) -> Iterator[None]:
    """The database, for the length of a block: the one that runs, or the embedded one, started for this.

    `user` names the rights that are needed there, in `core/jobs/users.acl`.
    """
    from client.redis_server import RedisServer, answers
    from core.jobs.access import look

    if settings.redis_url:
        asyncio.run(look(settings, user))
    if settings.redis_url or answers(settings.socket):
        yield
        return
    if not (settings.home / "redis").exists():
        output.tell(f"a new database, in {settings.home}: is that the server's DESCENT_HOME?", "yellow")
    server = RedisServer(settings)
    child = server.start()
    try:
        yield
    finally:
        child.stop(20)
        server.release()
