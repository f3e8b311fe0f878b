"""Bad input, a row each: a problem with its status and code, small, without the input in it; never a 5xx, never a hang."""

import base64
import gzip
import io
import json
import os
import pickle
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from api.app import create_app
from api.guard import MOST_HEADERS
from api.protocol import MAX_HEAD_BYTES
from api.strict import MAX_BODY_BYTES, SILENCE_S, USUAL_BODY_BYTES
from core.jobs.job import Status
from tests.conftest import eventually
from tests.staged import Api, blank_weights
from tests.test_api import is_problem

LIMIT_S = 10  # for an answer; every request has it
MARK = "zq7 echo"  # stands in every value that must not come back
GOOD = {"optimizer": "adam", "learning_rate": 0.001}
BLANK = [0.0] * 784
JSON = {"Content-Type": "application/json"}
NOBODY = "job_" + "0" * 32
GOOD_TEXT = json.dumps(GOOD)

MALFORMED, INVALID, MISSING = (400, "malformed-json"), (422, "validation-error"), (404, "not-found")
Expected = tuple[int, str]


@pytest.fixture(scope="module")
def http(api: Api) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=api.url, timeout=LIMIT_S) as http:
        yield http
    assert httpx2.get(f"{api.url}/healthz", timeout=LIMIT_S).status_code == 200  # after all of it


@pytest.fixture(scope="module", autouse=True)
def silent(api: Api) -> Iterator[dict[str, socket.socket]]:
    """Requests that stop in their middle, sent first, so that nobody has to wait until their time is over."""
    head = "POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    requests = {
        "nothing": "",
        "half a head": head,
        "half a body": f"{head}Content-Length: 1000\r\n\r\n{GOOD_TEXT}",
        "half a chunk": f"{head}Transfer-Encoding: chunked\r\n\r\n10\r\n{{",
    }
    connections = {}
    for name, request in requests.items():
        connections[name] = socket.create_connection(api.address, timeout=SILENCE_S + LIMIT_S)
        connections[name].sendall(request.encode())
    yield connections
    for connection in connections.values():
        connection.close()


def refused(answer: httpx2.Response, expected: Expected) -> None:
    problem = is_problem(answer, *expected)
    assert MARK not in json.dumps({name: value for name, value in problem.items() if name != "instance"})
    assert len(problem["instance"]) <= 200


def post(http: httpx2.Client, text: str | bytes, expected: Expected, path: str = "/jobs", **headers: str) -> None:
    refused(http.post(path, content=text, headers=JSON | headers), expected)


def with_value(field: str, value: str) -> str:
    """The text of a good spec in which `field` (of the optimizer: `beta1`) has the JSON text `value`."""
    if field in ("beta1", "momentum"):
        name = "adam" if field == "beta1" else "momentum"
        return f'{{"learning_rate": 0.1, "optimizer": {{"name": "{name}", "{field}": {value}}}}}'
    others = {name: other for name, other in GOOD.items() if name != field}
    return f'{json.dumps(others)[:-1]}, "{field}": {value}}}'


# --- numbers, ranges and words of a spec -------------------------------------------------------------------------------

NUMBERS = ("learning_rate", "beta1", "weight_decay", "epochs", "batch_size", "seed", "log_every", "max_runtime_s")
NO_JSON = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "01", "0x10", "1.", ".5", "+1", "1_0")
NO_NUMBERS = ("-1", "-1e-320", '"0.1"', f'"{MARK}"', "true", "null", "[1]", '{"a": 1}', '""')


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", NO_JSON, ids=lambda value: value[:12])
def test_what_is_no_json_number_is_malformed(http: httpx2.Client, field: str, value: str) -> None:
    post(http, with_value(field, value), MALFORMED)


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_in_the_range_is_refused(http: httpx2.Client, field: str, value: str) -> None:
    post(http, with_value(field, value), INVALID)


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "learning_rate": ["0", "0.0", "-0.0", "1e-320", "1e7"],
        "epochs": ["0", "1.5", "1e12", "1001"],
        "batch_size": ["0", "1.5", "50001", "1e18"],
        "seed": ["0.5", "18446744073709551616"],
        "log_every": ["0", "10001"],
        "max_runtime_s": ["0", "604801"],
        "weight_decay": ["10.5"],
        "momentum": ["1.0", "1", "-0.1"],
        "beta1": ["1", "1.5"],
    }.items(),
)
def test_a_number_out_of_range_is_refused(http: httpx2.Client, field: str, values: list[str]) -> None:
    for value in values:
        post(http, with_value(field, value), INVALID)


