"""The command `descent`. Data goes to stdout, progress to stderr."""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core.catalogue import DEFAULT_DATASET
from core.errors import DescentError, Unavailable
from core.settings import Settings, read_settings

if TYPE_CHECKING:
    from core.jobs.keys import KeyStore

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help="Training as a service."
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets.")
app.add_typer(data_app, name="data")
keys_app = typer.Typer(no_args_is_help=True, help="Keys: who may use the server.")
app.add_typer(keys_app, name="keys")


def main() -> None:
    """Run the command; what goes wrong on purpose becomes one line and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except DescentError as error:
        typer.secho(f"descent: {error}", fg="red", err=True)
        raise SystemExit(1) from None


def _settings(**given: Any) -> Settings:
    return read_settings(**{name: value for name, value in given.items() if value is not None})


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes a free one.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of everything the server keeps.")] = None,
    workers: Annotated[int | None, typer.Option(help="Jobs trained at a time.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Ask for no key, wherever it listens.")] = False,
) -> None:
    """Run the server in the foreground: embedded Redis, API, workers. Ctrl-C stops all."""
    from client import stack

    stack.serve(_settings(port=port, home=home, workers=workers, insecure=insecure or None), typer.echo)


@app.command()
def demo(epochs: Annotated[int, typer.Option(min=1, help="The lesson takes 5.")] = 1) -> None:
    """The lesson's job from end to end over HTTP, on a private server."""
    from client import demo as demonstration

    demonstration.run(_settings(), epochs=epochs, console=Console(highlight=False, soft_wrap=True))


@app.command()
def api() -> None:
    """Serve the API alone (what `up` and docker-compose run)."""
    from api.app import main as serve

    serve()


@app.command()
def worker(
    check: Annotated[bool, typer.Option("--check", help="Run none; fail unless one is alive on this machine.")] = False,
) -> None:
    """Run one worker alone (what `up` and docker-compose run)."""
    if check:
        _check_worker(_settings())
        return
    from worker.app import main as work

    work()


def _check_worker(settings: Settings) -> None:
    """Fail unless a worker of this host is alive. A container is a host, so each one's check is about its own worker."""
    from core.jobs.store import JobStore

    async def alive() -> int:
        async with JobStore.connect(settings.store_url) as store:
            return await store.workers(host=socket.gethostname())

    if not asyncio.run(alive()):
        raise Unavailable("no worker is alive on this machine")


@app.command()
def train(
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without any server.")] = False,
    optimizer: Annotated[str, typer.Option(help="sgd, momentum, adagrad, rmsprop or adam.")] = "adam",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.001,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    batch_size: Annotated[int, typer.Option(min=1)] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu or gpu:N.")] = None,
    dataset: Annotated[str, typer.Option(help="mnist or fashion-mnist.")] = DEFAULT_DATASET,
    out: Annotated[
        Path | None, typer.Option(help="Where the weights go; default the data set's name.pdparams.")
    ] = None,
) -> None:
    """Train the lesson's network; the loss points go to stdout as JSON lines."""
    if not local:
        raise typer.BadParameter("say --local; to train on a server, POST /jobs (see the README)")
    settings = _settings(device=device)
    spec = {
        "optimizer": optimizer,
        "learning_rate": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "dataset": dataset,
        "device": settings.device,
    }
    _train_here(spec, settings, out or Path(f"{dataset}.pdparams"))


