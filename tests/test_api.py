"""The API over real HTTP, on a running server: what it refuses, and how."""

import base64
import contextlib
import gzip
import io
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from api.app import create_app
from core.catalogue import OPTIMIZERS
from core.settings import Settings
from tests.conftest import Server, eventually

GOOD = {"optimizer": "adam", "learning_rate": 0.001}
ONE_CYCLE = {"schedule": "one_cycle", "max_learning_rate": 0.1}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=10) as http:
        yield http


def is_problem(answer: httpx2.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Check the form every error has, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 4096
    problem: dict[str, Any] = answer.json()
    assert set(problem) - {"errors"} == {"type", "title", "status", "detail", "instance", "code", "request_id"}
    assert problem["status"] == status
    assert problem["type"] == f"/problems/{problem['code']}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert code in (None, problem["code"])
    return problem


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/optimizer"),
        ({**GOOD, "learning_rate": 0}, "/learning_rate"),
        ({**GOOD, "learning_rate": "0.1"}, "/learning_rate"),
        ({**GOOD, "learning_rate": True}, "/learning_rate"),
        ({**GOOD, "learning_rate": None}, "/learning_rate"),
        ({**GOOD, "learning_rate": [0.1]}, "/learning_rate"),
        ({**GOOD, "optimizer": "adma"}, "/optimizer"),
        ({**GOOD, "optimizer": "adam\n"}, "/optimizer"),
        ({**GOOD, "optimizer": "x" * 200_000}, "/optimizer"),
        ({**GOOD, "optimizer": "a\x00b"}, "/optimizer"),
        ({**GOOD, "optimizer": {"name": "adam", "momentum": 0.9}}, "/optimizer/momentum"),
        ({**GOOD, "optimizer": {"name": "momentum", "momentum": 1.0}}, "/optimizer/momentum"),
        (
            {**GOOD, "learning_rate": {"schedule": "step_decay", "initial": 0.1, "step_size": 0}},
            "/learning_rate/step_size",
        ),
        ({**GOOD, "learning_rate": {"schedule": "step_decay", "initial": 0.1, "step": 1}}, "/learning_rate/step"),
        ({**GOOD, "learning_rate": {"schedule": "stepdecay", "initial": 0.1}}, "/learning_rate"),
        ({**GOOD, "learning_rate": {"schedule": None}}, "/learning_rate"),
        (
            {**GOOD, "learning_rate": {"schedule": "exponential_decay", "initial": 0.1, "gamma": 1}},
            "/learning_rate/gamma",
        ),
        (
            {**GOOD, "learning_rate": ONE_CYCLE | {"total_steps": 2500, "three_phase": True, "phase_pct": 0.5}},
            "/learning_rate",
        ),
        ({**GOOD, "learning_rate": ONE_CYCLE | {"total_steps": 2500, "phase_pct": 0.0004}}, "/learning_rate"),
        ({**GOOD, "learning_rate": ONE_CYCLE | {"total_steps": 2499}}, "/learning_rate/total_steps"),
        ({**GOOD, "optimizer": "adamw", "weight_decay": 0.1}, "/weight_decay"),
        ({**GOOD, "grad_clip": {"type": "norm", "clip_norm": 0}}, "/grad_clip/clip_norm"),
        ({**GOOD, "grad_clip": {"type": "norm", "max": 1}}, "/grad_clip/max"),
        ({**GOOD, "optimizer": ["adam"]}, "/optimizer"),
        ({**GOOD, "__proto__": 1}, "/__proto__"),
        ({**GOOD, "epochs": 1.5}, "/epochs"),
        ({**GOOD, "epochs": 10**20}, "/epochs"),
        ({**GOOD, "batch_size": 50_001}, "/batch_size"),
        ({**GOOD, "seed": 2**64}, "/seed"),
        ({**GOOD, "device": "gpu:99"}, "/device"),
        ({**GOOD, "dataset": "file:///etc/passwd"}, "/dataset"),
        ({**GOOD, "dataset": 7}, "/dataset"),
        ({**GOOD, "a/b~c": 1}, "/a~1b~0c"),
        ([], ""),
        ("adam", ""),
        (None, ""),
    ],
)
def test_a_wrong_spec_is_told_where(http: httpx2.Client, body: Any, pointer: str) -> None:
    problem = is_problem(http.post("/jobs", content=json.dumps(body), headers=JSON), 422, "validation-error")
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert "xxxxx" not in json.dumps(problem)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b'{"optimizer": "adam", "learning_rate": NaN}',
        b'{"optimizer": "adam", "learning_rate": -Infinity}',
        b'{"optimizer": "adam", "learning_rate": 1e999}',
        b'{"optimizer": "adam", "learning_rate": 0.1, "learning_rate": 0.2}',
        b'{"optimizer": "adam", "learning_rate": 0.1} trailing',
        b'{"optimizer": "\\ud800", "learning_rate": 0.1}',
        b'{"optimizer": "\xff", "learning_rate": 0.1}',
        '{"optimizer": "adam", "learning_rate": 0.1}'.encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        b"[" * 100_000,
        b'{"optimizer": "adam", "learning_rate": 0.1, "seed": ' + b"9" * 5000 + b"}",
        b"\x1f\x8b" + gzip.compress(json.dumps(GOOD).encode(), mtime=0),
    ],
)
def test_what_is_not_strict_json_is_malformed(http: httpx2.Client, body: bytes) -> None:
    is_problem(http.post("/jobs", content=body, headers=JSON), 400, "malformed-json")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=utf-16"]
)
def test_another_content_type_is_refused(http: httpx2.Client, content_type: str) -> None:
    answer = http.post("/jobs", content=json.dumps(GOOD), headers={"Content-Type": content_type})
    is_problem(answer, 415, "unsupported-media-type")


