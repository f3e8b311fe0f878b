"""Reading requests strictly: what is not asked for, not JSON, ambiguous or too long is refused, never guessed at."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast, get_type_hints

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from api.accept import preferred
from api.problems import LONGEST_NAME, MOST_PROBLEMS, printable
from core.catalogue import nearest
from core.errors import FieldProblem, InvalidRequest, MalformedJson

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

MAX_BODY_BYTES = 8 << 20  # 256 images as JSON lists are about 4 MB
USUAL_BODY_BYTES = 256 << 10
_WITH_IMAGES = {"/predict", "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"}
_SHORT_LIST = 16  # a shape, not a row of pixels
_AT_ONCE_BYTES = 64 << 10  # what is longer is parsed in a thread, one at a time: others are answered meanwhile
_MOST_READ = 8 * MAX_BODY_BYTES  # of a body too long: who is cut off while it sends may not see the answer
SILENCE_S = 10  # how long a request may stop in its middle


_parsing = CapacityLimiter(1)


def most_bytes(path: str) -> int:
    """How long a body may be, by the route's path."""
    return MAX_BODY_BYTES if path in _WITH_IMAGES else USUAL_BODY_BYTES


class StrictRequest(Request):
    """A request whose body is read as strict JSON, up to a limit: no NaN, no duplicate keys, no lone surrogates.

    FastAPI's own `max_body_size` answers in plain text when the length is declared, so the limit is kept here.
    """

    media = "application/json"  # how a body is to be sent

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            content, size, is_whole = bytearray(), 0, False
            most = most_bytes(self.scope["route"].path)
            while not is_whole and size <= _MOST_READ:
                message = await self._next()
                piece = message.get("body", b"")
                is_whole = not message.get("more_body", False)
                size += len(piece)
                content += piece if size <= most else b""
            if size > most:
                raise HTTPException(413, f"a body has at most {most} bytes here")
            self._body = bytes(content)
        return self._body

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout(SILENCE_S):
                message = await self.receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing came for {SILENCE_S} s", {"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        return message

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = self.json_part(await self.body())
            parse = self.parser()
            is_short = len(body) <= _AT_ONCE_BYTES
            self._json = parse(body) if is_short else await to_thread.run_sync(parse, body, limiter=_parsing)
        return self._json

    def parser(self) -> Callable[[bytes], Any]:
        return parse_numbers if self.scope["route"].path in _WITH_IMAGES else parse_json

    def json_part(self, body: bytes) -> bytes:
        """That of the body which is JSON: all of it, here."""
        return body

    def is_readable(self) -> bool:
        """Whether its Content-Type says that the body is what `media` names."""
        return _is_json(self.headers.get("content-type", ""))