def _train_here(fields: dict[str, Any], settings: Settings, out: Path) -> None:
    from pydantic import ValidationError

    from core.spec import JobSpec
    from core.training import runtime

    try:
        spec = JobSpec.model_validate(fields)
    except ValidationError as refused:
        reasons = [f"{e['loc'][0] if e['loc'] else 'spec'}: {e['msg']}" for e in refused.errors()]
        raise typer.BadParameter("; ".join(reasons)) from None
    runtime.prepare(settings.threads_per_trainer)
    from client import demo as demonstration
    from core.training import network, trainer
    from core.training.fused import kernel as fused
    from core.training.progress import Block, EpochEnd, Finished

    console = Console(stderr=True)
    data = demonstration.fetch(settings, console, name=spec.dataset)
    kernel = fused.load(settings.cache_dir / "kernels", wanted=settings.kernel == "fused", prebuilt=settings.kernels)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{spec.optimizer.name} {fields['learning_rate']:g}", total=spec.total_steps)
        for event in trainer.train(spec, data, kernel=kernel):
            if isinstance(event, Block):
                for point in event.points:
                    typer.echo(json.dumps({"step": point.step, "epoch": point.epoch, "loss": point.loss}))
                progress.update(task, completed=event.steps_done)
            elif isinstance(event, EpochEnd):
                console.print(
                    f"epoch {event.epoch}: validation accuracy {event.valid_accuracy:.2%}, {event.seconds:.1f} s"
                )
            elif isinstance(event, Finished):
                out.write_bytes(network.to_pdparams(event.weights))
                console.print(f"test accuracy {event.test_accuracy:.2%}, weights in {out}")


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="mnist or fashion-mnist.")] = DEFAULT_DATASET,
) -> None:
    """Fetch a data set into the cache, if it is nowhere here."""
    from client import demo as demonstration

    settings = _settings()
    demonstration.fetch(settings, Console(stderr=True), name=name)
    typer.echo(settings.cache_dir / name)


@app.command()
def reindex() -> None:
    """Store every job anew that has files and no record, after a database was lost. Prints a line a job."""
    from core.jobs import artifacts
    from core.jobs.archive import reindex as store_anew
    from core.jobs.work import WorkStore

    settings = _settings()
    artifacts.require_storage(settings)

    async def run() -> dict[str, str]:
        async with WorkStore.connect(settings.store_url) as store:
            return await store_anew(store, artifacts.storage(settings))

    with _database(settings, "descent-worker"):
        outcome = asyncio.run(run())
    for job_id, what in outcome.items():
        typer.echo(f"{job_id} {what}")
    restored = sum(what == "restored" for what in outcome.values())
    typer.secho(f"{restored} of {len(outcome)} restored", err=True)


@keys_app.command("create")
def create_key(
    owner: Annotated[str, typer.Argument(help="Whose jobs it will see. An owner may have several keys.")],
    admin: Annotated[bool, typer.Option("--admin", help="It sees everybody's jobs.")] = False,
) -> None:
    """Make a key and print it. It cannot be shown again."""
    key, text = _with_keys(lambda keys: keys.create(owner, admin=admin))
    typer.echo(text)
    typer.secho(f"key {key.id} of {key.owner}: keep it, it is not shown again", err=True)


@keys_app.command("list")
def list_keys(as_json: Annotated[bool, typer.Option("--json", help="A JSON list.")] = False) -> None:
    """List the keys: id, owner, when each was made and last used (to a minute)."""
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
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        kind = "admin" if row["admin"] else "user"
        typer.echo(
            f"{row['id']}  {row['owner']:<20} {kind:<6} made {row['created_at']}  used {row['used_at'] or 'never'}"
        )


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Its id, as `list` shows it: the middle part of the key.")],
) -> None:
    """Make a key worthless, within some seconds. Its owner's jobs stay."""

    async def revoke(keys: "KeyStore") -> bool:
        await keys.revoke(key_id)
        return await keys.exist()

    are_left = _with_keys(revoke)
    typer.secho(f"key {key_id} is revoked" + ("" if are_left else "; it was the last one"), err=True)


def _with_keys(use: "Callable[[KeyStore], Awaitable[T]]") -> T:
    from core.jobs.database import connect
    from core.jobs.keys import KeyStore

    settings = _settings()

    async def connected() -> T:
        async with connect(settings.store_url) as database:
            return await use(KeyStore(database))

    with _database(settings, "descent-api"):
        return asyncio.run(connected())


def _at(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z") if moment else None


@contextmanager
def _database(settings: Settings, user: str) -> Iterator[None]:
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
    server = RedisServer(settings)
    child = server.start()
    try:
        yield
    finally:
        child.stop(20)
        server.release()


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("descent"))


if __name__ == "__main__":
    main()