def test_a_body_past_the_limit_is_refused(http: httpx2.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * (1 << 20)

    is_problem(http.post("/jobs", content=b" " * (9 << 20), headers=JSON), 413, "too-large")
    with contextlib.suppress(httpx2.WriteError):  # the server may close while we are still sending
        is_problem(http.post("/jobs", content=chunks(), headers=JSON), 413, "too-large")


def test_a_length_that_lies_does_not_hang(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{}"
        )
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    with httpx2.Client(base_url=server.url) as http:
        assert http.get("/healthz").status_code == 200


def test_an_unknown_field_is_told_what_could_stand_there(http: httpx2.Client) -> None:
    warm = {"schedule": "constant", "initial": 0.1, "warmup": {"warmup_steps": 3, "start": 1}}
    clip = {"type": "value", "max": 1, "mim": -1}
    for field, value, allowed, meant in (
        ("learning_rate", warm, ["warmup_steps", "start_lr"], "start_lr"),
        ("grad_clip", clip, ["type", "max", "min"], "min"),
    ):
        (error,) = http.post("/jobs", json={**GOOD, field: value}).json()["errors"]
        assert (error["allowed"], error["did_you_mean"]) == (allowed, meant)


def test_unknown_words_get_hints(http: httpx2.Client) -> None:
    problem = is_problem(http.post("/jobs", json={**GOOD, "optimizer": "adma"}), 422)
    assert problem["errors"] == [
        {
            "pointer": "/optimizer",
            "detail": "unknown optimizer 'adma'",
            "allowed": list(OPTIMIZERS),
            "did_you_mean": "adam",
        }
    ]
    problem = is_problem(http.post("/jobs", json={**GOOD, "epoch": 3}), 422)
    assert problem["errors"][0]["did_you_mean"] == "epochs"
    problem = is_problem(http.post("/jobs", json={**GOOD, "optimizer": {"name": "adam", "beta": 0.3}}), 422)
    assert problem["errors"][0]["did_you_mean"] in ("beta1", "beta2")
    problem = is_problem(http.get("/jobs", params={"limits": 1}), 422)
    assert (problem["errors"][0]["pointer"], problem["errors"][0]["did_you_mean"]) == ("?limits", "limit")


@pytest.mark.parametrize(
    ("where", "given", "meant", "another"),
    [
        ("?optimizer", "adma", "adam", "sgd"), ("?status", "runing", "running", "queued"),
        ("?format", "cvs", "csv", "json"), ("/on_divergence", "stp", "stop", "continue"),
        ("/dataset", "mnits", "mnist", "fashion-mnist"),
        ("/dataset", 7, None, "mnist"), ("/dataset", "m" * 1000, None, "mnist"),
    ],
)  # fmt: skip
def test_a_word_that_is_none_of_the_choices_is_told_which_there_are(
    http: httpx2.Client, where: str, given: Any, meant: str | None, another: str
) -> None:
    if where[0] == "?":
        path = "/jobs/job_" + "0" * 32 + "/loss" if where == "?format" else "/jobs"
        answer = http.get(path, params={where[1:]: given})
    else:
        answer = http.post("/jobs", json={**GOOD, where[1:]: given})
    (error,) = is_problem(answer, 422)["errors"]
    assert (error["pointer"], error.get("did_you_mean")) == (where, meant)
    assert another in error["allowed"]
    assert str(given) not in error["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/jobs/job_{0}"), ("GET", "/jobs/job_{0}/loss"), ("POST", "/predict"),
     ("POST", "/jobs/job_{0}/cancel"), ("GET", "/jobs/job_{0}/model"), ("GET", "/healthz")],
)  # fmt: skip
def test_an_unknown_parameter_is_refused_not_ignored(http: httpx2.Client, method: str, path: str) -> None:
    """`?validate_only=true` on a server that does not know it must not create a job."""
    before = http.get("/jobs", params={"limit": 1}).json()["jobs"]
    body = {"json": GOOD} if method == "POST" else {}
    answer = http.request(method, path.format("0" * 32), params={"validate_onlyy": "true"}, **body)  # type: ignore[arg-type]
    assert is_problem(answer, 422)["errors"][0]["pointer"] == "?validate_onlyy"
    assert [job["id"] for job in http.get("/jobs", params={"limit": 1}).json()["jobs"]] == [job["id"] for job in before]


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/job_" + "0" * 32,
        "/jobs/..%2f..%2fetc",
        "/jobs/%00",
        "/jobs/%ff",
        "/jobs/" + "x" * 10_000,
        "/nothing",
        "/jobs/a/b/c",
    ],
)
def test_what_does_not_exist_is_not_found(http: httpx2.Client, path: str) -> None:
    for suffix in ("", "/loss", "/model"):
        is_problem(http.get(path + suffix), 404, "not-found")


