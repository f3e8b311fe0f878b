"""The OpenAPI document: valid, complete, with a bound on everything that is sent; and /docs, which needs no other server."""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import openapi_spec_validator
import pytest

from api.document import operations, with_paths
from api.strict import MAX_BODY_BYTES, USUAL_BODY_BYTES
from tests.staged import Api

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document(api: Api) -> Json:
    document: Json = httpx2.get(f"{api.url}/openapi.json", timeout=10).raise_for_status().json()
    return document


def test_the_document_is_valid_openapi(document: Json) -> None:
    assert document["openapi"].startswith("3.1")
    openapi_spec_validator.validate(document)


def unbounded(schema: Json, document: Json, place: str) -> Iterator[str]:
    """The places in an input's schema where a client is not told how much it may send."""
    if "$ref" in schema:
        yield from unbounded(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document, place)
        return
    for kinds in ("anyOf", "oneOf", "allOf"):
        for n, kind in enumerate(schema.get(kinds, ())):
            yield from unbounded(kind, document, f"{place} {n}")
    if "enum" in schema or "const" in schema or schema.keys() & {"anyOf", "oneOf", "allOf"}:
        return
    match schema.get("type"):
        case "boolean" | "null":
            return
        case "string":
            pattern = schema.get("pattern", "*")
            is_bounded = "maxLength" in schema or not re.search(r"[*+]|,\}", pattern)
        case "integer" | "number":
            lowest, highest = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
            is_bounded = bool(schema.keys() & lowest and schema.keys() & highest)
        case "array":
            yield from unbounded(schema["items"], document, f"{place}[]")
            is_bounded = "maxItems" in schema
        case "object":
            for name, field in schema.get("properties", {}).items():
                yield from unbounded(field, document, f"{place}.{name}")
            others = schema.get("additionalProperties")
            if isinstance(others, dict):
                yield from unbounded(others, document, f"{place}.*")
                yield from unbounded({"type": "string"} | schema["propertyNames"], document, f"{place} names")
            is_bounded = others is False or "maxProperties" in schema
        case _:
            is_bounded = False
    if not is_bounded:
        yield place


def inputs(document: Json) -> Iterator[tuple[str, Json]]:
    for operation in operations(document):
        for parameter in operation.get("parameters", ()):
            yield f"{operation['operationId']} {parameter['in']} {parameter['name']}", parameter["schema"]
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{operation['operationId']} {kind}", content["schema"]


def test_everything_that_can_be_sent_has_a_bound(document: Json) -> None:
    found = dict(inputs(document))
    assert len(found) > 25
    assert [place for name, schema in found.items() for place in unbounded(schema, document, name)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {}, {"type": "string"}, {"type": "string", "pattern": "^a+$"}, {"type": "integer", "minimum": 0}, {"type": "object"},
        {"type": "array", "maxItems": 3, "items": {}}, {"anyOf": [{"type": "null"}, {"type": "number"}]},
        {"type": "object", "additionalProperties": False, "properties": {"a": {"type": "string"}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_missing_bound_is_found(schema: Json) -> None:
    assert list(unbounded(schema, {}, "it"))


def test_the_limits_of_bodies_are_named(document: Json) -> None:
    bodies = {path: operation["requestBody"] for path, operation in with_paths(document) if "requestBody" in operation}
    assert {"/jobs", "/predict", "/v2/models/{model}/infer"} <= set(bodies)
    for path, body in bodies.items():
        most = MAX_BODY_BYTES if path == "/predict" or path.endswith("/infer") else USUAL_BODY_BYTES
        assert f"at most {most} bytes" in body["description"]
    paths = [schema for name, schema in inputs(document) if name.endswith("path job_id")]
    assert {schema["pattern"] for schema in paths} == {"^job_[0-9a-f]{32}$"}


def test_every_error_is_documented_as_a_problem(document: Json) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, operation in with_paths(document):
        answers, is_inference = operation["responses"], path.startswith("/v2")
        expected = {"406", "421", "400" if is_inference else "422", "431"} | (
            {"400", "408", "413", "415"} if "requestBody" in operation else set()
        )
        assert expected <= set(answers)
        assert "422" not in answers or not is_inference
        for status, answer in answers.items():
            assert {"X-Request-Id", "Cache-Control"} <= answer["headers"].keys()
            if status >= "400" and (operation["operationId"], status) != ("health_readyz", "503"):
                form = (
                    ("application/json", "InferenceError") if is_inference else ("application/problem+json", "Problem")
                )
                assert answer["content"] == {form[0]: {"schema": {"$ref": f"#/components/schemas/{form[1]}"}}}


def test_what_may_be_unchanged_takes_the_tag_that_names_it(document: Json) -> None:
    found = [operation for operation in operations(document) if "304" in operation["responses"]]
    assert len(found) > 5
    for operation in found:
        assert {"If-None-Match", "If-Match"} <= {parameter["name"] for parameter in operation["parameters"]}
        assert all("ETag" in operation["responses"][status]["headers"] for status in ("200", "304", "412"))


def test_the_headers_of_errors_are_documented(document: Json) -> None:
    sent = {"401": "WWW-Authenticate", "409": "Retry-After", "415": "Accept-Encoding", "429": "Retry-After"}
    for operation in operations(document):
        for status in sent.keys() & operation["responses"].keys():
            assert sent[status] in operation["responses"][status]["headers"]
        if operation.get("security") != []:
            assert {"401", "429", "503"} <= operation["responses"].keys()
    assert "Allow" in document["components"]["responses"]["MethodNotAllowed"]["headers"]
    model = document["paths"]["/jobs/{job_id}/model"]["get"]["responses"]["200"]
    assert "Content-Disposition" in model["headers"]


def test_the_links_of_a_job_lead_to_all_that_takes_its_id(document: Json) -> None:
    links = document["paths"]["/jobs"]["post"]["responses"]["202"]["links"]
    assert len(links) > 9
    known = {operation["operationId"] for operation in operations(document)}
    assert {link["operationId"] for link in links.values()} <= known
    assert all(link["parameters"] == {"job_id": "$response.body#/id"} for link in links.values())


def test_names_are_short_and_each_its_own(document: Json) -> None:
    assert [name for name in document["components"]["schemas"] if "__" in name] == []  # FastAPI's way out of a clash
    names = [operation["operationId"] for operation in operations(document)]
    assert len(names) == len(set(names))
    assert {"jobs_create", "jobs_get", "history_loss"} <= set(names)


def test_the_docs_need_no_other_server(api: Api) -> None:
    page = httpx2.get(f"{api.url}/docs", timeout=10).text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(assets) >= 3
    assert not re.search(r"['\"(](?:https?:)?//", page)
    for asset in assets:
        content = httpx2.get(api.url + asset, timeout=10).raise_for_status().content
        assert len(content) > 100
        if asset.endswith(".css"):
            assert b"url(http" not in content
