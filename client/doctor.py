"""`descent doctor`: what of a set-up works, what does not, what that means and what to do about it.

It looks and changes nothing. First the server that the address names, as any client sees it; then, where that server is (or
would be) of this machine, all that it needs here (`machine.py`).
"""

import os
import re
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import httpx2
from rich.text import Text

_LIMIT_S = 10.0
_MOST_SKEW_S = 5.0
_MAKE = "`descent keys create NAME`"
_KEY = re.compile(r"dsc_[0-9a-f]{12}_[0-9a-f]{64}")


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, and not as well as it could
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `means` and `do` are empty where all is well."""

    check: str
    state: State
    found: str
    means: str = ""
    do: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, State.OK, found)


def warning(check: str, found: str, *, means: str, do: str) -> Finding:
    return Finding(check, State.WARNING, found, means, do)


def broken(check: str, found: str, *, means: str, do: str) -> Finding:
    return Finding(check, State.BROKEN, found, means, do)


_STYLES = {State.OK: "green", State.WARNING: "yellow", State.BROKEN: "bold red"}


def shown(finding: Finding) -> Text:
    """Its line, and below it what it means and what to do."""
    line = Text(f"{finding.state:<8}", _STYLES[finding.state]).append(f"{finding.check}: {finding.found}", "default")
    for name, text in (("means", finding.means), ("do", finding.do)):
        line.append(f"\n         {name}: {text}" if text else "", "default")
    return line


def examine(url: str, key: str | None) -> Iterator[Finding]:
    """Everything, as it is found; it takes some seconds. `url` and `key` are those that the other commands would use."""
    from client import machine

    serves = yield from of_server(url, key)
    if is_here(url) or os.environ.get("DESCENT_REDIS_URL"):
        yield from machine.examine(url, serves=serves)


def is_here(url: str) -> bool:
    """Whether the address is of this machine."""
    from core.settings import is_loopback

    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


# --- the server --------------------------------------------------------------------------------------------------------


def of_server(url: str, key: str | None) -> Generator[Finding, None, bool]:
    """What a client sees of it. Returns whether a Descent server answers."""
    fault = _fault_of_address(url)
    if fault:
        yield broken("server", fault, means="no command can reach a server", do=_name_it())
        return False
    headers = {"Authorization": f"Bearer {key}"} if key and _KEY.fullmatch(key) else {}
    with httpx2.Client(base_url=url, timeout=_LIMIT_S, headers=headers) as http:
        answer = _get(http, "/version")
        serves = isinstance(answer, httpx2.Response) and _is_descent(answer)
        yield _server(url, answer)
        if not serves or not isinstance(answer, httpx2.Response):
            return False
        yield _versions(answer.json()["version"])
        yield from _clock(answer)
        yield _key(http, key)
        yield from _readiness(http)
    return True


def _fault_of_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_good = False
    return "" if is_good else f"{url!r} is no address of a server: http://HOST:PORT"


def _name_it() -> str:
    port = os.environ.get("DESCENT_PORT") or 8000
    return f"say where it is with --url or DESCENT_URL, as in DESCENT_URL=http://127.0.0.1:{port}"


def _get(http: httpx2.Client, path: str, **options: Any) -> httpx2.Response | httpx2.HTTPError:
    try:
        return http.get(path, **options)
    except httpx2.HTTPError as error:
        return error


def _is_descent(answer: httpx2.Response) -> bool:
    try:
        return answer.status_code == 200 and set(answer.json()) == {"version"}
    except (ValueError, TypeError):
        return False


def _server(url: str, answer: httpx2.Response | httpx2.HTTPError) -> Finding:
    if isinstance(answer, httpx2.HTTPError):
        why = str(answer) or type(answer).__name__
        here = is_here(url)
        start = (
            "start it (`descent up`), or " if here else "look whether it runs and whether a firewall is between, or "
        )
        means = "no server runs there" if here else "it does not run, or the way to it is closed"
        return broken("server", f"nothing answers at {url}: {why}", means=means, do=start + _name_it())
    if _is_descent(answer):
        return ok("server", f"answers at {url}")
    if answer.status_code == 421:
        found = f"the server at {url} does not go by that name"
        do = f"use its own name, or add this one there: DESCENT_ALLOWED_HOSTS={urlsplit(url).hostname}"
        return broken("server", found, means="it refuses requests that name another host", do=do)
    found = f"what answers at {url} ({answer.status_code}) is no Descent server"
    return broken("server", found, means="another program has that address, or a proxy is between", do=_name_it())


def _versions(theirs: str) -> Finding:
    ours = version("descent")
    if theirs == ours:
        return ok("version", f"{ours}, as the server's")
    means = "commands and options may be unknown on one side"
    return warning(
        "version", f"{ours} here, {theirs} on the server", means=means, do="install the server's version here"
    )


def _clock(answer: httpx2.Response) -> Iterator[Finding]:
    """Whether this machine's clock is the server's, to the second that a `Date` header tells."""
    try:
        there = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (ValueError, TypeError):
        return
    skew = time.time() - answer.elapsed.total_seconds() / 2 - there - 0.5  # the header's second, on average half over
    if abs(skew) <= _MOST_SKEW_S:
        yield ok("clock", "as the server's")
        return
    found = f"{abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    means = "ages and times are shown wrong; certificates may seem invalid. No job is harmed: Redis keeps the time"
    yield warning("clock", found, means=means, do="set both clocks by NTP (on Linux: timedatectl set-ntp true)")


def _key(http: httpx2.Client, key: str | None) -> Finding:
    answer = _get(http, "/jobs", params={"limit": 1})
    if isinstance(answer, httpx2.HTTPError) or answer.status_code not in (200, 401):
        found = f"could not be tried: {answer if isinstance(answer, httpx2.HTTPError) else _told(answer)}"
        return warning(
            "key", found, means="the server has more urgent troubles", do="see the lines below; look again then"
        )
    if answer.status_code == 200:
        return ok("key", "is valid, or none is asked for" if key else "none is asked for")
    means, do = (
        "it refuses every request",
        f"have one made on the server's machine ({_MAKE}) and put it into DESCENT_API_KEY",
    )
    if not key:
        return broken("key", "the server asks for one, and DESCENT_API_KEY is empty", means=means, do=do)
    if not _KEY.fullmatch(key):
        do = (
            "look how it was copied: it is dsc_, 12 and 64 hexadecimal digits with _ between them, all that was printed"
        )
        return broken("key", f"what DESCENT_API_KEY has is no key; {_MAKE} prints one", means=means, do=do)
    found = f"the server does not know the key dsc_{key.split('_')[1]}_..."
    means = "it was revoked, it is of another server, or the database with it was lost"
    return broken("key", found, means=means, do=f"look for it in `descent keys list` there, or {do}")


_READINESS = {
    "redis": ("no job can be taken, shown or run", "start it; DESCENT_REDIS_URL says where the server looks for it"),
    "worker": (
        "jobs are accepted and wait",
        "start one (`descent worker`); if it ends at once, its log says why: logs/worker-1.log in the home",
    ),
    "disk": (
        "models and histories cannot be written",
        "free space, make the home's folder `jobs` writable, or see that the bucket in DESCENT_ARTIFACTS can be reached",
    ),
    "dataset": ("jobs cannot train", "fetch it ahead: `descent data fetch`"),
}


def _readiness(http: httpx2.Client) -> Iterator[Finding]:
    """What the server says of itself."""
    answer = _get(http, "/readyz")
    if isinstance(answer, httpx2.HTTPError):
        means = "it is overloaded, or its machine is"
        yield broken("readiness", f"no answer to /readyz: {answer!r}", means=means, do="look at its log, logs/api.log")
        return
    checks: dict[str, dict[str, Any]] = answer.json().get("checks", {}) if answer.status_code in (200, 503) else {}
    for name, check in checks.items():
        found = f"the server says: {check['detail']}"
        means, do = _READINESS.get(name, ("a job posted now would not run", "see the server's log"))
        yield ok(f"{name}, there", found) if check["ok"] else broken(f"{name}, there", found, means=means, do=do)


def _told(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