class StrictRoute(APIRoute):
    """A route that refuses unknown query parameters, and reads its body through StrictRequest before FastAPI does."""

    request_class: type[StrictRequest] = StrictRequest
    _strict: Handler | None = None  # of a route that needs nothing else

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Without what FastAPI puts around an endpoint for the sake of its dependencies, where it has none."""
        if self._strict is None or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self._strict(Request(scope, receive))
        await response(scope, receive, send)

    def get_route_handler(self) -> Handler:
        plain = self._plain_handler()
        handle = plain or super().get_route_handler()
        produced = self._media_types()

        async def strict(request: Request) -> Response:
            if produced and preferred(request.headers.get("accept", ""), produced) is None:
                raise HTTPException(406, f"this can be had as {', '.join(sorted(produced))}")
            checked = self.request_class(request.scope, request.receive)
            _refuse_wrong_parameters(checked)
            if self.body_field is not None and not await self._may_be_left_out(checked):
                if request.headers.get("content-encoding", "identity").lower() != "identity":
                    raise HTTPException(415, "send the body as it is, not compressed", {"Accept-Encoding": "identity"})
                if not checked.is_readable():
                    raise HTTPException(415, f"send the body as {checked.media}")
                if await checked.json() is None:
                    raise InvalidRequest(FieldProblem("", "this should be an object"))
            return await handle(checked)

        self._strict = strict if plain else None
        return strict

    def _media_types(self) -> set[str]:
        """What a success of this route may be; empty when it has no content."""
        if self.status_code == 204:
            return set()
        response = self.response_class
        usual = response.value if isinstance(response, DefaultPlaceholder) else response
        named = [
            media
            for status, answer in self.responses.items()
            if int(status) < 300
            for media in answer.get("content", ())
        ]
        return {*named, usual.media_type} - {None}

    def _plain_handler(self) -> Handler | None:
        """What calls an endpoint that takes texts of the path, models of query and body, and the request, and answers itself.

        It does as FastAPI does, which looks through the types of the models' fields for each request anew: 0.1 ms more.
        """
        needs, name = self.dependant, self.dependant.request_param_name
        model, body_model = _only_model(needs.query_params), _only_model(needs.body_params)
        others = (*needs.dependencies, *needs.header_params, *needs.cookie_params)
        fields = [parameter.field_info for parameter in needs.path_params]
        is_text = all(field.annotation is str and not field.metadata for field in fields)
        if others or not is_text or get_type_hints(self.endpoint).get("return") is not Response or not name:
            return None
        if (needs.query_params and not model) or (needs.body_params and not body_model) or not self._needs_its_body():
            return None
        query = needs.query_params[0].name if model else ""
        body = needs.body_params[0].name if body_model else ""

        async def plain(request: Request) -> Response:
            values: dict[str, Any] = {**request.path_params, name: request}
            if model:
                asked = dict(request.query_params) if request.scope["query_string"] else {}
                values[query] = _validated(model, asked, "query")
            if body_model:
                values[body] = _validated(body_model, await request.json(), "body")
            return cast(Response, await self.endpoint(**values))

        return plain

    def _needs_its_body(self) -> bool:
        """Whether it takes none, or one that may not be left out."""
        return self.body_field is None or self.body_field.field_info.is_required()

    async def _may_be_left_out(self, request: StrictRequest) -> bool:
        """Whether there is no body, and need not be one."""
        return not self._needs_its_body() and not await request.body()


def _only_model(parameters: Sequence[Any]) -> type[BaseModel] | None:
    """The model of the only parameter, when it is one."""
    kinds = [parameter.field_info.annotation for parameter in parameters]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel) else None


def _validated(model: type[BaseModel], value: Any, place: str) -> BaseModel:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [{**item, "loc": (place, *item["loc"])} for item in error.errors(include_url=False)]
        raise RequestValidationError(problems) from None


def _refuse_wrong_parameters(request: Request) -> None:
    if not request.scope["query_string"]:
        return
    models = [parameter.field_info.annotation for parameter in request.scope["route"].dependant.query_params]
    known = tuple(name for model in models for name in getattr(model, "model_fields", {}))
    given = request.query_params
    problems = [
        FieldProblem(
            printable(f"?{name[:LONGEST_NAME]}"), "no such parameter", known, nearest(name[:LONGEST_NAME], known)
        )
        for name in list(given)[:MOST_PROBLEMS]
        if name not in known
    ] or [FieldProblem(f"?{name}", "give it once") for name in given if len(given.getlist(name)) > 1]
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


def parse_numbers(body: bytes) -> Any:
    """As `parse_json`, many times faster on long lists of numbers, where a number with a point stays a float.

    pydantic's parser knows of no duplicate keys, but each key has a colon: as many colons as keys are found once each. In
    all doubts, and for what is no JSON, `parse_json` has the last word.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
        return _with_whole_numbers(value) if body.count(b":") == _keys(value) else parse_json(body)
    except ValueError:
        return parse_json(body)


def _keys(value: Any) -> int:
    """How many keys its objects have; those further inside than in a list of objects are not counted."""
    if isinstance(value, dict):
        return len(value) + sum(map(_keys, value.values()))
    return sum(map(_keys, value)) if isinstance(value, list) and value and isinstance(value[0], dict) else 0


def _with_whole_numbers(value: Any) -> Any:
    """As `parse_json` has numbers, but for those of long lists. Raises ValueError for one that it may refuse."""
    if isinstance(value, dict):
        return {key: _with_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) <= _SHORT_LIST:
        return [_with_whole_numbers(item) for item in value]
    if isinstance(value, int | float) and not abs(value) < 2**53:
        raise ValueError
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
    """A number with a point or an exponent. What is whole is an integer, as JSON Schema has it: `1.0` and `1e3` too."""
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise MalformedJson(FieldProblem("", "a number is too large"))
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
