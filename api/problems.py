"""Errors as clients see them: `application/problem+json` (RFC 9457), small, and never an echo of the input.

Below /v2 they have the Open Inference Protocol's form instead: `{"error": "..."}`.
"""

import json
import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from api.headers import complete
from core.catalogue import CLIP_CLASSES, OPTIMIZER_CLASSES, OPTIMIZERS, RATE_TAGS, SCHEDULE_CLASSES, nearest
from core.errors import DescentError, FieldProblem, InvalidRequest, Unauthorized
from core.sweep import RateRange

MOST_PROBLEMS = 10
LONGEST_NAME = 30  # of an unknown name, as it is shown: enough to find it by
_MOST_BYTES = 4095
_LONGEST_TEXT = 2000  # escaped for JSON it is twice as long at most
_UNSHOWN = re.compile("[^ -~]")
_CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    416: "range-not-satisfiable",
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_RATE_TAGS = (*RATE_TAGS, *SCHEDULE_CLASSES)
_TAGS = {  # which of a union's kinds a value is, as pydantic puts it into the path behind the field
    "optimizer": OPTIMIZERS,
    "optimizers": OPTIMIZERS,
    "learning_rate": _RATE_TAGS,
    "learning_rates": ("list", "range", *_RATE_TAGS),
    "grad_clip": tuple(CLIP_CLASSES),
}
_TAGGED = OPTIMIZER_CLASSES | SCHEDULE_CLASSES | CLIP_CLASSES | {"range": RateRange}
_PLACES = {"query": "?", "header": "header ", "path": "path "}
_NO_SUCH_PATH = "there is nothing here; /docs lists what there is"

log = logging.getLogger(__name__)


class ProblemField(BaseModel):
    pointer: str = Field(
        description="JSON Pointer into the body, `?name` of a query parameter, `header name`, or `path name`."
    )
    detail: str
    allowed: list[str] | None = Field(None, description="Where several errors have the same: at the first of them.")
    did_you_mean: str | None = None


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(examples=["/problems/validation-error"])
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[ProblemField] = []


class InferenceError(BaseModel):
    """What went wrong, as the Open Inference Protocol tells it."""

    error: str


def is_inference(path: str) -> bool:
    """Whether the path is the Open Inference Protocol's."""
    return path == "/v2" or path.startswith("/v2/")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        | headers(*_ALWAYS_WITH.get(status, ()), sometimes=_SOMETIMES_WITH.get(status, ()))
        for status in statuses
    }


_ALWAYS_WITH = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
_SOMETIMES_WITH = {409: ("Retry-After",), 415: ("Accept-Encoding",)}


TEXT = {"schema": {"type": "string"}}
BYTES = {"schema": {"type": "string", "format": "binary"}}
_HEADERS = {
    "Accept-Encoding": "How a body may be sent, when that was wrong: `identity`.",
    "Accept-Ranges": "`bytes`: a part can be asked for with `Range`.",
    "Allow": "The methods that the path has.",
    "Content-Disposition": "`attachment`, and a name for the file.",
    "Content-Range": "Which bytes these are, and of how many: `bytes 0-99/81920`; `bytes */81920` of none.",
    "ETag": "Names this state: send it as `If-None-Match`.",
    "Inference-Header-Content-Length": "How many bytes of the body are its JSON; the tensors follow. Only in the binary form.",
    "Idempotent-Replayed": "`true` when the `Idempotency-Key` was used for this request before: nothing new was made.",
    "Location": "Path of what was made.",
    "Preference-Applied": "How long `Prefer` asked to wait, as it was understood.",
    "Retry-After": "Seconds after which to ask again.",
    "Vary": "`Accept`, which chose this form.",
    "WWW-Authenticate": "`Bearer`: send a key.",
    "X-Has-More": "As `has_more` of the JSON answer: `true` or `false`.",
    "X-Next": "As `next` of the JSON answer.",
    "X-Terminal": "As `terminal` of the JSON answer: `true` or `false`.",
}