WORDS = (
    MARK, "", " adam", "adam ", "adam\n", "adam\x00", "a\x00b", "paddle.optimizer.Adam", "__class__", "__import__('os')",
    "{0.__class__}", "${jndi:ldap://x}", "../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1/mnist", "аdam",
    MARK * 25_000,  # 200 kB; longer bodies are refused for that (413), see below
)  # fmt: skip


@pytest.mark.parametrize("word", WORDS, ids=lambda word: ascii(word[:24]))
@pytest.mark.parametrize(
    "field", ["optimizer", "learning_rate", "dataset", "device", "precision", "on_divergence", "grad_clip"]
)
def test_a_word_that_means_nothing_is_refused(http: httpx2.Client, field: str, word: str) -> None:
    post(http, with_value(field, json.dumps(word)), INVALID)
    nested = {"optimizer": {"name": word}, "learning_rate": {"schedule": word}, "grad_clip": {"type": word}}
    if field in nested:
        post(http, with_value(field, json.dumps(nested[field])), INVALID)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "gpu:99"), ("device", "gpu:-1"), ("device", "cpu\n"), ("device", "GPU:0"), ("name", MARK * 26), ("name", 1),
        ("tags", {f"k{n}": "v" for n in range(17)}), ("tags", {"k" * 65: "v"}), ("tags", {"k": MARK * 26}), ("tags", {"k": 1}),
        ("tags", [MARK]), ("tags", {"k": None}), ("to_static", "true"), ("to_static", 1), ("__proto__", {MARK: 1}),
        ("constructor", MARK), ("optimizer", {"name": "sgd", "momentum": 0.9}), ("optimizer", {"name": "adam", MARK[:3]: 1}),
        ("optimizer", ["adam"]), ("optimizer", {}), ("optimizer", {"adam": {}}), ("x" * 100_000, 1),
        ("learning_rate", {"schedule": "multi_step_decay", "initial": 0.1, "milestones": [2, 1]}),
        ("learning_rate", {"schedule": "multi_step_decay", "initial": 0.1, "milestones": list(range(1, 102))}),
        ("learning_rate", {"schedule": "multi_step_decay", "initial": 0.1, "milestones": [[[[[[1]]]]]]}),
    ],
    ids=lambda value: json.dumps(value)[:40],
)  # fmt: skip
def test_a_field_that_cannot_be_is_refused(http: httpx2.Client, field: str, value: Any) -> None:
    post(http, json.dumps({**GOOD, field: value}), INVALID)


