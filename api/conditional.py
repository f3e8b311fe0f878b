"""Answers that a client has already, wants a part of, or wants to wait for.

ETag, If-Match, If-None-Match, Range and If-Range (RFC 9110), Prefer: wait (RFC 7240).
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Header, Request, Response
from starlette.exceptions import HTTPException

from api.problems import documented, headers
from core.errors import FieldProblem, InvalidRequest

LONGEST_WAIT_S = 30
LONGEST_TAGS = 2000  # characters
LONGEST_RANGES = 8000
_MOST = {"if-match": LONGEST_TAGS, "if-none-match": LONGEST_TAGS, "if-range": LONGEST_TAGS, "range": LONGEST_RANGES}
_RANGE = re.compile(r"([0-9]{0,99})-([0-9]{0,99})")
CONDITIONAL: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is as `If-None-Match` names it.", **headers("ETag")},
    412: documented(412)[412] | headers("ETag"),
}

Prefer = Annotated[
    str | None,
    Header(max_length=100, description=f"`wait=N`: hold the answer up to N seconds, at most {LONGEST_WAIT_S}."),
]


def etag_of(content: str | bytes) -> str:
    raw = content.encode() if isinstance(content, str) else content
    return f'"{hashlib.sha256(raw).hexdigest()[:32]}"'


def is_known(etag: str, if_none_match: str) -> bool:
    """Whether the client has what `etag` names. A proxy may have made it a weak one."""
    given = [entry.strip().removeprefix("W/") for entry in if_none_match.split(",")]
    return etag in given or "*" in given


def refuse_another(request: Request, etag: str) -> None:
    """To be asked before `is_known` and `wanted_part` (RFC 9110, 13.2.2).

    Raises a 412 when `If-Match` does not name this state, strongly, and InvalidRequest for headers without end.
    """
    for name, most in _MOST.items():
        if len(",".join(request.headers.getlist(name))) > most:
            raise InvalidRequest(FieldProblem(f"header {name}", f"it has at most {most} characters"))
    wanted = request.headers.getlist("if-match")
    if wanted and not {etag, "*"} & {entry.strip(" \t") for entry in ",".join(wanted).split(",")}:
        raise HTTPException(412, "there is another state by now than `If-Match` names", {"ETag": etag})


def json_answer(text: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status, headers, "application/json")


def conditional(request: Request, text: str) -> Response:
    """A JSON answer with its ETag, or 304 when the client has it. It may be kept, but is to be asked for again.

    Raises what `refuse_another` does.
    """
    etag = etag_of(text)
    refuse_another(request, etag)
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if is_known(etag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(text, media_type="application/json", headers=headers)


def waiting_time(prefer: str | None) -> int:
    """Seconds that a Prefer header asks to wait for; a preference that is not understood is no error."""
    wish = re.search(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})", prefer or "")
    return min(int(wish[1]), LONGEST_WAIT_S) if wish else 0


def wanted_part(request: Request, etag: str, size: int) -> range | None:
    """The bytes that `Range` asks for, of a file so long; None for all of them.

    That is also the answer to what is not understood, to several ranges, and when `If-Range` names another state of the file
    (RFC 9110, 14.2 and 13.1.5). Raises a 416 for a range that has nothing in the file.
    """
    asked, named = ",".join(request.headers.getlist("range")), request.headers.get("if-range", etag)
    if named != etag:
        return None
    unit, _, listed = asked.partition("=")
    ranges = [each.strip(" \t") for each in listed.split(",") if each.strip(" \t")]
    found = _RANGE.fullmatch(ranges[0]) if unit.lower() == "bytes" and len(ranges) == 1 else None
    if not found or found[0] == "-":
        return None
    first, last = found.groups()
    if first and last and int(last) < int(first):
        return None
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size or (not first and int(last) == 0):
        raise HTTPException(416, f"the file has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return range(start, stop)
