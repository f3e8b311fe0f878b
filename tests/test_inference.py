"""The Open Inference Protocol over real HTTP: raw requests in both its forms, all that is wrong with one, and tritonclient."""

import gzip
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import safetensors.numpy
from fastapi.testclient import TestClient

from api.app import create_app
from api.state import MOST_DRAWN
from api.strict import MAX_BODY_BYTES
from core.jobs.job import Status
from core.settings import Settings
from tests.conftest import ROOT, eventually
from tests.staged import SHAPES, Api
from tests.test_metrics import value

LIMIT_S = 10
MARK = "zq7 echo"  # stands in values that must not come back
NOBODY = "job_" + "0" * 32
LENGTH = "Inference-Header-Content-Length"
IMAGES = np.random.default_rng(1).random((3, 1, 28, 28), np.float32)
ONE = IMAGES[:1].ravel().tolist()
Json = dict[str, Any]
TRITONCLIENT = (  # and what its HTTP client imports; aiohttp, which only its asyncio client does, is left out
    "tritonclient==2.73.0",
    *("brotli==1.2.1", "certifi==2026.10.18", "gevent==26.9.0", "geventhttpclient==2.6.1", "greenlet==3.3.2"),
    *("ml_dtypes==0.5.4", "numpy==2.4.6", "python-rapidjson==1.25", "urllib3==2.8.0"),
    *("zope.event==6.2", "zope.interface==8.7"),
)


@pytest.fixture(scope="module")
def http(api: Api) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=api.url, timeout=LIMIT_S) as http:
        yield http
    assert httpx2.get(f"{api.url}/healthz", timeout=LIMIT_S).status_code == 200  # after all of it


@pytest.fixture(scope="module")
def model(api: Api) -> str:
    """A job whose weights tell images apart."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    return api.finished_job(weights=safetensors.numpy.save(weights))


@pytest.fixture(scope="module")
def expected(http: httpx2.Client, model: str) -> "np.ndarray[Any, Any]":
    """What `/predict` says of IMAGES."""
    answer = http.post("/predict", json={"model": model, "images": IMAGES.reshape(-1, 784).tolist()})
    return np.array([prediction["probabilities"] for prediction in answer.raise_for_status().json()["predictions"]])


def tensor(images: "np.ndarray[Any, Any]" = IMAGES, **facts: Any) -> Json:
    """An input, its data flat unless it has some, or none."""
    given = {"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()} | facts
    return {name: value for name, value in given.items() if value is not None}


def asks(**facts: Any) -> Json:
    return {"inputs": [tensor()]} | facts


def binary(body: Json, *raw: bytes, length: str | None = None) -> tuple[bytes, dict[str, str]]:
    """A body with tensors behind its JSON, and its headers."""
    text = json.dumps(body).encode()
    return text + b"".join(raw), {LENGTH: str(len(text)) if length is None else length}


def raw_tensor(images: "np.ndarray[Any, Any]" = IMAGES, **facts: Any) -> Json:
    return tensor(images, data=None, parameters={"binary_data_size": images.nbytes}, **facts)


def outputs_of(answer: httpx2.Response) -> dict[str, "np.ndarray[Any, Any]"]:
    """The tensors of an answer, read as the protocol says."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    text, raw, found = json.loads(answer.content[:length]), answer.content[length:], {}
    assert (LENGTH in answer.headers) == (answer.headers["content-type"] == "application/octet-stream")
    for output in text["outputs"]:
        kind = {"FP32": "<f4", "INT64": "<i8"}[output["datatype"]]
        size = output.get("parameters", {}).get("binary_data_size")
        assert ("data" in output) == (size is None)
        values = np.array(output["data"], kind) if size is None else np.frombuffer(raw[:size], kind)
        raw = raw[size or 0 :]
        found[output["name"]] = values.reshape(output["shape"])
    assert raw == b""
    return found


