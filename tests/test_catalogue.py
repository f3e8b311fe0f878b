"""The catalogue is what the spec takes: every choice can be posted as it is described."""

from typing import Any

import httpx2
import jsonschema
import pytest

from core.catalogue import OPTIMIZERS, SCHEDULES
from core.spec import JobSpec
from tests.conftest import Server


@pytest.fixture
def catalogue(server: Server) -> dict[str, Any]:
    answer: dict[str, Any] = httpx2.get(f"{server.url}/optimizers").json()
    return answer


def filled(choice: dict[str, Any]) -> dict[str, Any]:
    """A value for each parameter: its default, or the least that its schema allows."""
    values = {}
    for parameter in choice["parameters"]:
        schema = parameter["schema"]
        least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 0.5)
        example = [1, 2] if schema.get("type") == "array" else least
        values[parameter["name"]] = example if parameter["required"] else parameter["default"]
        if values[parameter["name"]] is not None:
            jsonschema.validate(values[parameter["name"]], schema)
    return values


def test_every_optimizer_can_be_posted_as_it_is_described(catalogue: dict[str, Any]) -> None:
    assert [choice["name"] for choice in catalogue["optimizers"]] == list(OPTIMIZERS)
    lesson = [choice["name"] for choice in catalogue["optimizers"] if choice["lesson"]]
    assert lesson == ["sgd", "momentum", "adagrad", "rmsprop", "adam"]
    for choice in catalogue["optimizers"]:
        optimizer = {"name": choice["name"], **filled(choice)}
        spec = JobSpec.model_validate({"optimizer": optimizer, "learning_rate": 0.1})
        assert spec.optimizer.model_dump() == optimizer
        assert spec == JobSpec.model_validate({"optimizer": choice["name"], "learning_rate": 0.1})


def test_every_schedule_can_be_posted_as_it_is_described(catalogue: dict[str, Any]) -> None:
    assert [choice["name"] for choice in catalogue["schedules"]] == list(SCHEDULES)
    for choice in catalogue["schedules"]:
        interval = "step" if choice["name"] == "range_test" else "epoch"
        rate = {"schedule": choice["name"], **filled(choice), "interval": interval}
        rate |= {"total_steps": 10} if choice["name"] == "one_cycle" else {}  # fewer leave no way up
        assert JobSpec.model_validate({"optimizer": "adam", "learning_rate": rate, "epochs": 2})


def test_every_clip_can_be_posted_as_it_is_described(catalogue: dict[str, Any]) -> None:
    for choice in catalogue["clips"]:
        clip = {"type": choice["name"], **filled(choice)}
        assert JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.1, "grad_clip": clip})


def test_everything_has_a_line_in_both_languages(server: Server, catalogue: dict[str, Any]) -> None:
    mnist, fashion = httpx2.get(f"{server.url}/datasets").json()["datasets"]
    assert (mnist["name"], mnist["train_images"], mnist["classes"]) == ("mnist", 50_000, list("0123456789"))
    assert (fashion["name"], fashion["classes"][7], fashion["classes_zh"][7]) == ("fashion-mnist", "Sneaker", "运动鞋")
    for choice in [*catalogue["optimizers"], *catalogue["schedules"], *catalogue["clips"], mnist, fashion]:
        assert choice["summary"]["en"].endswith(".")
        assert choice["summary"]["zh"].endswith("。")
        assert any("\u4e00" <= letter <= "\u9fff" or letter in "×÷" for letter in choice["summary"]["zh"])