# --- shapes of a body --------------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[bytes, Expected]] = {
    "empty": (b"", MALFORMED),
    "blank": (b" \n\t ", MALFORMED),
    "a list": (b"[]", INVALID),
    "a list of specs": (f"[{GOOD_TEXT}]".encode(), INVALID),
    "a word": (f'"{MARK}"'.encode(), INVALID),
    "a number": (b"1", INVALID),
    "null": (b"null", INVALID),
    "cut": (GOOD_TEXT[:-1].encode(), MALFORMED),
    "cut in a word": (b'{"optimizer": "ad', MALFORMED),
    "two values": (GOOD_TEXT.encode() * 2, MALFORMED),
    "a key twice": (b'{"optimizer": "adam", "learning_rate": 0.1, "learning_rate": 0.2}', MALFORMED),
    "a key twice, below": (b'{"optimizer": {"name": "adam", "name": "sgd"}, "learning_rate": 0.1}', MALFORMED),
    "100k [": (b"[" * 100_000, MALFORMED),
    "40k {": (b'{"a":' * 40_000, MALFORMED),
    "100k [ as an optimizer": (b'{"learning_rate": 0.1, "optimizer": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", MALFORMED),
    "500 deep": (b'{"learning_rate": 0.1, "optimizer": ' + b"[" * 500 + b"]" * 500 + b"}", INVALID),
    "10k keys": (json.dumps({**GOOD, **{f"k{n}": n for n in range(10_000)}}).encode(), INVALID),
    "bytes that are no UTF-8": (b'{"optimizer": "\xff\xfe", "learning_rate": 0.1}', MALFORMED),
    "an overlong UTF-8": (b'{"optimizer": "\xc0\x80", "learning_rate": 0.1}', MALFORMED),
    "a surrogate in UTF-8": (b'{"optimizer": "\xed\xa0\x80", "learning_rate": 0.1}', MALFORMED),
    "a lone surrogate": (b'{"optimizer": "\\ud800", "learning_rate": 0.1}', MALFORMED),
    "a lone surrogate as a key": (b'{"\\udc00": 1}', MALFORMED),
    "a raw control character": (b'{"optimizer": "a\x01b", "learning_rate": 0.1}', MALFORMED),
    "UTF-16": (GOOD_TEXT.encode("utf-16"), MALFORMED),
    "UTF-16 without a mark": (GOOD_TEXT.encode("utf-16-le"), MALFORMED),
    "UTF-32": (GOOD_TEXT.encode("utf-32"), MALFORMED),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD_TEXT.encode(), MALFORMED),
    "single quotes": (b"{'optimizer': 'adam'}", MALFORMED),
    "a comment": (b'{"optimizer": "adam", /* */ "learning_rate": 0.1}', MALFORMED),
    "a comma too many": (b'{"optimizer": "adam", "learning_rate": 0.1,}', MALFORMED),
    "gzip, not said": (gzip.compress(GOOD_TEXT.encode()), MALFORMED),
    "a pickle": (pickle.dumps(GOOD), MALFORMED),
    "9 MiB": (b" " * (MAX_BODY_BYTES + 1), (413, "too-large")),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("path", ["/jobs", "/jobs?validate_only=true", "/sweeps", "/predict"])
def test_a_body_of_the_wrong_shape_is_refused(http: httpx2.Client, path: str, name: str) -> None:
    post(http, *SHAPES[name], path)


@pytest.mark.parametrize("path", ["/jobs", "/sweeps", f"/jobs/{NOBODY}/resume"])
def test_only_a_body_with_images_may_be_long(http: httpx2.Client, path: str) -> None:
    text = json.dumps({"learning_rate": 0.1, "name": "x"}).encode()
    longest = text + b" " * (USUAL_BODY_BYTES - len(text))  # parsed in a thread
    assert http.post(path, content=longest, headers=JSON).status_code in (404, 422)
    assert http.post("/predict", content=longest + b" ", headers=JSON).status_code == 422
    for longer in (longest + b" ", json.dumps({"optimizer": MARK * 125_000}).encode()):
        refused(http.post(path, content=longer, headers=JSON), (413, "too-large"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": content_type}
        for content_type in (
            "", "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
            "application/xml",
            "application/json; charset=utf-16", "application/json, text/plain", "application/jsonp", MARK, "*/*", "x" * 5000,
        )
    ]
    + [JSON | {"Content-Encoding": coding} for coding in ("gzip", "br", "deflate", "gzip, gzip", MARK)],
    ids=lambda headers: str(headers)[-50:],
)  # fmt: skip
def test_another_form_of_body_is_refused_unread(http: httpx2.Client, headers: dict[str, str]) -> None:
    bomb = gzip.compress(bytes(40 << 20), 1)  # 40 MB of zeros, as 180 KB
    for path in ("/jobs", "/sweeps", "/predict", f"/jobs/{NOBODY}/resume"):
        is_form = path == "/predict" and headers.get("Content-Type", "").startswith("multipart/form-data")
        expected = (400, "malformed-form") if is_form else (415, "unsupported-media-type")
        refused(http.post(path, content=bomb, headers=headers), expected)