def test_another_method_is_refused(http: httpx2.Client) -> None:
    answer = http.put("/jobs")
    is_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"]


@pytest.mark.parametrize("cursor", ["-1", "1e26", "1_0", ">", "$", "+", "999999", "٣", "", "1 "])
def test_a_cursor_never_given_out_is_refused(http: httpx2.Client, cursor: str, queued_job: str) -> None:
    is_problem(http.get(f"/jobs/{queued_job}/loss", params={"after": cursor}), 422)


@pytest.mark.parametrize("limit", ["0", "-1", "1000000000", "x", ""])
def test_a_limit_out_of_range_is_refused(http: httpx2.Client, limit: str, queued_job: str) -> None:
    is_problem(http.get("/jobs", params={"limit": limit}), 422)
    is_problem(http.get(f"/jobs/{queued_job}/loss", params={"limit": limit}), 422)


@pytest.fixture
def queued_job(http: httpx2.Client) -> str:
    """A job that is there, and cancelled so that it costs nothing."""
    answer = http.post("/jobs", json=GOOD)
    job_id: str = answer.json()["id"]
    http.post(f"/jobs/{job_id}/cancel")
    return job_id


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"image": [], "images": []}, 422),
        ({"images": []}, 422),
        ({"images": [[0.0] * 784] * 257}, 422),
        ({"image": [[0.0] * 27] * 28}, 422),
        ({"image": ["0"] * 784}, 422),
        ({"image": [2.0] * 784}, 422),
        ({"image": [[[[[[[[[[0]]]]]]]]]]}, 422),
        ({"image": "bm90IGEgcGljdHVyZQ=="}, 422),
        ({"image": [0.0] * 784, "top_k": 11}, 422),
        ({"image": [0.0] * 784, "range": 7}, 422),
        ({"image": [0.0] * 784, "model": "../../etc/passwd"}, 404),
        ({"image": [0.0] * 784, "model": "job_" + "0" * 32}, 404),
    ],
)
def test_a_prediction_that_makes_no_sense_is_refused(
    http: httpx2.Client, trained_job: str, body: Any, status: int
) -> None:
    is_problem(http.post("/predict", json={"model": trained_job, **body}), status)


