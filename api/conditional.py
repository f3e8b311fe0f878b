"""Answers that a client has already, or wants to wait for: ETag and If-None-Match (RFC 9110), Prefer: wait (RFC 7240)."""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Header, Request, Response

from api.problems import headers
from core.errors import FieldProblem, InvalidRequest

LONGEST_WAIT_S = 30
LONGEST_TAGS = 2000  # characters of If-None-Match
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is as `If-None-Match` names it.", **headers("ETag")}
}

Prefer = Annotated[
    str | None,
    Header(max_length=100, description=f"`wait=N`: hold the answer up to N seconds, at most {LONGEST_WAIT_S}."),
]


def etag_of(content: str | bytes) -> str:
    raw = content.encode() if isinstance(content, str) else content
    return f'"{hashlib.sha256(raw).hexdigest()[:32]}"'


def is_known(etag: str, if_none_match: str) -> bool:
    """Whether the client has what `etag` names. A proxy may have made it a weak one. Raises InvalidRequest for too many."""
    if len(if_none_match) > LONGEST_TAGS:
        raise InvalidRequest(FieldProblem("header if-none-match", f"it has at most {LONGEST_TAGS} characters"))
    given = [entry.strip().removeprefix("W/") for entry in if_none_match.split(",")]
    return etag in given or "*" in given


def json_answer(text: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status, headers, "application/json")


def conditional(request: Request, text: str) -> Response:
    """A JSON answer with its ETag, or 304 when the client has it. It may be kept, but is to be asked for again."""
    etag = etag_of(text)
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if is_known(etag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(text, media_type="application/json", headers=headers)


def waiting_time(prefer: str | None) -> int:
    """Seconds that a Prefer header asks to wait for; a preference that is not understood is no error."""
    wish = re.search(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})", prefer or "")
    return min(int(wish[1]), LONGEST_WAIT_S) if wish else 0