# --- below the application: lengths, chunks, heads ---------------------------------------------------------------------

HEAD = b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
CHUNK = b"100000\r\n" + b" " * 0x100000 + b"\r\n"  # 1 MiB
NO_HTTP = (400, "malformed-http")
RAW: dict[str, tuple[bytes, Expected]] = {
    "a length above the limit": (HEAD + b"Content-Length: 9000000\r\n\r\n" + b" " * 9_000_000, (413, "too-large")),
    "chunks past the limit": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK * 9 + b"0\r\n\r\n", (413, "too-large")),
    "a length that is no number": (HEAD + b"Content-Length: ten\r\n\r\n{}", NO_HTTP),
    "a negative length": (HEAD + b"Content-Length: -1\r\n\r\n{}", NO_HTTP),
    "a length of 30 digits": (HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}", NO_HTTP),
    "two lengths": (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", NO_HTTP),
    "length and chunks": (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", NO_HTTP),
    "a length that is too small": (HEAD + b"Content-Length: 1\r\n\r\n{}", MALFORMED),
    "chunks that are none": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", NO_HTTP),
    "a zero byte in a header": (b"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\0b\r\n\r\n", NO_HTTP),
    "a delete character in a header": (b"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\x7fb\r\n\r\n", NO_HTTP),
    "a header without a name": (b"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n: b\r\n\r\n", NO_HTTP),
    "a path that is none": (b"GET \xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", NO_HTTP),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", NO_HTTP),
    "another protocol": (b"*1\r\n$4\r\nPING\r\n", NO_HTTP),
    "a head without end": (b"GET /jobs HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD_BYTES + (1 << 18)), (431, "headers-too-large")),
}  # fmt: skip


def raw_answer(content: bytes) -> httpx2.Response:
    """The first answer in what a connection gave, as a response."""
    head, _, rest = content.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = httpx2.Headers({name: value for name, _, value in (line.partition(": ") for line in lines)})
    length = int(headers.get("content-length", len(rest)))
    return httpx2.Response(int(status.split()[1]), headers=headers, content=rest[:length])


@pytest.mark.parametrize("name", RAW)
def test_what_is_wrong_with_the_bytes_is_told(api: Api, name: str) -> None:
    request, expected = RAW[name]
    refused(raw_answer(api.send(request, limit_s=LIMIT_S)), expected)


def test_a_connection_with_garbage_behind_a_request_is_let_go(api: Api) -> None:
    """In the packet of the request itself: its answer would come behind the refusal, which is the last word."""

    def is_reset() -> bool:
        try:
            connection.send(b"x")
        except OSError:
            return True
        return False

    with socket.create_connection(api.address, timeout=LIMIT_S) as connection:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\0garbage\r\n\r\n")
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 400 ")
        eventually(is_reset, within_s=LIMIT_S, what="the server's end of it")


@pytest.mark.parametrize("body", ["[]", "3", '"a"', "null"])
@pytest.mark.parametrize("path", ["/predict", "/jobs"])
def test_a_body_that_is_no_object_is_told_so(http: httpx2.Client, path: str, body: str) -> None:
    (problem,) = is_problem(http.post(path, content=body, headers=JSON), 422)["errors"]
    assert problem["detail"] == "this should be an object"


def test_an_answer_comes_in_one_piece(api: Api) -> None:
    """Its head and its body apart would be two packets, and two times the work."""
    with socket.create_connection(api.address, timeout=LIMIT_S) as connection:
        for _ in range(50):
            connection.sendall(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            first = connection.recv(1 << 16)
            head, _, body = first.partition(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % len(body) in head.lower() + b"\r\n"


@pytest.mark.parametrize("cut", [b"Content-Length: 50\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n10\r\n{", b""])
def test_a_client_that_leaves_in_the_middle_does_no_harm(api: Api, cut: bytes) -> None:
    with socket.create_connection(api.address, timeout=LIMIT_S) as connection:
        connection.sendall(HEAD + cut)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


# --- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({f"X-{n}": MARK for n in range(300)}, (431, "headers-too-large")),
        ({f"X-{n}": MARK * 100 for n in range(MOST_HEADERS // 2)}, (431, "headers-too-large")),
        ({"Accept": "image/png"}, (406, "not-acceptable")),
        ({"Accept": "application/json;q=0, text/html"}, (406, "not-acceptable")),
        ({"Accept": f"{MARK}/{MARK}"}, (406, "not-acceptable")),
        ({"Prefer": "wait=" + "9" * 10_000}, INVALID),
    ],
    ids=lambda value: str(value)[:40],
)
def test_headers_that_cannot_be_are_refused(
    http: httpx2.Client, api: Api, headers: dict[str, str], expected: Expected
) -> None:
    refused(http.get(f"/jobs/{api.jobs[Status.QUEUED]}", headers=headers), expected)


def test_tags_without_end_are_refused(http: httpx2.Client, api: Api) -> None:
    for path in ("", "/loss", "/metrics", "/model"):
        for name in ("If-None-Match", "If-Match"):
            refused(http.get(f"/jobs/{api.jobs[Status.SUCCEEDED]}{path}", headers={name: "x" * 2001}), INVALID)


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "x" * 10_000, "schlüssel", "a,b c", "a\tb"], ids=ascii)
def test_an_idempotency_key_that_is_none_is_refused(http: httpx2.Client, key: str) -> None:
    headers = {b"Content-Type": b"application/json", b"Idempotency-Key": key.encode()}
    refused(http.post("/jobs", content=GOOD_TEXT, headers=headers), INVALID)


RANGES = (
    "bytes=",
    "bytes=-",
    "bytes=5-1",
    "bytes=0-0," * 500,
    "items=0-1",
    "bytes=a-b",
    "=",
)


@pytest.mark.parametrize("wanted", RANGES, ids=lambda wanted: wanted[:20])
def test_a_range_that_makes_no_sense_gives_the_whole(http: httpx2.Client, api: Api, wanted: str) -> None:
    path = f"/jobs/{api.jobs[Status.SUCCEEDED]}/model"
    whole = http.get(path).content
    answer = http.get(path, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, whole)


# --- ids, cursors, limits ----------------------------------------------------------------------------------------------

IDS = (
    "..%2f..", "..%2f..%2fetc%2fpasswd", "%00", f"{NOBODY}%00", "%ff", "%0a", f"{NOBODY}%0a", "x" * 10_000, "job_", "null",
    "job_" + "0" * 31, "job_" + "0" * 33, "job_" + "G" * 32, "JOB_" + "0" * 32, NOBODY, "*", "%2a", "%25%32%66", "-1",
    "0x1", "%20",
)  # fmt: skip
UNDER_A_JOB = (
    ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/pause"), ("POST", "/resume"), ("GET", "/loss"),
    ("GET", "/metrics"), ("GET", "/events"), ("GET", "/model"), ("GET", "/checkpoints"),
)  # fmt: skip


@pytest.mark.parametrize("job_id", IDS, ids=lambda job_id: job_id[:40])
def test_an_id_of_nothing_is_not_found(http: httpx2.Client, job_id: str) -> None:
    for method, below in UNDER_A_JOB:
        refused(http.request(method, f"/jobs/{job_id}{below}"), MISSING)
    refused(
        http.get("/events", params={"jobs": httpx2.QueryParams(f"i={job_id}")["i"]}),
        INVALID if len(job_id) > 2000 else MISSING,
    )
    for path in (f"/problems/{job_id}", f"/sweeps/{job_id}"):
        refused(http.get(path), MISSING)


QUERIES = {
    "after": ("-1", "1e26", "1_0", ">", "$", "+", "%2b1", "11", "999999999", "9" * 5000, "", "%20", "1%00", "%d9%a3", "0x1",
              "1.0", MARK),
    "limit": ("0", "-1", "1000000000", "1e3", "x", "", "%00", "9" * 5000, "10001", MARK, "1&limit=2", "1&limit=1"),
    "from_step": ("-1", "x", "1e99", "", "1&from_step=2"),
    "to_step": ("-1", "x", "9" * 5000),
    "max_points": ("3", "-1", "10001", "0", "NaN"),
    "format": ("xml", "", "JSON", "json%00", MARK),
    "shape": ("rows", "", MARK),
    "aftr": ("1", MARK),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in QUERIES.items() for value in values])
def test_a_cursor_or_limit_that_was_never_given_out_is_refused(
    http: httpx2.Client, api: Api, name: str, value: str
) -> None:
    refused(http.get(f"/jobs/{api.jobs[Status.SUCCEEDED]}/loss?{name}={value}"), INVALID)


@pytest.mark.parametrize(
    "query",
    [
        "after=-1", "after=job_", f"after={NOBODY}%0a", "after=%00", "after=%ff", "after=" + "x" * 10_000,
        "limit=0", "limit=101",
        "limit=-1", "limit=1e1", "limit=1&limit=2", "status=dead", "status=", "optimizer=adma", "optimizer=__class__",
        "tag=" + "x" * 301, "%00=1", "%ff=1", "a[]=1", "limit[]=1", "&".join(f"q{n}=1" for n in range(1000)),
    ],
    ids=lambda query: query[:40],
)  # fmt: skip
def test_a_list_that_cannot_be_is_refused(http: httpx2.Client, query: str) -> None:
    refused(http.get(f"/jobs?{query}"), INVALID)


def test_a_cursor_of_a_job_that_is_gone_still_goes_on(http: httpx2.Client) -> None:
    """Ids are in the order of time, so a page can begin behind any."""
    assert http.get(f"/jobs?after={NOBODY}").json()["jobs"] == []


# --- predictions -------------------------------------------------------------------------------------------------------


def png(*, width: int, height: int, rows: bytes) -> str:
    """A grey PNG that says it is so large, and holds these (packed) rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


def picture(kind: str) -> str:
    buffer = io.BytesIO()
    Image.new("L", (28, 28)).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def nested(depth: int) -> Any:
    value: Any = 0.0
    for _ in range(depth):
        value = [value]
    return value


ZEROS = zlib.compress(bytes(64 << 20), 9)  # 64 KB that become 64 MB
NO_IMAGES: dict[str, Any] = {
    "nothing": {}, "both": {"image": BLANK, "images": [BLANK]}, "none": {"images": []}, "an empty list": {"image": []},
    "an empty text": {"image": ""}, "null": {"image": None}, "images of null": {"images": [None]}, "a number": {"image": 1},
    "an object": {"image": {"0": BLANK}}, "ragged": {"image": [[0.0] * 28] * 27 + [[0.0] * 27]},
    "27 wide": {"image": [[0.0] * 27] * 28}, "27 high": {"image": [[0.0] * 28] * 27}, "783 long": {"image": BLANK[1:]},
    "785 long": {"image": [*BLANK, 0.0]}, "texts": {"image": ["0"] * 784}, "truths": {"image": [True] * 784},
    "nulls": {"image": [None] * 784}, "10 deep": {"image": nested(10)}, "28 rows of lists": {"image": [[[0.0]] * 28] * 28},
    "too bright": {"image": [1.5] * 784}, "256": {"image": [256] * 784, "range": 255}, "negative": {"image": [-0.5] * 784},
    "huge whole numbers": {"image": [10**29] * 784}, "257 images": {"images": [BLANK] * 257},
    "10^6 images": {"images": [0] * 1_000_000}, "one bad of many": {"images": [BLANK, BLANK[1:]]},
    "a range of 7": {"image": BLANK, "range": 7}, "a range of 1.5": {"image": BLANK, "range": 1.5},
    "11 best": {"image": BLANK, "top_k": 11}, "0 best": {"image": BLANK, "top_k": 0},
    "an unknown field": {"image": BLANK, "modle": 1},
    "a model of 10 KB": {"image": BLANK, "model": "x" * 10_000}, "a model that is null": {"image": BLANK, "model": None},
    "no base64": {"image": MARK}, "base64 of a text": {"image": base64.b64encode(MARK.encode()).decode()},
    "base64 with a line break": {"image": picture("PNG") + "\n"},
    "a data URL of a blank PNG": {"image": "data:image/png;base64," + picture("PNG")},
    "a data URL of a GIF": {"image": "data:image/gif;base64," + picture("GIF")},
    "a cut PNG": {"image": picture("PNG")[:60]}, "a PNG's first bytes": {"image": "iVBORw0KGgo="},
    "a GIF": {"image": picture("GIF")}, "a TIFF": {"image": picture("TIFF")}, "a blank PNG": {"image": picture("PNG")},
    "a pickle": {"image": base64.b64encode(pickle.dumps(BLANK)).decode()},
    "a PNG that says 10^5 x 10^5": {"image": png(width=100_000, height=100_000, rows=ZEROS)},
    "a PNG that says 2^31 x 2^31": {"image": png(width=2**31 - 1, height=2**31 - 1, rows=ZEROS)},
    "a PNG that says 0 x 0": {"image": png(width=0, height=0, rows=b"")},
    "a PNG with more than it says": {"image": png(width=1, height=1, rows=ZEROS)},
    "256 bombs": {"images": [png(width=60_000, height=60_000, rows=b"")] * 256},
    "a picture of 3 MB": {"image": base64.b64encode(b"\x89PNG" + bytes(3_000_000)).decode()},
}  # fmt: skip


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_refused(http: httpx2.Client, name: str) -> None:
    post(http, json.dumps({"model": "best", **NO_IMAGES[name]}), INVALID, "/predict")


@pytest.mark.parametrize("value", NO_JSON, ids=lambda value: value[:12])
def test_an_image_with_what_is_no_number_is_malformed(http: httpx2.Client, value: str) -> None:
    post(http, f'{{"image": [{value}{", 0" * 783}]}}', MALFORMED, "/predict")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("../../etc/passwd", MISSING), (MARK, MISSING), ("", MISSING), (NOBODY, MISSING), ("job_*", MISSING),
        ("a\x00b", MISSING),
        ("Best", MISSING), ("file:///etc/passwd", MISSING), *((status, (409, "model-not-ready")) for status in (
            Status.QUEUED, Status.RUNNING, Status.PAUSED, Status.FAILED, Status.CANCELLED)),
    ],
    ids=ascii,
)  # fmt: skip
def test_a_model_that_cannot_be_had_is_refused(
    http: httpx2.Client, api: Api, model: str | Status, expected: Expected
) -> None:
    name = api.jobs[model] if isinstance(model, Status) else model
    post(http, json.dumps({"model": name, "image": BLANK}), expected, "/predict")


def test_the_model_of_a_deleted_job_is_gone(http: httpx2.Client, api: Api) -> None:
    untrained = http.post("/jobs", json=GOOD).json()["id"]
    http.post(f"/jobs/{untrained}/cancel").raise_for_status()
    trained = api.finished_job(weights=blank_weights())
    for job_id, expected in ((trained, (410, "model-deleted")), (untrained, MISSING)):
        http.delete(f"/jobs/{job_id}").raise_for_status()
        post(http, json.dumps({"model": job_id, "image": BLANK}), expected, "/predict")
        refused(http.get(f"/jobs/{job_id}/model"), expected)
        refused(http.get(f"/jobs/{job_id}"), MISSING)


class _Mischief:
    """Leaves a file behind where somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_the_place_of_the_weights_is_not_unpickled(http: httpx2.Client, api: Api, tmp_path: Path) -> None:
    mischief = tmp_path / "unpickled"
    job_id = api.finished_job(weights=pickle.dumps(_Mischief(mischief)))
    post(http, json.dumps({"model": job_id, "image": BLANK}), (500, "artifact-corrupt"), "/predict")
    assert not mischief.exists()


# --- how it is told -----------------------------------------------------------------------------------------------------

STRANGE = {f"{n}" + "\U0001f600" * 60: 1 for n in range(10)}


def test_many_strange_names_are_told_in_few_bytes(http: httpx2.Client) -> None:
    """`refused` looks at the size."""
    answers = (
        http.post("/jobs", json=GOOD | STRANGE),
        http.get("/jobs", params=STRANGE),
        http.get("/x/" + "\U0001f600" * 300),
    )
    for answer in answers[:2]:
        refused(answer, INVALID)
        errors = answer.json()["errors"]
        assert errors[0]["allowed"]
        assert len(errors) == 10
        assert all("allowed" not in error for error in errors[1:])
    refused(answers[2], MISSING)
    for answer in answers:
        assert "\\ud83d" not in answer.text


def test_a_path_with_a_slash_too_many_is_not_found(http: httpx2.Client) -> None:
    for path in ("/jobs/", "/healthz/", f"/jobs/{NOBODY}/"):
        refused(http.get(path, headers={"Host": "localhost"}), MISSING)


# --- the last: what was begun first ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nothing", "half a head", "half a body", "half a chunk"])
def test_a_request_that_stops_in_its_middle_is_given_up(silent: dict[str, socket.socket], name: str) -> None:
    answer = b""
    with closing(silent[name]) as connection:
        while piece := connection.recv(4096):
            answer += piece
    refused(raw_answer(answer), (408, "request-timeout"))


# --- predictions that cost much ------------------------------------------------------------------------------------------


def test_pictures_that_are_too_much_together_are_refused_at_the_first_one_too_many(
    http: httpx2.Client, api: Api
) -> None:
    large = Image.new("L", (4000, 4000), 255)
    large.paste(0, (1000, 1000, 3000, 3000))
    buffer = io.BytesIO()
    large.save(buffer, "PNG")
    body = {"model": api.jobs[Status.SUCCEEDED], "images": [base64.b64encode(buffer.getvalue()).decode()] * 100}
    (problem,) = is_problem(http.post("/predict", json=body), 422, "validation-error")["errors"]
    assert problem["pointer"] == "/images/2"


def test_predictions_wait_for_each_other_and_too_many_are_refused(api: Api) -> None:
    """A second API over the same database, in this process: the thread that computes is held up."""
    body = {"model": api.jobs[Status.SUCCEEDED], "image": BLANK}
    app, go_on, most = create_app(api.settings), threading.Event(), 8
    with TestClient(app, base_url="http://localhost") as here, ThreadPoolExecutor(most + 1) as pool:
        predicting = app.state.shared.predicting
        predicting._thread.submit(go_on.wait)
        predicting._computed._most_waiting = most
        try:
            first = pool.submit(here.post, "/predict", json=body)
            eventually(lambda: predicting._computed._working, what="the first one's turn")
            waiting = [first, *(pool.submit(here.post, "/predict", json=body) for _ in range(most))]
            eventually(lambda: predicting._computed._weight == most, what="the queue")
            refused = here.post("/predict", json=body)
            is_problem(refused, 503, "unavailable")
            assert refused.headers["retry-after"] == "1"
            assert here.get("/readyz").status_code == 200  # its threads are others
            assert here.get(f"/jobs/{body['model']}/model").status_code == 200
        finally:
            go_on.set()
        assert {each.result().status_code for each in waiting} == {200}
