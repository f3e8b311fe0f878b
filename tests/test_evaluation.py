"""What a model makes of the test images: the confusion matrix, examples, and each reason why there is none."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from client.client import Client
from core.errors import DatasetUnavailable, ModelUnsupported
from core.jobs.job import Status
from core.training import datasets, idx
from core.training.datasets import Dataset, Split, load_test
from core.training.evaluation import Evaluation, evaluate
from core.training.predictor import Predictor
from tests.conftest import Server
from tests.staged import SHAPES, Api, api_without_worker
from tests.test_api import is_problem
from tests.test_predictor import random_weights

Json = dict[str, Any]


@pytest.fixture(scope="module")
def http(api: Api) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=api.url, timeout=60) as http:
        yield http


@pytest.fixture
def path(api: Api) -> str:
    return f"/jobs/{api.jobs[Status.SUCCEEDED]}/evaluation"


def drawn(example: Json) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(example["seen"]))))


# --- of a real model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(server: Server, trained_job: str) -> Json:
    answer: Json = httpx2.get(f"{server.url}/jobs/{trained_job}/evaluation?examples=100", timeout=60).json()
    return answer


def test_the_accuracy_is_the_one_that_the_training_ended_with(
    client: Client, trained_job: str, evaluated: Json
) -> None:
    assert evaluated["accuracy"] == client.jobs.get(trained_job).data["result"]["test_accuracy"]
    assert evaluated["accuracy"] == evaluated["right"] / evaluated["images"] > 0.95
    assert (evaluated["job_id"], evaluated["dataset"], evaluated["partial"]) == (trained_job, "mnist", False)


def test_the_matrix_counts_every_test_image_once(evaluated: Json, mnist: Dataset) -> None:
    confusion = np.array(evaluated["confusion"])
    assert confusion.sum() == evaluated["images"] == 10_000
    assert confusion.sum(axis=1).tolist() == np.bincount(mnist.test.labels).tolist()
    assert confusion.trace() == evaluated["right"]


def test_each_class_has_its_precision_and_recall(evaluated: Json) -> None:
    confusion = np.array(evaluated["confusion"])
    for number, score in enumerate(evaluated["classes"]):
        assert (score["class"], score["label"], score["label_zh"]) == (number, str(number), str(number))
        assert score["recall"] == confusion[number, number] / confusion[number].sum()
        assert score["precision"] == confusion[number, number] / confusion[:, number].sum()
        assert score["images"] == confusion[number].sum()


def test_examples_are_the_test_images_and_what_predict_says_of_them(
    client: Client, trained_job: str, evaluated: Json, mnist: Dataset
) -> None:
    wrong, right = evaluated["examples"]["wrong"], evaluated["examples"]["right"]
    assert all(each["label"] != each["predicted"] for each in wrong)
    assert all(each["label"] == each["predicted"] for each in right)
    assert [each["confidence"] for each in wrong] == sorted((each["confidence"] for each in wrong), reverse=True)
    assert [each["label"] for each in right] == list(range(10)) * 10
    for each in [*wrong, *right]:
        assert np.array_equal(drawn(each), mnist.test.images[each["index"]])
        assert each["label"] == mnist.test.labels[each["index"]]
    images = [(mnist.test.images[each["index"]] / 256).tolist() for each in wrong[:5]]
    predictions = client.predict(images=images, model=trained_job)["predictions"]
    for each, prediction in zip(wrong, predictions, strict=False):
        assert prediction["digit"] == each["predicted"]
        assert prediction["confidence"] == pytest.approx(each["confidence"], abs=1e-6)


def test_the_examples_of_one_cell_can_be_asked_for(server: Server, trained_job: str, evaluated: Json) -> None:
    confusion = np.array(evaluated["confusion"]) - 10_000 * np.eye(10, dtype=int)
    label, predicted = (int(place) for place in np.unravel_index(confusion.argmax(), confusion.shape))
    asked = {"label": label, "predicted": predicted, "examples": 100}
    cell = httpx2.get(f"{server.url}/jobs/{trained_job}/evaluation", params=asked, timeout=60).json()
    assert cell["confusion"] == evaluated["confusion"]
    assert cell["examples"]["right"] == []
    assert {(each["label"], each["predicted"]) for each in cell["examples"]["wrong"]} == {(label, predicted)}
    assert len(cell["examples"]["wrong"]) == confusion[label, predicted]


# --- the route ---------------------------------------------------------------------------------------------------------


def test_who_has_the_answer_is_told_so_before_anything_is_computed(http: httpx2.Client, path: str) -> None:
    first = http.get(path)
    tag = first.headers["etag"]
    again = http.get(path, headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert http.get(path, params={"examples": 3}).headers["etag"] != tag
    assert http.get(path, headers={"If-Match": '"another"'}).status_code == 412


def test_there_are_as_many_examples_as_are_wanted(http: httpx2.Client, path: str) -> None:
    for most in (0, 1, 20):
        examples = http.get(path, params={"examples": most}).json()["examples"]
        assert {len(each) for each in examples.values()} == {most}


@pytest.mark.parametrize("asked", ["examples=101", "examples=-1", "label=10", "predicted=x", "split=train"])
def test_a_wrong_question_is_refused(http: httpx2.Client, path: str, asked: str) -> None:
    problem = is_problem(http.get(f"{path}?{asked}"), 422, "validation-error")
    assert problem["errors"][0]["pointer"] == f"?{asked.partition('=')[0]}"


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.FAILED])
def test_a_job_without_a_model_is_a_conflict(api: Api, http: httpx2.Client, status: Status) -> None:
    is_problem(http.get(f"/jobs/{api.jobs[status]}/evaluation"), 409, "model-not-ready")


def test_a_job_that_does_not_exist_is_not_found(http: httpx2.Client) -> None:
    is_problem(http.get(f"/jobs/job_{'0' * 32}/evaluation"), 404, "not-found")
    is_problem(http.get("/jobs/best/evaluation"), 404, "not-found")


def test_a_deleted_model_is_gone(api: Api, http: httpx2.Client) -> None:
    job_id = api.finished_job(weights=safetensors.numpy.save(random_weights(3)))
    assert http.get(f"/jobs/{job_id}/evaluation").status_code == 200
    assert http.delete(f"/jobs/{job_id}").status_code == 204
    is_problem(http.get(f"/jobs/{job_id}/evaluation"), 410, "model-deleted")


def test_the_weights_of_another_network_and_those_that_blew_up_are_conflicts(api: Api, http: httpx2.Client) -> None:
    other = safetensors.numpy.save({"fc.weight": np.zeros((980, 10), np.float32)})
    blown = safetensors.numpy.save({name: np.full(shape, np.nan, np.float32) for name, shape in SHAPES.items()})
    for weights in (other, blown):
        job_id = api.finished_job(weights=weights)
        is_problem(http.get(f"/jobs/{job_id}/evaluation"), 409, "model-unsupported")


def test_damaged_weights_are_told(api: Api, http: httpx2.Client) -> None:
    job_id = api.finished_job(weights=safetensors.numpy.save(random_weights(4)))
    for file in (api.settings.jobs_dir / job_id).rglob("*.safetensors"):
        file.chmod(0o644)
        file.write_bytes(b"damaged")
    is_problem(http.get(f"/jobs/{job_id}/evaluation"), 500, "artifact-corrupt")


def test_without_the_data_set_it_says_what_to_do_and_fetches_nothing(tmp_path: Path) -> None:
    with api_without_worker(tmp_path / "home", tmp_path / "cache") as api:
        answer = httpx2.get(f"{api.url}/jobs/{api.jobs[Status.SUCCEEDED]}/evaluation", timeout=60)
    problem = is_problem(answer, 503, "unavailable")
    assert "descent data fetch mnist" in problem["detail"]
    assert str(tmp_path) not in answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert not (tmp_path / "cache" / "mnist").exists()


# --- the test images ---------------------------------------------------------------------------------------------------


def test_the_test_images_are_read_alone(cache: Path, mnist: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for file in idx.FILES["mnist"]:
        (tmp_path / "mnist" / file.name).write_bytes(b"not read")
    for file in idx.FILES["mnist"][idx.TEST]:
        (tmp_path / "mnist" / file.name).write_bytes((cache / "mnist" / file.name).read_bytes())
    found = load_test("mnist", cache=tmp_path)
    assert np.array_equal(found.images, mnist.test.images)
    assert np.array_equal(found.labels, mnist.test.labels)
    (tmp_path / "mnist" / idx.FILES["mnist"][2].name).write_bytes(b"damaged")
    with pytest.raises(DatasetUnavailable, match="is not the file it should be"):
        load_test("mnist", cache=tmp_path)


def test_the_lessons_file_is_kept_as_files_that_can_be_read_alone(
    mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist.json.gz").write_bytes(b"")
    splits = (mnist.train, mnist.valid, mnist.test)
    images, labels = [np.concatenate([getattr(each, of) for each in splits[:2]]) for of in ("images", "labels")]
    arrays = [images, labels, mnist.test.images, mnist.test.labels]
    monkeypatch.setattr(datasets, "_parsed", lambda path, name: arrays)
    with pytest.raises(DatasetUnavailable):
        load_test("mnist", cache=tmp_path / "cache", folder=tmp_path)
    datasets.load("mnist", cache=tmp_path / "cache", folder=tmp_path)
    assert np.array_equal(load_test("mnist", cache=tmp_path / "cache", folder=tmp_path).labels, mnist.test.labels)


# --- the numbers -------------------------------------------------------------------------------------------------------

LABELS = np.array([0, 0, 1, 1, 2, 2], np.uint8)
PREDICTED = np.array([0, 1, 1, 2, 2, 0], np.uint8)
SMALL = Evaluation(LABELS, PREDICTED, np.array([0.9, 0.4, 0.8, 0.7, 0.6, 0.7], np.float32))


def test_wrong_images_come_the_surest_first_and_right_ones_class_by_class() -> None:
    everything = SMALL.chosen()
    assert SMALL.wrong(10, everything) == [3, 5, 1]
    assert SMALL.wrong(2, everything) == [3, 5]
    assert SMALL.right(10, everything) == [0, 2, 4]
    assert SMALL.wrong(10, SMALL.chosen(label=1)) == [3]
    assert SMALL.wrong(10, SMALL.chosen(predicted=0)) == [5]
    assert SMALL.right(10, SMALL.chosen(label=1, predicted=1)) == [2]


def test_rows_are_the_true_classes() -> None:
    confusion = SMALL.confusion()
    assert confusion.shape == (10, 10)
    assert confusion[1, 2] == 1
    assert confusion[2, 1] == 0
    assert confusion.sum() == 6


def test_probabilities_that_are_none_are_refused() -> None:
    weights = {name: np.full(shape, np.inf, np.float32) for name, shape in SHAPES.items()}
    with pytest.raises(ModelUnsupported, match="no number"):
        evaluate(Predictor(weights), Split(np.ones((3, 28, 28), np.uint8), np.zeros(3, np.uint8)))
