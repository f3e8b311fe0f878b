"""Errors as clients see them: always `application/problem+json` (RFC 9457), small, and never an echo of the input."""

import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from core.errors import DescentError, FieldProblem, InvalidRequest, MalformedJson
from core.spec import OPTIMIZERS, JobSpec, nearest

_MOST_PROBLEMS = 10
_LONGEST_NAME = 60
_CODES = {401: "unauthorized", 403: "forbidden", 404: "not-found", 405: "method-not-allowed", 413: "too-large"}
MAX_BODY_BYTES = 8 << 20  # 256 images as JSON lists are about 4 MB
_NO_SUCH_PATH = "there is nothing here; /docs lists what there is"
_UNSUPPORTED = HTTPException(415, "send the body as application/json")

log = logging.getLogger(__name__)


class ProblemField(BaseModel):
    pointer: str = Field(description="JSON Pointer into the body, or `?name` of a query parameter.")
    detail: str
    allowed: list[str] | None = None
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


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Render every error of the application as a problem."""
    app.add_exception_handler(DescentError, _of_ours)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(Exception, _of_bug)


def _of_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, DescentError)
    if error.status >= 500:
        log.error("request failed", extra={"request_id": _request_id(request), "reason": repr(error)})
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    problems = error.problems if isinstance(error, InvalidRequest) else ()
    return _render(request, error.status, error.code, error.title, str(error), problems, headers)


def _of_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code = _CODES.get(error.status_code, phrase.lower().replace(" ", "-"))
    detail = _NO_SUCH_PATH if error.status_code == 404 else str(error.detail)
    return _render(request, error.status_code, code, phrase, detail, (), dict(error.headers or {}))


def _of_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [_field_problem(request, item) for item in error.errors()[:_MOST_PROBLEMS]]
    return _of_ours(request, InvalidRequest(*problems))


def _of_bug(request: Request, error: Exception) -> Response:
    log.error("unforeseen error", extra={"request_id": _request_id(request)}, exc_info=error)
    return _of_ours(request, DescentError("this is a bug; the server's log has it under the request id"))


def _field_problem(request: Request, item: dict[str, Any]) -> FieldProblem:
    """One of pydantic's errors, with what is allowed. The tag it puts into an optimizer's path is taken out."""
    place, *path = [str(part) for part in item["loc"]]
    tag = path[1] if len(path) > 1 and path[0] == "optimizer" and path[1] in OPTIMIZERS else None
    names = [path[0], *path[2:]] if tag else path
    short = [name[:_LONGEST_NAME].replace("~", "~0").replace("/", "~1") for name in names]
    pointer = "?" + "/".join(short) if place == "query" else "".join(f"/{name}" for name in short)
    context = item.get("ctx", {})
    allowed, hint = tuple(context.get("allowed", ())), context.get("did_you_mean")
    if item["type"] == "extra_forbidden":
        allowed = _known_fields(request, place, tag)
        hint = nearest(names[-1][:_LONGEST_NAME], allowed)
    return FieldProblem(_printable(pointer), _sentence(item), allowed, hint)


_SENTENCES = {
    "extra_forbidden": "no such field",
    "model_attributes_type": "this should be an object",
    "missing": "this is required",
}


def _sentence(item: dict[str, Any]) -> str:
    return _SENTENCES.get(item["type"]) or str(item["msg"])[:200]


def _known_fields(request: Request, place: str, optimizer: str | None) -> tuple[str, ...]:
    """The fields that could have stood where an unknown one was found."""
    if optimizer:
        classes = JobSpec.model_json_schema()["$defs"].values()
        return next(
            tuple(c["properties"]) for c in classes if c["properties"].get("name", {}).get("const") == optimizer
        )
    route = request.scope.get("route")
    if place == "query":
        parameters = [p.field_info.annotation for p in route.dependant.query_params] if route else []
        return tuple(name for model in parameters for name in getattr(model, "model_fields", {}))
    model = route.body_field.field_info.annotation if route and route.body_field else None
    return tuple(getattr(model, "model_fields", {}))


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


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
    body: dict[str, Any] = {
        "type": f"/problems/{code}",
        "title": title,
        "status": status,
        "detail": _printable(detail)[:500],
        "instance": _printable(request.url.path)[:200],
        "code": code,
        "request_id": _request_id(request),
    }
    if problems:
        body["errors"] = [_as_field(problem) for problem in problems]
    return Response(
        json.dumps(body), status, {**headers, "X-Request-Id": body["request_id"]}, "application/problem+json"
    )


def _as_field(problem: FieldProblem) -> dict[str, Any]:
    fields: dict[str, Any] = {"pointer": problem.pointer, "detail": problem.detail}
    if problem.allowed:
        fields["allowed"] = list(problem.allowed)
    return fields | ({"did_you_mean": problem.did_you_mean} if problem.did_you_mean else {})


# --- strict JSON -----------------------------------------------------------------------------------------------------


class StrictRequest(Request):
    """A request whose body is read as strict JSON, up to a limit: no NaN, no duplicate keys, no lone surrogates.

    FastAPI's own `max_body_size` answers in plain text when the length is declared, so the limit is kept here.
    """

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            content = bytearray()
            async for piece in self.stream():
                content += piece
                if len(content) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"a body has at most {MAX_BODY_BYTES} bytes", {"Connection": "close"})
            self._body = bytes(content)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """A route that reads its body through StrictRequest, before FastAPI does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            checked = StrictRequest(request.scope, request.receive)
            if self.body_field is not None:
                if not _is_json(request.headers.get("content-type", "")):
                    raise _UNSUPPORTED
                await checked.json()
            return await handle(checked)

        return strict


def _is_json(content_type: str) -> bool:
    media_type, _, parameters = content_type.lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    return media_type.strip() == "application/json" and charset in ("", "charset=utf-8")


def parse_json(body: bytes) -> Any:
    """One JSON value out of UTF-8 bytes. Raises MalformedJson with a reason that does not repeat the input."""
    if not body.strip():
        raise MalformedJson(FieldProblem("", "the body is empty"))
    try:
        text = body.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_int, parse_float=_float
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate cannot be encoded
    except UnicodeError:
        raise MalformedJson(FieldProblem("", "the text is not valid Unicode in UTF-8")) from None
    except json.JSONDecodeError as error:
        raise MalformedJson(FieldProblem("", f"not JSON at line {error.lineno}, column {error.colno}")) from None
    except RecursionError:
        raise MalformedJson(FieldProblem("", "nested too deeply")) from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedJson(FieldProblem("", "an object has the same key twice"))
    return found


def _refuse_constant(name: str) -> Any:
    raise MalformedJson(FieldProblem("", f"{name} is not JSON"))


def _int(digits: str) -> int:
    if len(digits) > 30:
        raise MalformedJson(FieldProblem("", "a whole number has more than 30 digits"))
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise MalformedJson(FieldProblem("", "a number is too large"))
    return value
