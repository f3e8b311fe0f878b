"""Downloads of a model: parts of it, answers that are known already, and each reason why there is none."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import httpx2
import numpy as np
import pytest
import safetensors.numpy

from api.download import ModelQuery
from core.jobs import artifacts
from core.jobs.job import Status
from core.storage import Folder
from tests.staged import SHAPES, Api, blank_weights
from tests.test_api import is_problem

FORMATS = get_args(ModelQuery.model_fields["format"].annotation)


@pytest.fixture(scope="module")
def http(api: Api) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=api.url, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def path(api: Api) -> str:
    return f"/jobs/{api.jobs[Status.SUCCEEDED]}/model"


def test_every_format_is_offered() -> None:
    assert set(FORMATS) == {*artifacts.FORMATS, *artifacts.EXPORTS} == {"pdparams", "safetensors", "inference", "onnx"}


# --- parts -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(http: httpx2.Client, path: str) -> bytes:
    answer = http.get(path)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    return answer.content


PARTS = {  # Range -> the part, of a file that is longer than 1,000 and shorter than 10**6 bytes
    "bytes=0-0": slice(0, 1),
    "bytes=0-99": slice(0, 100),
    "bytes=100-199": slice(100, 200),
    "bytes=1000-": slice(1000, None),
    "bytes=0-": slice(0, None),
    "bytes=-1": slice(-1, None),
    "bytes=-100": slice(-100, None),
    "bytes=-1000000": slice(0, None),
    "bytes=10-1000000": slice(10, None),
    "bytes=10-" + "9" * 90: slice(10, None),
    "bytes=007-0009": slice(7, 10),
    "BYTES=5-6": slice(5, 7),
    "bytes= 5-6 ,": slice(5, 7),
}


@pytest.mark.parametrize("wanted", PARTS, ids=lambda wanted: wanted[:20])
def test_a_part_is_sent_with_its_place(http: httpx2.Client, path: str, whole: bytes, wanted: str) -> None:
    answer = http.get(path, headers={"Range": wanted})
    part = PARTS[wanted]
    first, end, _ = part.indices(len(whole))
    assert (answer.status_code, answer.content) == (206, whole[part])
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(whole)}"
    assert answer.headers["content-length"] == str(end - first)


@pytest.mark.parametrize(
    "wanted", ["bytes=1000000-", "bytes=1000000-1000001", "bytes=-0", "bytes=-000", "bytes=" + "9" * 22 + "-"]
)
def test_a_part_beyond_the_end_is_refused_with_the_length(
    http: httpx2.Client, path: str, whole: bytes, wanted: str
) -> None:
    answer = http.get(path, headers={"Range": wanted})
    is_problem(answer, 416, "range-not-satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(whole)}"


@pytest.mark.parametrize(
    "wanted", ["bytes=0-1,5-6", "bytes=5-1", "bytes=0-" + "9" * 200, "bytes", "lines=0-1", "bytes=+1-2"]
)
def test_several_parts_and_what_is_none_give_the_whole(
    http: httpx2.Client, path: str, whole: bytes, wanted: str
) -> None:
    answer = http.get(path, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, whole)
    assert "content-range" not in answer.headers


def test_two_range_headers_are_several_parts(http: httpx2.Client, path: str, whole: bytes) -> None:
    assert http.get(path, headers=[("Range", "bytes=0-1"), ("Range", "bytes=5-6")]).content == whole


@pytest.mark.parametrize("name", ["Range", "If-Range"])
def test_headers_without_end_are_refused(http: httpx2.Client, path: str, name: str) -> None:
    for others in ({}, {"If-Match": '"x"'}, {"If-None-Match": "*"}):
        problem = is_problem(http.get(path, headers={name: "x" * 8001, **others}), 422, "validation-error")
        assert problem["errors"][0]["pointer"] == f"header {name.lower()}"


def test_a_download_that_was_cut_is_completed_only_from_the_same_file(
    http: httpx2.Client, path: str, whole: bytes
) -> None:
    etag = http.get(path).headers["etag"]
    rest = {"Range": "bytes=500-"}
    assert whole[:500] + http.get(path, headers={**rest, "If-Range": etag}).content == whole
    for other in ('"0"', f"W/{etag}", "Mon, 23 Nov 2026 00:00:00 GMT", ""):
        answer = http.get(path, headers={**rest, "If-Range": other})
        assert (answer.status_code, answer.content) == (200, whole)
    beyond = {"Range": "bytes=1000000-", "If-Range": '"0"'}
    assert http.get(path, headers=beyond).status_code == 200  # the range is of another file


# --- known already -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_the_tag_is_the_digest_and_what_is_known_is_not_sent(http: httpx2.Client, path: str, format: str) -> None:
    first = http.get(path, params={"format": format})
    etag = first.headers["etag"]
    assert etag == f'"{hashlib.sha256(first.content).hexdigest()}"'
    for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        again = http.get(path, params={"format": format}, headers={"If-None-Match": known, "Range": "bytes=0-9"})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    other = http.get(path, params={"format": format}, headers={"If-None-Match": '"x"', "Range": "bytes=0-9"})
    assert (other.status_code, other.content) == (206, first.content[:10])


def test_who_wants_one_state_alone_gets_no_other(http: httpx2.Client, api: Api, path: str) -> None:
    job_id = api.jobs[Status.SUCCEEDED]
    own = [
        f"/jobs/{job_id}{part}" for part in ("", "/loss", "/loss?format=csv", "/metrics", "/model?format=safetensors")
    ]
    for url in (*own, f"/compare?jobs={job_id}"):
        etag = http.get(url).headers["etag"]
        for wanted in ([etag], ["*"], [f'"x", {etag}'], ['"x"', etag]):
            assert http.get(url, headers=[("If-Match", each) for each in wanted]).status_code == 200
        for other in ('"x"', f"W/{etag}", "", etag.strip('"'), etag[:-2] + '"'):
            for known in ({}, {"If-None-Match": etag}):  # which is looked at afterwards
                answer = http.get(url, headers={"If-Match": other, **known})
                is_problem(answer, 412, "precondition-failed")
                assert answer.headers["etag"] == etag
        assert http.get(url, headers={"If-Match": etag, "If-None-Match": etag}).status_code == 304
    part = {"Range": "bytes=0-9"}
    assert http.get(path, headers={"If-Match": "*", **part}).status_code == 206
    assert http.get(path, headers={"If-Match": '"x"', **part}).status_code == 412
    assert http.head(path, headers={"If-Match": '"x"'}).status_code == 412


@pytest.mark.parametrize("format", FORMATS)
def test_head_tells_all_but_the_content(http: httpx2.Client, path: str, format: str) -> None:
    whole = http.get(path, params={"format": format})
    head = http.head(path, params={"format": format}, headers={"Range": "bytes=0-9"})  # a range is of GET alone
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-length", "content-type", "content-disposition", "accept-ranges"):
        assert head.headers[name] == whole.headers[name]
    ending = {"inference": "inference.zip"}.get(format, format)
    assert head.headers["content-disposition"] == f'attachment; filename="{path.split("/")[2]}.{ending}"'
    assert http.head(path, headers={"If-None-Match": "*"}).status_code == 304
    for accept, status in (("text/html", 406), ("application/octet-stream", 200), ("application/*;q=0.1", 200)):
        for ask in (http.get, http.head):
            assert ask(path, params={"format": format}, headers={"Accept": accept}).status_code == status


# --- why there is none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_byte_is_noticed(http: httpx2.Client, api: Api, format: str) -> None:
    job_id = api.finished_job(weights=blank_weights())
    path = f"/jobs/{job_id}/model?format={format}"
    assert http.get(path).status_code == 200
    files = list((api.settings.jobs_dir / job_id).glob("1/model*"))
    assert len(files) == (3 if format in artifacts.EXPORTS else 2)
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    is_problem(http.get(path), 500, "artifact-corrupt")


@pytest.mark.parametrize("format", FORMATS)
def test_a_job_that_has_not_ended_says_when_to_ask_again(http: httpx2.Client, api: Api, format: str) -> None:
    answer = http.get(f"/jobs/{api.jobs[Status.RUNNING]}/model?format={format}")
    is_problem(answer, 409, "model-not-ready")
    assert answer.headers["retry-after"] == "2"
    failed = http.get(f"/jobs/{api.jobs[Status.FAILED]}/model?format={format}")
    is_problem(failed, 409, "model-not-ready")
    assert "retry-after" not in failed.headers  # there will never be one


def test_the_model_of_a_deleted_job_is_gone_in_every_format(http: httpx2.Client, api: Api) -> None:
    job_id = api.finished_job(weights=blank_weights())
    assert http.get(f"/jobs/{job_id}/model?format=onnx").status_code == 200
    assert http.delete(f"/jobs/{job_id}").status_code == 204
    assert not (api.settings.jobs_dir / job_id).exists()
    for format in FORMATS:
        is_problem(http.get(f"/jobs/{job_id}/model?format={format}"), 410, "model-deleted")
    is_problem(http.post("/predict", json={"model": job_id, "image": [0.0] * 784}), 410, "model-deleted")
    is_problem(http.get(f"/jobs/{job_id}"), 404, "not-found")
    never = "job_" + "0" * 32
    is_problem(http.get(f"/jobs/{never}/model"), 404, "not-found")


def test_weights_of_another_network_are_given_but_not_used(http: httpx2.Client, api: Api) -> None:
    wider = {**SHAPES, "fc.weight": (980, 11), "fc.bias": (11,)}
    for shapes in (wider, {"layer.weight": (3, 4)}):
        weights = safetensors.numpy.save({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        job_id = api.finished_job(weights=weights)
        assert http.get(f"/jobs/{job_id}/model?format=safetensors").content == weights
        for format in artifacts.EXPORTS:
            is_problem(http.get(f"/jobs/{job_id}/model?format={format}"), 409, "model-unsupported")
        is_problem(http.post("/predict", json={"model": job_id, "image": [0.0] * 784}), 409, "model-unsupported")


def test_what_is_no_safetensors_file_is_damage(http: httpx2.Client, api: Api) -> None:
    job_id = api.finished_job(weights=json.dumps({"not": "weights"}).encode())
    for format in artifacts.EXPORTS:
        is_problem(http.get(f"/jobs/{job_id}/model?format={format}"), 500, "artifact-corrupt")


# --- what is kept ------------------------------------------------------------------------------------------------------


def test_files_that_were_made_stay_with_their_weights_and_go_with_them(tmp_path: Path) -> None:
    files, job_id = Folder(tmp_path), "job_" + "0" * 32
    job = tmp_path / job_id
    old, new = (
        artifacts.publish(files, f"{job_id}/{token}", "model.safetensors", token.encode()) for token in ("1", "2")
    )
    for weights in (old, new):
        for format in artifacts.EXPORTS:
            artifacts.publish_export(files, weights, format, f"{format} {weights['path']}".encode())
    artifacts.sweep(files, job_id, {old["path"]}, upto=1)
    assert len(list(job.glob("*/*"))) == 6  # the newer claim's are not this sweep's
    assert artifacts.read_export(files, old, "onnx") == f"onnx {old['path']}".encode()
    artifacts.sweep(files, job_id, {new["path"]}, upto=2)
    assert sorted(path.parent.name for path in job.glob("*/*")) == ["2", "2", "2"]
    assert artifacts.read_export(files, old, "onnx") is None
    assert artifacts.read_export(files, new, "inference") == f"inference {new['path']}".encode()