def test_the_model_of_a_job_without_one_is_not_ready(http: httpx2.Client, queued_job: str) -> None:
    is_problem(http.get(f"/jobs/{queued_job}/model"), 409, "model-not-ready")
    is_problem(http.post("/predict", json={"model": queued_job, "image": [0.0] * 784}), 409, "model-not-ready")


def test_a_model_in_an_unknown_format_is_refused(http: httpx2.Client, trained_job: str) -> None:
    is_problem(http.get(f"/jobs/{trained_job}/model", params={"format": "pickle"}), 422)


def test_a_new_job_says_where_it_is_and_cancel_says_whether_it_did_anything(http: httpx2.Client) -> None:
    answer = http.post("/jobs", json={**GOOD, "epochs": 1000, "log_every": 100})
    assert answer.status_code == 202
    assert answer.headers["location"] == answer.json()["links"]["self"] == f"/jobs/{answer.json()['id']}"
    assert answer.headers["retry-after"] == "1"
    cancel = answer.json()["links"]["cancel"]
    assert http.post(cancel).status_code == 202
    assert http.post(cancel).status_code == 200
    eventually(lambda: http.get(answer.headers["location"]).json()["terminal"], what="the cancel")
    assert http.post(cancel).status_code == 200


def test_a_picture_is_predicted(http: httpx2.Client, trained_job: str) -> None:
    stroke = np.full((300, 200), 255, np.uint8)
    stroke[40:260, 90:115] = 0
    buffer = io.BytesIO()
    Image.fromarray(stroke).save(buffer, "PNG")
    body = {"model": trained_job, "image": base64.b64encode(buffer.getvalue()).decode()}
    assert http.post("/predict", json=body).json()["predictions"][0]["digit"] == 1


def test_damaged_weights_are_never_used(http: httpx2.Client, server: Server, trained_job: str) -> None:
    job_id = http.post("/jobs", json={**GOOD, "epochs": 1, "batch_size": 5000}).json()["id"]
    eventually(lambda: http.get(f"/jobs/{job_id}").json()["terminal"], within_s=120, what="the job")
    files = {file: file.read_bytes() for file in (server.home / "jobs" / job_id).rglob("model.*")}
    for file, content in files.items():
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    is_problem(http.get(f"/jobs/{job_id}/model"), 500, "artifact-corrupt")
    is_problem(http.post("/predict", json={"model": job_id, "image": [0.0] * 784}), 500, "artifact-corrupt")
    for file, content in files.items():  # the server is shared
        file.write_bytes(content)
    assert http.get(f"/jobs/{job_id}/model").status_code == 200


def test_without_redis_a_job_is_refused_for_now_and_not_lost_later() -> None:
    app = create_app(Settings(redis_url="unix:///nowhere/redis.sock"))
    with TestClient(app, base_url="http://127.0.0.1") as http:
        answer = http.post("/jobs", json=GOOD)
        assert (answer.status_code, answer.headers["retry-after"], answer.json()["code"]) == (503, "5", "unavailable")
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200


def test_health_is_told(http: httpx2.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert {name: check["ok"] for name, check in ready.json()["checks"].items()} == {
        "redis": True, "worker": True, "disk": True, "dataset": True,
    }  # fmt: skip
