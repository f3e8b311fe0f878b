"""Reading requests strictly: what is not asked for, not JSON, ambiguous or too long is refused, never guessed at."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from api.problems import LONGEST_NAME, MOST_PROBLEMS, printable
from core.catalogue import nearest
from core.errors import FieldProblem, InvalidRequest, MalformedJson

MAX_BODY_BYTES = 8 << 20  # 256 images as JSON lists are about 4 MB


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
    """A route that refuses unknown query parameters, and reads its body through StrictRequest before FastAPI does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            _refuse_unknown_parameters(request)
            checked = StrictRequest(request.scope, request.receive)
            if self.body_field is not None and not await self._may_be_left_out(checked):
                if not _is_json(request.headers.get("content-type", "")):
                    raise HTTPException(415, "send the body as application/json")
                await checked.json()
            return await handle(checked)

        return strict

    async def _may_be_left_out(self, request: StrictRequest) -> bool:
        """Whether there is no body, and need not be one."""
        assert self.body_field is not None
        return not self.body_field.field_info.is_required() and not await request.body()


def _refuse_unknown_parameters(request: Request) -> None:
    models = [parameter.field_info.annotation for parameter in request.scope["route"].dependant.query_params]
    known = tuple(name for model in models for name in getattr(model, "model_fields", {}))
    problems = [
        FieldProblem(
            printable(f"?{name[:LONGEST_NAME]}"), "no such parameter", known, nearest(name[:LONGEST_NAME], known)
        )
        for name in list(request.query_params)[:MOST_PROBLEMS]
        if name not in known
    ]
    if problems:
        raise InvalidRequest(*problems)


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
