import pytest
from pydantic import ValidationError

from core.catalogue import OPTIMIZERS
from core.spec import MAX_POINTS, JobSpec


def spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, **fields})


def test_an_optimizer_and_a_rate_are_a_whole_spec() -> None:
    job = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001})
    assert (job.dataset, job.epochs, job.batch_size, job.seed) == ("mnist", 5, 100, 0)
    assert job.model_dump()["optimizer"] == {
        "name": "adam", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "amsgrad": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_names_are_taken_in_any_case(name: str) -> None:
    assert spec(optimizer=name.upper()).optimizer.name == name
    assert spec(optimizer={"name": name.title()}).optimizer.name == name


def test_an_unknown_optimizer_gets_a_hint() -> None:
    with pytest.raises(ValidationError) as caught:
        spec(optimizer="adma")
    context = caught.value.errors()[0]["ctx"]
    assert context["did_you_mean"] == "adam"
    assert context["allowed"] == OPTIMIZERS


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0},
        {"learning_rate": -1},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": 1e-320},
        {"learning_rate": "0.1"},
        {"learning_rate": True},
        {"learning_rate": None},
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": 10**12},
        {"batch_size": 0},
        {"batch_size": 50_001},
        {"seed": -1},
        {"seed": 2**64},
        {"device": "gpu:99"},
        {"device": "tpu"},
        {"device": "cpu\n"},
        {"device": "cpu", "precision": "bf16"},
        {"device": "cpu", "to_static": True},
        {"precision": "float16"},
        {"dataset": "../../etc/passwd"},
        {"optimizer": {"name": "adam", "momentum": 0.9}},
        {"optimizer": {"name": "momentum", "momentum": 1.0}},
        {"optimizer": {"name": "adam", "beta1": 1}},
        {"optimizer": {}},
        {"optimizer": None},
        {"optimizer": "paddle.optimizer.Adam"},
        {"optimizer": "__class__"},
        {"rate": 0.1},
        {"epochs": 1000, "batch_size": 1, "log_every": 1},
        {"tags": {f"k{n}": "v" for n in range(17)}},
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec(**fields)


def test_the_last_smaller_batch_counts_as_a_step() -> None:
    assert spec(batch_size=300, epochs=2).total_steps == 2 * 167  # 50,000 = 166 * 300 + 200


@pytest.mark.parametrize(("log_every", "epochs", "points"), [(1, 1, 500), (10, 1, 51), (10, 5, 251), (7, 1, 73)])
def test_points_are_every_nth_step_and_the_last(log_every: int, epochs: int, points: int) -> None:
    job = spec(log_every=log_every, epochs=epochs)
    assert job.points == points == sum(job.is_logged(step) for step in range(job.total_steps))
    assert job.points <= MAX_POINTS


def test_the_hash_names_the_training_not_its_label() -> None:
    assert spec(name="a", tags={"k": "v"}).hash() == spec().hash()
    assert spec(seed=1).hash() != spec().hash()
    assert spec(optimizer={"name": "adam"}).hash() == spec(optimizer="Adam").hash()


def test_the_hash_of_a_training_names_its_backend() -> None:
    one, other = ({"device": "cpu", "kernel": "fused-avx512", "threads": threads} for threads in (1, 2))
    assert len({spec().hash(), spec().hash(one), spec().hash(other)}) == 3
    assert spec().hash(one) == spec().hash(dict(reversed(one.items())))