def headers(*required: str, sometimes: Sequence[str] = ()) -> dict[str, Any]:
    """The `headers` of a documented response: those that are always there, and those that are not."""
    return {
        "headers": {
            name: {"description": _HEADERS[name], "required": name in required, "schema": {"type": "string"}}
            for name in (*required, *sometimes)
        }
    }


def install(app: FastAPI) -> None:
    """Render every error of the application as a problem."""
    app.add_exception_handler(DescentError, answer_to)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(ClientDisconnect, _of_nobody)
    app.add_exception_handler(Exception, _of_bug)


def answer_to(request: Request, error: Exception) -> Response:
    """An error of ours as a client sees it."""
    assert isinstance(error, DescentError)
    if error.status >= 500:
        log.error("request failed", extra={"reason": repr(error)})
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="descent"'
    problems = error.problems if isinstance(error, InvalidRequest) else ()
    return _render(request, error.status, error.code, error.title, str(error), problems, headers)


def _of_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code = _CODES.get(error.status_code, phrase.lower().replace(" ", "-"))
    detail = _NO_SUCH_PATH if error.status_code == 404 else str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return _render(request, error.status_code, code, phrase, detail, (), headers)


def _allowed_methods(request: Request) -> list[str]:
    """The methods of the path; Starlette names those of the first route that has it alone."""

    def is_taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)

    return [method for method in _METHODS if is_taken(method)]


def _of_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [_field_problem(request, item) for item in error.errors()[:MOST_PROBLEMS]]
    return answer_to(request, InvalidRequest(*problems))


def _of_nobody(request: Request, error: Exception) -> Response:
    """To a client that has left in the middle of its request."""
    return _render(request, 400, "malformed-http", "Bad Request", "the request has no end", (), {})


def _of_bug(request: Request, error: Exception) -> Response:
    log.error("unforeseen error", exc_info=error)
    answer = answer_to(request, DescentError("this is a bug; the server's log has it under the request id"))
    complete(answer.raw_headers, request.scope["path"])  # it leaves outside of everything that would do so
    return answer


def _field_problem(request: Request, item: dict[str, Any]) -> FieldProblem:
    """One of pydantic's errors, with what is allowed. The tag it puts into the path of a union's value is taken out."""
    place, *path = [str(part) for part in item["loc"]]
    names, tag = _without_tags(path)
    short = [name[:LONGEST_NAME].replace("~", "~0").replace("/", "~1") for name in names]
    pointer = "".join(f"/{name}" for name in short)
    if place in _PLACES:
        pointer = _PLACES[place] + "/".join(short)
    context = item.get("ctx", {})
    pointer += context.get("field", "")  # a rule over several fields names the one to change
    allowed, hint = tuple(context.get("allowed", ())), context.get("did_you_mean")
    if item["type"] == "union_tag_invalid":
        allowed = tuple(re.findall("'([^']*)'", context["expected_tags"]))
        hint = nearest(str(context["tag"])[:LONGEST_NAME], allowed)
    if item["type"] in ("literal_error", "enum"):
        allowed = tuple(re.findall("'([^']*)'", context["expected"]))
        given = item.get("input")
        hint = nearest(given, allowed) if isinstance(given, str) and len(given) <= LONGEST_NAME else None
    if item["type"] == "extra_forbidden":
        allowed = _known_fields(request, tag, names[:-1])
        hint = nearest(names[-1][:LONGEST_NAME], allowed)
    return FieldProblem(printable(pointer), _sentence(item), allowed, hint)


def _without_tags(path: Sequence[str]) -> tuple[list[str], str | None]:
    """The path as the client wrote it, and the last tag in it: behind a kind that has fields there are only names."""
    names: list[str] = []
    tag = None
    for part in path:
        parent = next((name for name in reversed(names) if not name.isdecimal()), "")
        if tag not in _TAGGED and part in _TAGS.get(parent, ()):
            tag = part
        else:
            names.append(part)
    return names, tag


