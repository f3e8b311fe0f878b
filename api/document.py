"""The OpenAPI document: what FastAPI makes of the routes, completed with what all of them share.

Every answer carries `X-Request-Id` and `Cache-Control`; every error is a problem, or below /v2 of the Open Inference Protocol's
form; any route may refuse its parameters, `Accept` (`strict.py`), the Host or too many headers (`guard.py`); what may be
unchanged takes `If-None-Match` and `If-Match`; an id that one answer gives is linked to the operations that take it.
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from api import guard
from api.conditional import LONGEST_RANGES, LONGEST_TAGS
from api.problems import InferenceError, Problem, documented, is_inference
from api.strict import most_bytes

Json = dict[str, Any]

_ALWAYS_POSSIBLE = (406, 421, 422, 431)
_WITH_A_BODY = (400, 408, 413, 415)
_REQUEST_ID = {
    "description": "Names this request in the logs of the server and its workers: what `X-Request-Id` of the request said, "
    "if that were up to 128 letters, digits and `._:/+=@~-`, or else a new id.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@~-]{1,128}$"},
}
_CACHE_CONTROL = {
    "description": "`no-cache`: it may be kept, but is to be asked for again; `no-store`: it may not be kept.",
    "required": True,
    "schema": {"type": "string"},
}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The `ETag` of an answer that the client has: 304 if there is no other by now.",
    "schema": {"type": "string", "maxLength": LONGEST_TAGS},
}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "The `ETag` of the only state that is wanted, or several, or `*`: 412 if there is another by now.",
    "schema": {"type": "string", "maxLength": LONGEST_TAGS},
}
_OF_A_PART = [
    {
        "name": "Range",
        "in": "header",
        "required": False,
        "description": "`bytes=0-99`, `bytes=100-` or `bytes=-100`: only this part. What is not understood, and several "
        "ranges at once, are answered with the whole.",
        "schema": {"type": "string", "maxLength": LONGEST_RANGES},
        "example": "bytes=0-99",
    },
    {
        "name": "If-Range",
        "in": "header",
        "required": False,
        "description": "The `ETag` of the file that earlier parts are of: the whole, if there is another by now.",
        "schema": {"type": "string", "maxLength": LONGEST_TAGS},
    },
]
_ABOUT = (
    "Errors are problems (RFC 9457), below /v2 of the Open Inference Protocol's form, those of no operation too: 404 where "
    "there is nothing, and 405, with `Allow`, for a method that a path does not have (the component `MethodNotAllowed`)."
)
_BODY = "Strict JSON in UTF-8, at most {most} bytes: no key twice, no NaN, no lone surrogate."
_OR_A_FORM = " Or a whole form, whose pictures are files; its other fields are as those of the JSON."
_OWN_PATHS = {"JobAnswer": "/jobs/{job_id}", "SweepAnswer": "/sweeps/{sweep_id}", "RangeTestAnswer": "/jobs/{job_id}"}


def operation_id(route: APIRoute) -> str:
    """Short names, for the clients that are generated from the document: `jobs_create`."""
    return f"{route.tags[0]}_{route.name}" if route.tags else route.name


def install(app: FastAPI, *, needs_key: bool) -> None:
    """Complete the application's document, once it is asked for."""
    generate = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(generate(), needs_key=needs_key)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _completed(document: Json, *, needs_key: bool) -> Json:
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are never sent
        components["schemas"].pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    components["schemas"] |= problem.pop("$defs") | {"Problem": problem}
    components["schemas"]["InferenceError"] = InferenceError.model_json_schema()
    components["headers"] = {"X-Request-Id": _REQUEST_ID, "Cache-Control": _CACHE_CONTROL}
    components["responses"] = {"MethodNotAllowed": documented(405)[405]}
    document["info"]["description"] = _ABOUT
    guard.document(document, needs_key=needs_key)
    links = {f"#/components/schemas/{name}": _links(document, path) for name, path in _OWN_PATHS.items()}
    for path, operation in with_paths(document):
        answers = operation["responses"]
        possible: tuple[int, ...] = _ALWAYS_POSSIBLE
        if "requestBody" in operation:
            body = operation["requestBody"]
            body["description"] = _BODY.format(most=most_bytes(path))
            if "multipart/form-data" in body["content"]:
                body["description"] += _OR_A_FORM
            for content in body["content"].values():
                content["schema"] = _without_null(content["schema"])
            possible += _WITH_A_BODY
        answers |= {str(status): answer for status, answer in documented(*possible).items()}
        for status, answer in answers.items():
            answer.setdefault("description", HTTPStatus(int(status)).phrase)
            sent = answer.setdefault("headers", {})
            sent |= {name: {"$ref": f"#/components/headers/{name}"} for name in components["headers"]}
            if (what := _what(answer)) in links:
                answer["links"] = links[what]
        if is_inference(path):
            _tell_as_inference(answers)
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
        if "304" in answers:
            operation.setdefault("parameters", []).extend((_IF_NONE_MATCH, _IF_MATCH))
        if "206" in answers:
            operation["parameters"] += _OF_A_PART
    return document


def _tell_as_inference(answers: Json) -> None:
    """The errors in the Open Inference Protocol's form, which has 400 for 422."""
    answers["400"] = answers.pop("422") | {"description": HTTPStatus.BAD_REQUEST.phrase}
    for status, answer in answers.items():
        if int(status) >= 400:
            answer["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceError"}}}


def _without_null(schema: Json) -> Json:
    """The schema of a parameter or a body: it can be left out, but is never null itself."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return rest | kinds[0] if len(kinds) == 1 else schema


def operations(document: Json) -> Iterator[Json]:
    return (operation for _, operation in with_paths(document))


def with_paths(document: Json) -> Iterator[tuple[str, Json]]:
    for path, methods in document["paths"].items():
        yield from ((path, operation) for operation in methods.values())


def _what(answer: Json) -> str:
    """The reference to the schema of a JSON answer; empty where there is none."""
    return str(answer.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", ""))


def _links(document: Json, own_path: str) -> Json:
    """What can be done with that of which an answer holds the id."""
    parameter = own_path.partition("{")[2].removesuffix("}")
    return {
        operation["operationId"]: {
            "operationId": operation["operationId"],
            "parameters": {parameter: "$response.body#/id"},
        }
        for path, methods in document["paths"].items()
        if path.startswith(own_path)
        for operation in methods.values()
    }
