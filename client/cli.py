"""The command `descent`: what it is made of, and how it ends. Data goes to stdout, everything else to stderr."""

import errno
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from client import commands, local, output, submit
from client.exits import EPILOG, Exit, ended
from client.local import settings_with
from client.options import AsJson
from core.errors import DescentError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
servers = typer.Typer()

_PANEL = "A server on this machine"
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> None:
    """Run the command; what goes wrong on purpose becomes one line and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without our characters
    try:
        app(prog_name="descent")
    except DescentError as error:
        output.tell(f"descent: {error}", "red")
        raise SystemExit(ended(error)) from None
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        output.tell(f"descent: cannot write: {error.strerror}", "red")
        output.end_quietly(Exit.FAILED)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        local.version()
        raise typer.Exit


@app.callback()
def descent(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Training as a service."""


@servers.command(rich_help_panel=_PANEL)
def up(
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port of the API; 0 takes a free one.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of everything the server keeps.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Jobs trained at a time.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Ask for no key, wherever it listens.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the server in the foreground: embedded Redis, API, workers. Ctrl-C stops all.

    With --json, stdout has one object: where the server is, once it is ready.
    """
    from client import stack

    settings = settings_with(port=port, home=home, workers=workers, insecure=insecure or None)
    if as_json:
        stack.serve(settings, partial(typer.echo, err=True), lambda stack: output.emit_json(stack.facts))
    else:
        stack.serve(settings, typer.echo)


@servers.command(rich_help_panel=_PANEL)
def demo(epochs: Annotated[int, typer.Option(min=1, help="The lesson takes 5.")] = 1, as_json: AsJson = False) -> None:
    """The lesson's job from end to end over HTTP, on a private server."""
    from rich.console import Console

    from client import demo as demonstration

    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    facts = demonstration.run(settings_with(), epochs=epochs, console=console)
    if as_json:
        output.emit_json(facts)


@servers.command(rich_help_panel=_PANEL)
def api() -> None:
    """Serve the API alone (what `up` and docker-compose run)."""
    from api.app import main as serve

    serve()


@servers.command(rich_help_panel=_PANEL)
def worker(
    check: Annotated[bool, typer.Option("--check", help="Run none; fail unless one is alive on this machine.")] = False,
) -> None:
    """Run the workers of this machine, one a GPU, alone (what `up` and docker-compose run)."""
    if check:
        _check_worker()
        return
    from worker.app import main as work

    work()


def _check_worker() -> None:
    """Fail unless a worker of this host is alive. A container is a host, so each one's check is about its own worker."""
    import asyncio
    import socket

    from core.errors import Unavailable
    from core.jobs.store import JobStore

    settings = settings_with()

    async def alive() -> int:
        async with JobStore.connect(settings.store_url) as store:
            return await store.workers(host=socket.gethostname())

    if not asyncio.run(alive()):
        raise Unavailable("no worker is alive on this machine")


for commands_of in (servers, submit.app, commands.app, local.app):
    app.add_typer(commands_of)


if __name__ == "__main__":
    main()