_SENTENCES = {
    "extra_forbidden": "no such field",
    "model_attributes_type": "this should be an object",
    "model_type": "this should be an object",
    "missing": "this is required",
    "union_tag_invalid": "this names none of the choices",
}


def _sentence(item: dict[str, Any]) -> str:
    return _SENTENCES.get(item["type"]) or str(item["msg"])[:200]


def _known_fields(request: Request, tag: str | None, path: Sequence[str]) -> tuple[str, ...]:
    """The fields that could have stood in the object at `path` of the body, or of the object that the tag names."""
    route = request.scope.get("route")
    body = route.body_field.field_info.annotation if route and route.body_field else None
    model: Any = _TAGGED.get(tag, body) if tag else body
    fields = [name for name in path if not name.isdecimal()]
    for name in fields[1:] if tag else fields:
        field = getattr(model, "model_fields", {}).get(name)
        inside = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((kind for kind in inside if hasattr(kind, "model_fields")), None)
    return tuple(getattr(model, "model_fields", {}))


def printable(text: str) -> str:
    """The text with a question mark for all but printable ASCII, which alone has about the same length in JSON."""
    return _UNSHOWN.sub("?", text)


def _request_id(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


def _render(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    problems: Sequence[FieldProblem],
    headers: dict[str, str],
) -> Response:
    request_id, instance = _request_id(request), request.scope["path"]
    headers = {**headers, "X-Request-Id": request_id}
    if is_inference(instance):  # whose servers answer 400 to all that is wrong with a request
        return Response(
            _inference_text(detail, problems), 400 if status == 422 else status, headers, "application/json"
        )
    text = problem_text(status, code, title, detail, problems, instance=instance, request_id=request_id)
    return Response(text, status, headers, "application/problem+json")


def _inference_text(detail: str, problems: Sequence[FieldProblem]) -> str:
    """An error of the Open Inference Protocol, in ASCII and below 4 KB: what a problem has in fields, in one text."""
    return json.dumps({"error": printable("; ".join(map(_told, problems)) or detail)[:_LONGEST_TEXT]})


def _told(problem: FieldProblem) -> str:
    allowed = f" (allowed: {', '.join(problem.allowed)})" if problem.allowed else ""
    hint = f", did you mean {problem.did_you_mean}?" if problem.did_you_mean else ""
    return f"{problem.pointer or 'body'}: {problem.detail}{allowed}{hint}"


def problem_text(
    status: int,
    code: str,
    title: str,
    detail: str,
    problems: Sequence[FieldProblem] = (),
    *,
    instance: str,
    request_id: str,
) -> str:
    """A problem document, in ASCII and below 4 KB: the last of many errors are left out where they would not fit."""
    body: dict[str, Any] = {
        "type": f"/problems/{code}",
        "title": title,
        "status": status,
        "detail": printable(detail)[:500],
        "instance": printable(instance[:200]),
        "code": code,
        "request_id": request_id,
    }
    shown = _as_fields(problems)
    while len(text := json.dumps(body | ({"errors": shown} if shown else {}))) > _MOST_BYTES and shown:
        shown.pop()
    return text


def _as_fields(problems: Sequence[FieldProblem]) -> list[dict[str, Any]]:
    """Each as an object. What is allowed at several places is said at the first of them."""
    told: set[tuple[str, ...]] = set()
    fields = []
    for problem in problems:
        fields.append(_as_field(problem, with_allowed=problem.allowed not in told))
        told.add(problem.allowed)
    return fields


def _as_field(problem: FieldProblem, *, with_allowed: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"pointer": printable(problem.pointer), "detail": problem.detail}
    if problem.allowed and with_allowed:
        fields["allowed"] = list(problem.allowed)
    return fields | ({"did_you_mean": problem.did_you_mean} if problem.did_you_mean else {})
