"""How the command ends: the exit codes, which `descent --help` and the README list."""

from enum import IntEnum

import typer


class Exit(IntEnum):
    """What a script may rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_ALLOWED = 4
    NOT_FOUND = 5
    TIMED_OUT = 6
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "all is well",
    Exit.FAILED: "the job failed or was cancelled, or the command could not do its work",
    Exit.USAGE: "wrong usage, or refused by the server as invalid",
    Exit.UNREACHABLE: "the server cannot be reached, or is not ready",
    Exit.NOT_ALLOWED: "a key is missing, or is not valid",
    Exit.NOT_FOUND: "no such job, sweep, model or key",
    Exit.TIMED_OUT: "the time given to wait is over; the job goes on",
    Exit.INTERRUPTED: "Ctrl-C; the job goes on",
}

EPILOG = "\n\n".join(["Exit codes:", *(f"{code.value:>3}  {meaning}" for code, meaning in MEANINGS.items())])


def ended(error: Exception) -> Exit:
    """The code for one of the client's errors, or of the core's."""
    from client import errors
    from core.errors import InvalidRequest, NotFound, Unavailable

    table: tuple[tuple[type[Exception], Exit], ...] = (
        (errors.Unreachable, Exit.UNREACHABLE),
        (errors.Busy, Exit.UNREACHABLE),
        (errors.NotAllowed, Exit.NOT_ALLOWED),
        (errors.NotFound, Exit.NOT_FOUND),
        (errors.Invalid, Exit.USAGE),
        (errors.Conflict, Exit.USAGE),
        (errors.WaitTimeout, Exit.TIMED_OUT),
        (Unavailable, Exit.UNREACHABLE),
        (NotFound, Exit.NOT_FOUND),
        (InvalidRequest, Exit.USAGE),
    )
    if type(error) is errors.ClientError:  # an address or a key that is none
        return Exit.USAGE
    return next((code for kind, code in table if isinstance(error, kind)), Exit.FAILED)


def usage(message: str, option: str | None = None) -> typer.BadParameter:
    """A mistake of who typed the command, to be raised."""
    return typer.BadParameter(message, param_hint=option)