def is_error(answer: httpx2.Response, status: int, says: str = "") -> str:
    """Check the form that every error below /v2 has, and return what it says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 32
    assert len(answer.content) < 4096
    assert list(answer.json()) == ["error"]
    text: str = answer.json()["error"]
    assert text
    assert says in text
    assert MARK not in text
    return text


# --- what there is -----------------------------------------------------------------------------------------------------


def test_the_server_tells_what_it_is(http: httpx2.Client) -> None:
    told = http.get("/v2").raise_for_status().json()
    assert told == {
        "name": "descent",
        "version": http.get("/version").json()["version"],
        "extensions": ["binary_tensor_data"],
    }
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}


def test_a_model_tells_its_tensors_and_its_version(http: httpx2.Client, model: str) -> None:
    digest = http.get(f"/models/{model}").json()["sha256"]
    told = http.get(f"/v2/models/{model}").raise_for_status().json()
    assert told == {
        "name": model,
        "versions": [digest[:12]],
        "platform": "descent_safetensors",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "label", "datatype": "INT64", "shape": [-1]},
        ],
    }
    assert http.get(f"/v2/models/{model}/versions/{digest[:12]}").json() == told
    for path in (f"/v2/models/{model}/ready", f"/v2/models/{model}/versions/{digest[:12]}/ready"):
        assert http.get(path).json() == {"name": model, "ready": True}


def test_a_model_is_called_as_everywhere_else(http: httpx2.Client, model: str) -> None:
    http.put("/models/live", json={"job_id": model}).raise_for_status()
    for name in ("live", "latest", "best", model):
        job_id = http.get(f"/models/{name}").json()["job_id"]
        answer = http.post(f"/v2/models/{name}/infer", json=asks()).raise_for_status().json()
        assert (answer["model_name"], answer["parameters"]) == (name, {"job_id": job_id, "dataset": "mnist"})
        assert http.get(f"/v2/models/{name}").json()["versions"] == [answer["model_version"]]
    http.delete("/models/live").raise_for_status()


def test_a_version_is_answered_by_these_weights_or_not_at_all(http: httpx2.Client, api: Api, model: str) -> None:
    (version,) = http.get(f"/v2/models/{model}").json()["versions"]
    answer = http.post(f"/v2/models/{model}/versions/{version}/infer", json=asks())
    assert answer.json()["model_version"] == version
    for other in ("0" * 12, "1", version[:11], version.upper(), f"{version}0"):
        for path in ("", "/ready"):
            is_error(http.get(f"/v2/models/{model}/versions/{other}{path}"), 404, version)
        is_error(http.post(f"/v2/models/{model}/versions/{other}/infer", json=asks()), 404, version)


@pytest.mark.parametrize("name", [NOBODY, "nothing", "..%2f..", "a%00b", "x" * 5000, "Best", MARK])
def test_a_model_that_is_none_is_not_found(http: httpx2.Client, name: str) -> None:
    is_error(http.get(f"/v2/models/{name}"), 404)
    is_error(http.get(f"/v2/models/{name}/ready"), 404)
    is_error(http.post(f"/v2/models/{name}/infer", json=asks()), 404)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.FAILED])
def test_a_model_that_is_not_there_yet_or_never_is_not_ready(http: httpx2.Client, api: Api, status: Status) -> None:
    asked = [http.get(f"/v2/models/{api.jobs[status]}{path}") for path in ("", "/ready")]
    asked.append(http.post(f"/v2/models/{api.jobs[status]}/infer", json=asks()))
    for answer in asked:
        is_error(answer, 409, status)
        assert ("retry-after" in answer.headers) == (status is not Status.FAILED)


def test_a_damaged_model_says_so(http: httpx2.Client, api: Api) -> None:
    is_error(http.post(f"/v2/models/{api.finished_job(weights=b'damaged')}/infer", json=asks()), 500, "model")


# --- inference ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [IMAGES.ravel().tolist(), IMAGES.tolist()], ids=["flat", "nested"])
@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream", ""])
def test_numbers_are_predicted_as_predict_does(
    http: httpx2.Client, model: str, expected: "np.ndarray[Any, Any]", data: list[Any], content_type: str
) -> None:
    body = json.dumps({"inputs": [tensor(data=data)]})
    answer = http.post(f"/v2/models/{model}/infer", content=body, headers={"Content-Type": content_type})
    found = outputs_of(answer)
    assert list(found) == ["probabilities", "label"]
    assert found["probabilities"].shape == (3, 10)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    assert found["label"].tolist() == expected.argmax(axis=1).tolist()
    assert len(set(found["probabilities"][:, 0].tolist())) == 3  # the weights tell images apart


def test_bytes_are_predicted_as_numbers_are(http: httpx2.Client, model: str, expected: "np.ndarray[Any, Any]") -> None:
    body, headers = binary({"inputs": [raw_tensor()], "parameters": {"binary_data_output": True}}, IMAGES.tobytes())
    for content_type in ({}, {"Content-Type": "application/octet-stream"}, {"Content-Type": "application/json"}):
        answer = http.post(f"/v2/models/{model}/infer", content=body, headers=headers | content_type)
        assert answer.headers["content-type"] == "application/octet-stream"
        found = outputs_of(answer)
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
        assert found["label"].tolist() == expected.argmax(axis=1).tolist()


def test_256_images_are_taken_in_each_form(http: httpx2.Client, model: str) -> None:
    images = np.random.default_rng(2).random((256, 1, 28, 28), np.float32)
    content, headers = binary({"inputs": [raw_tensor(images)]}, images.tobytes())
    by_bytes = outputs_of(http.post(f"/v2/models/{model}/infer", content=content, headers=headers))
    for data in (images.ravel().tolist(), images.tolist()):
        by_numbers = outputs_of(http.post(f"/v2/models/{model}/infer", json={"inputs": [tensor(images, data=data)]}))
        for name in ("probabilities", "label"):
            np.testing.assert_array_equal(by_bytes[name], by_numbers[name])


@pytest.mark.parametrize(
    ("usual", "wanted", "binaries"),
    [
        (None, {}, {"probabilities": False, "label": False}),
        (False, {"label": True}, {"label": True}),
        (True, {"label": False, "probabilities": None}, {"label": False, "probabilities": True}),
        (None, {"label": True, "probabilities": True}, {"label": True, "probabilities": True}),
        (True, {"probabilities": None}, {"probabilities": True}),
    ],
)
def test_outputs_come_as_they_are_asked_for(
    http: httpx2.Client, model: str, expected: "np.ndarray[Any, Any]",
    usual: bool | None, wanted: dict[str, bool | None], binaries: dict[str, bool],
) -> None:  # fmt: skip
    own = [{"name": name} | ({} if it is None else {"parameters": {"binary_data": it}}) for name, it in wanted.items()]
    body = asks(outputs=own) | ({} if usual is None else {"parameters": {"binary_data_output": usual}})
    answer = http.post(f"/v2/models/{model}/infer", json=body)
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    told = {it["name"]: "parameters" in it for it in json.loads(answer.content[:length])["outputs"]}
    assert list(told.items()) == list(binaries.items())
    for name, values in outputs_of(answer).items():
        np.testing.assert_allclose(values, expected if name == "probabilities" else expected.argmax(axis=1), atol=1e-6)


def test_an_id_comes_back_and_parameters_of_others_do_no_harm(http: httpx2.Client, model: str) -> None:
    parameters = {"sequence_id": 7, "sequence_start": True, "priority": 1, "timeout": 1.5, "mine": "x"}
    inputs = [tensor(parameters={"content_type": "np"})]
    for id_ in ("request 7", "\u4e03", "x" * 1000):
        answer = http.post(f"/v2/models/{model}/infer", json={"id": id_, "parameters": parameters, "inputs": inputs})
        assert answer.raise_for_status().json()["id"] == id_
    assert "id" not in http.post(f"/v2/models/{model}/infer", json=asks()).json()


def test_its_images_are_counted_as_predictions(http: httpx2.Client, model: str) -> None:
    before = value(http, "descent_predict_images_total")
    http.post(f"/v2/models/{model}/infer", json=asks()).raise_for_status()
    is_error(http.post(f"/v2/models/{model}/infer", json={"inputs": []}), 400)
    assert value(http, "descent_predict_images_total") - before == 3
    route = value(http, "descent_http_requests_total", route="/v2/models/{model}/infer", status="2xx")
    assert route > 0


# --- what is refused ---------------------------------------------------------------------------------------------------

ONE_FACT: Json = {"shape": [1, 1, 28, 28], "data": ONE}


def with_data(data: Any) -> Json:
    return {"inputs": [tensor(shape=[1, 1, 28, 28], data=data)]}


def with_shape(*shape: Any) -> Json:
    return {"inputs": [tensor(shape=list(shape), data=ONE)]}


BAD: dict[str, tuple[Any, str]] = {
    "no object": ([], "body"),
    "null": (None, "body"),
    "nothing": ({}, "/inputs"),
    "no inputs": ({"inputs": []}, "/inputs"),
    "inputs that are null": ({"inputs": None}, "/inputs"),
    "two inputs": ({"inputs": [tensor(), tensor()]}, "/inputs"),
    "an input that is none": ({"inputs": [1]}, "/inputs/0"),
    "an unknown field": (asks(modle=1), "/modle: no such field (allowed: id, parameters, inputs, outputs)"),
    "an unknown field of the input": ({"inputs": [tensor(dtype="FP32")]}, "did you mean datatype?"),
    "another name": ({"inputs": [tensor(name=MARK)]}, "/inputs/0/name"),
    "a name like it": ({"inputs": [tensor(name="images")]}, "(allowed: image), did you mean image?"),
    "no name": ({"inputs": [{k: v for k, v in tensor().items() if k != "name"}]}, "/inputs/0/name: this is required"),
    "bytes": ({"inputs": [tensor(datatype="UINT8")]}, "(allowed: FP32)"),
    "doubles": ({"inputs": [tensor(datatype="FP64")]}, "(allowed: FP32)"),
    "a data type in small letters": ({"inputs": [tensor(datatype="fp32")]}, "/inputs/0/datatype"),
    "no shape": ({"inputs": [{k: v for k, v in tensor().items() if k != "shape"}]}, "/inputs/0/shape"),
    "no channel": (with_shape(1, 28, 28), "[N, 1, 28, 28]"),
    "rows": (with_shape(1, 784), "[N, 1, 28, 28]"),
    "27 wide": (with_shape(1, 1, 28, 27), "[N, 1, 28, 28]"),
    "three channels": (with_shape(1, 3, 28, 28), "[N, 1, 28, 28]"),
    "no images": (with_shape(0, 1, 28, 28), "/inputs/0/shape: a request has 1 to 256 images"),
    "any number of images": (with_shape(-1, 1, 28, 28), "1 to 256"),
    "257 images": (with_shape(257, 1, 28, 28), "1 to 256"),
    "10^30 images": (with_shape(10**29, 1, 28, 28), "1 to 256"),
    "1.5 images": (with_shape(1.5, 1, 28, 28), "[N, 1, 28, 28]"),
    "true images": (with_shape(True, 1, 28, 28), "[N, 1, 28, 28]"),
    "a shape of texts": (with_shape("1", 1, 28, 28), "[N, 1, 28, 28]"),
    "no data": ({"inputs": [tensor(data=None)]}, "/inputs/0: give either data, or binary_data_size"),
    "empty data": (with_data([]), "as many numbers as the shape has"),
    "a number too few": (with_data(ONE[1:]), "as many numbers as the shape has"),
    "a number too many": (with_data([*ONE, 0.5]), "as many numbers as the shape has"),
    "an image too few": (with_data(IMAGES.ravel().tolist()), "as many numbers as the shape has"),
    "data that is a text": (with_data(MARK), "/inputs/0/data"),
    "texts": (with_data(["0.5"] * 784), "as many numbers as the shape has"),
    "truths": (with_data([True] * 784), "as many numbers as the shape has"),
    "nulls": (with_data([None] * 784), "as many numbers as the shape has"),
    "a null among numbers": (with_data([*ONE[1:], None]), "as many numbers as the shape has"),
    "nested otherwise": (with_data([ONE]), "nested as the shape is"),
    "nested too deep": (with_data([IMAGES[:1].tolist()]), "nested as the shape is"),
    "ragged": (with_data([[[*IMAGES[0, 0].tolist()[1:], [0.5]]]]), "nested as the shape is"),
    "flat and nested": (with_data([*ONE[1:], [0.5]]), "as many numbers"),
    "a negative number": (with_data([-0.1, *ONE[1:]]), "values lie between 0 and 1"),
    "bytes as numbers": (with_data([255, *ONE[1:]]), "values lie between 0 and 1"),
    "a number of 29 digits": (with_data([10**28, *ONE[1:]]), "values lie between 0 and 1"),
    "an unknown output": (asks(outputs=[{"name": "digit"}]), "(allowed: probabilities, label)"),
    "an output twice": (asks(outputs=[{"name": "label"}] * 2), "/outputs: the same value stands here twice"),
    "three outputs": (asks(outputs=[{"name": "label"}] * 3), "/outputs"),
    "an output that is none": (asks(outputs=["label"]), "/outputs/0"),
    "outputs that are none": (asks(outputs="label"), "/outputs"),
    "a flag that is none": (asks(parameters={"binary_data_output": "true"}), "/parameters/binary_data_output"),
    "an output's flag that is none": (
        asks(outputs=[{"name": "label", "parameters": {"binary_data": 1}}]), "/outputs/0/parameters/binary_data"),
    "classification": (asks(outputs=[{"name": "label", "parameters": {"classification": 3}}]), "no extension"),
    "shared memory": (
        {"inputs": [tensor(data=None, parameters={"shared_memory_region": MARK})]}, "no extension"),
    "parameters that are none": (asks(parameters=[1]), "/parameters"),
    "a parameter that is an object": (asks(parameters={"a": {}}), "/parameters: a parameter is"),
    "33 parameters": (asks(parameters={f"p{n}": n for n in range(33)}), "/parameters: at most 32"),
    "a parameter of 10 KB": (asks(parameters={"a": MARK * 2000}), "/parameters"),
    "a parameter's name of 10 KB": (asks(parameters={MARK * 2000: 1}), "/parameters"),
    "an id of 10 KB": (asks(id=MARK * 2000), "/id"),
    "an id that is a number": (asks(id=7), "/id"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_request_is_told(http: httpx2.Client, model: str, name: str) -> None:
    body, says = BAD[name]
    is_error(http.post(f"/v2/models/{model}/infer", json=body), 400, says)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "{", '{"inputs": [{}], "inputs": [{}]}', '{"id": "\\ud800"}', "[" * 100_000, MARK, "\x00",
        *(json.dumps(with_data([0.25] * 784)).replace("0.25", number, 1) for number in ("NaN", "Infinity", "-Infinity")),
        json.dumps(with_data([0.25] * 784)).replace("0.25", "1e999", 1),
        json.dumps(with_data([0.25] * 784)).replace("0.25", "9" * 5000, 1),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_what_is_no_json_is_refused(http: httpx2.Client, model: str, text: str) -> None:
    is_error(http.post(f"/v2/models/{model}/infer", content=text), 400)


RAW = IMAGES[:1].tobytes()
RAW_BODY = {"inputs": [raw_tensor(IMAGES[:1])]}
SIZE = "/inputs/0/parameters/binary_data_size"


def sized(size: Any, **facts: Any) -> Json:
    return {"inputs": [tensor(IMAGES[:1], data=None, parameters={"binary_data_size": size}) | facts]}


def with_pixel(value: float) -> bytes:
    return np.array([value], "<f4").tobytes() + RAW[4:]


BAD_BINARY: dict[str, tuple[tuple[bytes, dict[str, str]], str]] = {
    "no raw data": (binary(RAW_BODY), f"{SIZE}: this is not how many bytes stand behind the JSON"),
    "a byte too few": (binary(RAW_BODY, RAW[1:]), SIZE),
    "a byte too many": (binary(RAW_BODY, RAW, b"\0"), SIZE),
    "an image too many": (binary(RAW_BODY, RAW, RAW), SIZE),
    "a size that the shape has not": (binary(sized(8), RAW[:8]), "not four bytes for each number of the shape"),
    "a shape that the size has not": (binary(sized(3136, shape=[2, 1, 28, 28]), RAW), "not four bytes for each number"),
    "no bytes at all": (binary(sized(0)), "not four bytes for each number"),
    "a negative size": (binary(sized(-3136), RAW), SIZE),
    "a size of 10^20": (binary(sized(10**20), RAW), SIZE),
    "a size that is a text": (binary(sized("3136"), RAW), SIZE),
    "a size that is true": (binary(sized(True), RAW), SIZE),
    "data and bytes": (binary(sized(3136, data=ONE), RAW), "give either data, or binary_data_size"),
    "bytes behind data": (binary(with_data(ONE), RAW), "belong to no tensor"),
    "one byte behind data": (binary(with_data(ONE), b"\n"), "belong to no tensor"),
    "NaN": (binary(RAW_BODY, with_pixel(np.nan)), "values are finite"),
    "infinity": (binary(RAW_BODY, with_pixel(np.inf)), "values are finite"),
    "below 0": (binary(RAW_BODY, with_pixel(-0.5)), "values lie between 0 and 1"),
    "above 1": (binary(RAW_BODY, with_pixel(1.5)), "values lie between 0 and 1"),
    "doubles": (binary(sized(6272), IMAGES[:1].astype("<f8").tobytes()), "not four bytes for each number"),
    "no header": ((binary(RAW_BODY, RAW)[0], {}), ""),
    "the length of all": ((binary(RAW_BODY, RAW)[0], {LENGTH: str(len(binary(RAW_BODY, RAW)[0]))}), ""),
    "a length too short": (binary(RAW_BODY, RAW, length="20"), "not JSON"),
    "a length too long by one": (binary(RAW_BODY, RAW, length=str(len(json.dumps(RAW_BODY)) + 1)), ""),
    **{
        f"a length of {length[:20]!r}": (binary(RAW_BODY, RAW, length=length), f"header {LENGTH}")
        for length in ("0", "-1", "+9", "1.5", "0x10", "ten", "", "1e2", "9, 9", "1_0", "9" * 9, "9" * 30, MARK, "\u0663")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BINARY)
def test_bytes_that_do_not_add_up_are_refused(http: httpx2.Client, model: str, name: str) -> None:
    (content, headers), says = BAD_BINARY[name]
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    is_error(http.post(f"/v2/models/{model}/infer", content=content, headers=sent), 400, says)


def test_two_lengths_are_refused(http: httpx2.Client, model: str) -> None:
    content, headers = binary(RAW_BODY, RAW)
    twice = [(LENGTH, headers[LENGTH])] * 2
    is_error(http.post(f"/v2/models/{model}/infer", content=content, headers=twice), 400, LENGTH)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": MARK}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Encoding": "deflate"}, 415),
        ({"Accept": "text/html"}, 406),
        ({"Host": "elsewhere.example"}, 421),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({f"X-{n}": "x" for n in range(200)}, 431),
    ],
    ids=lambda it: str(it)[:40],
)
def test_headers_that_cannot_be_are_refused_in_this_form(
    http: httpx2.Client, model: str, headers: dict[str, str], status: int
) -> None:
    is_error(http.post(f"/v2/models/{model}/infer", content=gzip.compress(b"{}"), headers=headers), status)


def test_a_body_that_is_too_long_is_refused(http: httpx2.Client, model: str) -> None:
    content = json.dumps(asks()).encode()
    longest = content + b" " * (MAX_BODY_BYTES - len(content))
    assert http.post(f"/v2/models/{model}/infer", content=longest).status_code == 200
    is_error(http.post(f"/v2/models/{model}/infer", content=longest + b" "), 413)


@pytest.mark.parametrize(
    "method_path",
    [
        "GET /v2/", "GET /v2/nothing", "GET /v2/health", "GET /v2/models", "GET /v2/models/best/", "GET /v2/models/best/config",
        "GET /v2/models/best/stats", "POST /v2/repository/index", "GET /v2/systemsharedmemory/status", "POST /v2/models//infer",
        f"GET /v2/{MARK}",
    ],
)  # fmt: skip
def test_what_of_the_protocol_is_not_here_is_not_found(http: httpx2.Client, method_path: str) -> None:
    method, path = method_path.split(" ", 1)
    is_error(http.request(method, path), 404, "/docs lists what there is")


@pytest.mark.parametrize(
    ("method_path", "allow"),
    [("GET /v2/models/best/infer", "POST"), ("POST /v2/models/best", "GET"), ("DELETE /v2", "GET")],
)
def test_a_method_that_a_path_has_not_is_refused(http: httpx2.Client, method_path: str, allow: str) -> None:
    answer = http.request(*method_path.split())
    is_error(answer, 405)
    assert answer.headers["allow"] == allow


def test_an_unknown_parameter_of_the_query_is_refused(http: httpx2.Client, model: str) -> None:
    is_error(http.post(f"/v2/models/{model}/infer?modle=1", json=asks()), 400, "?modle: no such parameter")
    is_error(http.get("/v2/health/live?x=1"), 400)


def test_paths_that_only_begin_alike_have_problems(http: httpx2.Client) -> None:
    for path in ("/v2x", "/v20/models/best"):
        assert http.get(path).headers["content-type"] == "application/problem+json"


def test_without_redis_it_lives_and_is_not_ready() -> None:
    app = create_app(Settings(redis_url="unix:///nowhere/redis.sock"))
    with TestClient(app, base_url="http://localhost") as here:
        assert here.get("/v2/health/live").json() == {"live": True}
        answers = [here.get("/v2/health/ready"), here.get("/v2/models/best/ready"), here.get("/v2/models/best")]
        for answer in [*answers, here.post("/v2/models/best/infer", json=asks())]:
            is_error(answer, 503, "Redis")
            assert int(answer.headers["retry-after"]) > 0


def test_long_lists_wait_for_a_thread_and_too_many_are_refused(api: Api, model: str) -> None:
    """A second API over the same database, in this process: its threads are taken, and as many wait as may."""
    app, body = create_app(api.settings), asks(inputs=[tensor(np.zeros((5, 1, 28, 28), np.float32))])
    with TestClient(app, base_url="http://localhost") as here:
        assert here.portal
        drawing = app.state.shared.drawing
        waiting = [
            here.portal.start_task_soon(drawing.acquire_on_behalf_of, place)
            for place in map(str, range(int(drawing.total_tokens) + MOST_DRAWN))
        ]
        eventually(lambda: drawing.statistics().tasks_waiting == MOST_DRAWN, what="the queue")
        answer = here.post(f"/v2/models/{model}/infer", json=body)
        is_error(answer, 503, "too many images wait")
        assert answer.headers["retry-after"] == "1"
        assert here.post(f"/v2/models/{model}/infer", json=asks()).status_code == 200  # three need no thread
        content, headers = binary(
            {"inputs": [raw_tensor(images := np.zeros((5, 1, 28, 28), np.float32))]}, images.tobytes()
        )
        assert here.post(f"/v2/models/{model}/infer", content=content, headers=headers).status_code == 200
        for place, each in enumerate(waiting):
            each.result(LIMIT_S)
            here.portal.call(drawing.release_on_behalf_of, str(place))
        assert here.post(f"/v2/models/{model}/infer", json=body).status_code == 200


# --- the real client ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tritonclient() -> Path:
    """The Python of an environment that has tritonclient and nothing of ours: made once in a checkout, in some 6 s."""
    folder = ROOT / ".descent" / "clients" / "tritonclient"
    python, made = folder / "bin" / "python", folder / ".made"
    if not made.exists() or made.read_text() != " ".join(TRITONCLIENT):
        venv.create(folder, clear=True)
        pip = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "--python",
            str(python),
            "--disable-pip-version-check",
            *("--retries", "1", "--timeout", "15"),
        ]
        install = ["install", "--no-deps", "--only-binary", ":all:", "--no-compile", *TRITONCLIENT]
        done = subprocess.run([*pip, *install], capture_output=True, text=True, timeout=300)
        if done.returncode and "connection broken" in done.stderr:
            pytest.skip("no package index can be reached, so tritonclient is not here")
        assert done.returncode == 0, done.stderr
        made.write_text(" ".join(TRITONCLIENT))
    return python


def test_tritonclient_is_served(
    tritonclient: Path, http: httpx2.Client, api: Api, model: str, expected: "np.ndarray[Any, Any]"
) -> None:
    """Its own way (bytes both ways) and as JSON, one by one and eight at a time."""
    (version,) = http.get(f"/v2/models/{model}").json()["versions"]
    session = [str(tritonclient), "-I", str(ROOT / "tests" / "tritonclient_session.py")]
    done = subprocess.run(
        [*session, api.url.removeprefix("http://"), model, version],
        input=json.dumps(IMAGES.tolist()), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["live"], told["ready"], told["models_ready"]) == (True, True, [True, True, False, False])
    assert told["server"] == http.get("/v2").json()
    assert told["model"] == http.get(f"/v2/models/{model}").json()
    assert len(told["results"]) == 12
    for result in told["results"]:
        np.testing.assert_allclose(result["probabilities"]["values"], expected, atol=1e-6)
        assert result["label"]["values"] == expected.argmax(axis=1).tolist()
        assert (result["probabilities"]["dtype"], result["label"]["dtype"]) == ("float32", "int64")
    forms = [{output["is_binary"] for output in result.values()} for result in told["results"]]
    assert forms == [{True}, {True}, {False}, {False}, *[{True}] * 8]
    assert told["ids"] == [str(n) for n in range(8)]
    assert list(told["label_alone"]) == ["label"]
    refusals = told["refusals"]
    statuses = {name: refusal["status"] for name, refusal in refusals.items()}
    assert (statuses.pop("27 wide"), statuses.pop("compressed")) == ("400", "415")
    assert set(statuses.values()) == {"404"}
    assert "[N, 1, 28, 28]" in refusals["27 wide"]["message"]
    assert version in refusals["other version"]["message"]
