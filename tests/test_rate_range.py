"""The learning-rate range test: made curves with known answers, real ones, going on after a stop, and all of it over HTTP."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from pydantic import ValidationError

from client.client import Client
from core.errors import InvalidRequest
from core.spec import JobSpec
from core.training.checkpoint import Checkpoint
from core.training.datasets import Dataset
from core.training.fused.layer import Kernel
from core.training.progress import Block, EpochEnd, RangeTested
from core.training.rate_range import SMOOTHED_OVER, Analysis, Ramp, analyse
from core.training.trainer import train
from tests.conftest import Server, eventually

STEPS, PER_STEP = 500, 7 / 499  # from 1e-6 to 10
EXPONENTS = [-6 + PER_STEP * step for step in range(STEPS)]
# it blows up at a rate of about 0.5, after a fifth of its 834 steps
SMALL: dict[str, Any] = {"optimizer": "momentum", "batch_size": 60, "epochs": 1, "seed": 3}
RAMP = {"start": 1e-2, "end": 1e6}


def judged(losses: list[float], *, every: int = 1, is_whole: bool = True, blew_up: bool = False) -> Analysis:
    """What a curve from 1e-6 to 10 says, of which every so many points are known."""
    steps = list(range(0, len(losses), every))
    shown = [losses[step] if math.isfinite(losses[step]) else None for step in steps]
    rates = [10 ** EXPONENTS[step] for step in steps]
    return analyse(steps, rates, shown, decades_per_step=PER_STEP, is_whole=is_whole, blew_up=blew_up)


def made(loss_at: Callable[[float], float], noise: float = 0.0) -> list[float]:
    rng = np.random.default_rng(0)
    return [loss_at(x) + noise * float(rng.standard_normal()) for x in EXPONENTS]


def bowl(x: float) -> float:
    """2.3 at first; it falls fastest at 1e-3, is least (0.3) at 1e-1, and four times that at 10 ** -0.34."""
    return 2.3 - (1 + math.tanh(3 * (x + 3))) + 0.01 * 10 ** (3 * max(x + 1, 0))


def low(x: float) -> float:
    """It falls soon behind 1e-6, and soon grows again."""
    return 2.3 - (1 + math.tanh(12 * (x + 5.7))) + 0.01 * 10 ** (6 * max(x + 5.5, 0))


# --- made curves -------------------------------------------------------------------------------------------------------


def test_a_run_that_ended_because_it_blew_up_says_so_also_when_few_steps_are_logged() -> None:
    """The trainer looks at every step, and ends the run at one that need not be logged."""
    losses = made(bowl)
    rate = judged(losses).blown_up_rate
    assert rate is not None
    until_then = losses[: round((math.log10(rate) + 6) / PER_STEP) + 1]
    assert judged(until_then).blown_up_rate == rate
    every = next(n for n in range(2, 40) if judged(until_then, every=n).blown_up_rate is None)
    found = judged(until_then, every=every, blew_up=True)
    assert found.outcome == "suggested"
    assert found.blown_up_rate == pytest.approx(rate, rel=0.5)


@pytest.mark.parametrize("noise", [0, 0.1])
@pytest.mark.parametrize("every", [1, 10])
def test_the_suggested_rate_is_a_tenth_of_that_of_the_least_loss(noise: float, every: int) -> None:
    found = judged(made(bowl, noise), every=every)
    assert found.outcome == "suggested"
    assert found.steepest_rate
    assert found.least_rate
    assert found.blown_up_rate
    assert -3 <= math.log10(found.steepest_rate) <= -3 + 2 * SMOOTHED_OVER  # a mean of the past lags behind
    assert -1.8 <= math.log10(found.least_rate) <= -0.5
    assert -0.5 < math.log10(found.blown_up_rate) < 0.1
    assert found.suggested_rate == found.least_rate / 10


@pytest.mark.parametrize(
    ("losses", "outcome"),
    [
        (made(lambda x: 2.3, 0.05), "never_fell"),
        (made(lambda x: 2.3 - 0.03 * (x + 6), 0.01), "never_fell"),  # by less than a tenth
        (made(lambda x: 2.3 * 10 ** (x + 6)), "blew_up"),
        ([math.nan] * STEPS, "blew_up"),
        ([2.3] * 20 + [math.inf], "blew_up"),
        (made(lambda x: 2.3 - 0.3 * (x + 6), 0.01), "still_falling"),
        (made(low), "below_range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_where_no_rate_can_be_suggested_it_says_why(losses: list[float], outcome: str) -> None:
    found = judged(losses)
    assert (found.outcome, found.suggested_rate) == (outcome, None)


def test_a_run_that_has_not_ended_suggests_nothing() -> None:
    for losses in ([], made(bowl)[:1], made(bowl)[:350]):
        found = judged(losses, is_whole=False)
        assert (found.outcome, found.suggested_rate, len(found.smoothed)) == ("unfinished", None, len(losses))


def test_every_outcome_is_a_sentence_in_both_languages() -> None:
    curves = [bowl, lambda x: 2.3, lambda x: 10**x, lambda x: 2.3 - 0.3 * (x + 6), low]
    found = [judged(made(curve)) for curve in curves] + [judged([], is_whole=False)]
    assert len({one.outcome for one in found}) == 6
    for one in found:
        assert one.sentence["en"].endswith(".")
        assert one.sentence["zh"].endswith("。")
        assert "{" not in one.sentence["en"] + one.sentence["zh"]
    assert f"{found[0].suggested_rate:.2g}" in found[0].sentence["en"]
    assert f"{found[0].suggested_rate:.2g}" in found[0].sentence["zh"]


def test_the_mean_is_exponential_in_the_rate_and_debiased() -> None:
    losses = made(bowl, 0.1)[:60]
    weights = np.exp(-PER_STEP / SMOOTHED_OVER * np.arange(60)[::-1])
    assert judged(losses).smoothed[-1] == pytest.approx(np.average(losses, weights=weights), rel=1e-12)
    assert judged(losses).smoothed[0] == pytest.approx(losses[0], rel=1e-12)


def test_a_spike_among_the_first_losses_does_not_end_it() -> None:
    ramp = Ramp(PER_STEP)
    for loss in (0.1, 5.0, 0.1):
        ramp.add(loss)
    assert not ramp.is_over
    ramp.add(math.nan)
    assert ramp.is_over


# --- the job -----------------------------------------------------------------------------------------------------------


def spec(**fields: object) -> JobSpec:
    rate = {"schedule": "range_test", **RAMP}
    return JobSpec.model_validate({**SMALL, "learning_rate": rate, "log_every": 1, **fields})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"learning_rate": {"schedule": "range_test", "start": 1, "end": 9.9}}, "/end"),
        ({"batch_size": 2000}, "/epochs"),  # 25 steps
        ({"batch_size": 4}, "/log_every"),  # 12,500
        ({"learning_rate": {"schedule": "range_test", "warmup": {"warmup_steps": 5}}}, None),
        ({"learning_rate": {"schedule": "range_test", "interval": "epoch"}}, None),
    ],
)
def test_what_makes_no_range_test_is_refused(fields: dict[str, Any], field: str | None) -> None:
    with pytest.raises(ValidationError) as caught:
        spec(**fields)
    assert field is None or caught.value.errors()[0]["ctx"]["field"] == field


def test_a_range_test_cannot_be_extended() -> None:
    with pytest.raises(InvalidRequest, match="rates would be others"):
        spec().extended(1)


def story(job: JobSpec, data: Dataset, kernel: Kernel | None, **options: Any) -> list[Any]:
    return list(train(job, data, kernel=kernel, **options))


def losses_of(story: list[Any]) -> list[tuple[int, float]]:
    return [(point.step, point.loss) for block in story if isinstance(block, Block) for point in block.points]


@pytest.fixture(scope="module")
def undisturbed(mnist: Dataset, kernel: Kernel | None) -> list[Any]:
    """A small range test to its end, with the checkpoints it made on its way."""
    return story(spec(), mnist, kernel, block_s=0.02, checkpoint_s=0.1)


def test_it_ends_when_its_loss_has_blown_up_and_has_no_model(undisturbed: list[Any]) -> None:
    steps, losses = zip(*losses_of(undisturbed), strict=True)
    job, end = spec(), undisturbed[-1]
    assert steps == tuple(range(len(steps)))
    assert len(steps) < job.total_steps
    rates = [job.range_test.rate_at(step, job.total_steps) for step in steps] if job.range_test else []
    found = analyse(steps, rates, losses, decades_per_step=job.decades_per_step, is_whole=True)
    assert found.blown_up_rate == rates[-1]  # it ended with the step that the rule names, no other
    assert found.outcome == "suggested"
    assert isinstance(end, RangeTested)
    assert end.final_loss == losses[-1]
    last_block = next(block for block in reversed(undisturbed) if isinstance(block, Block))
    assert last_block.steps_done == len(steps)
    assert not any(isinstance(progress, EpochEnd) for progress in undisturbed)


def test_one_that_was_stopped_goes_on_to_the_same_end(
    undisturbed: list[Any], mnist: Dataset, kernel: Kernel | None
) -> None:
    whole = losses_of(undisturbed)
    checkpoints = [progress for progress in undisturbed if isinstance(progress, Checkpoint)]
    for checkpoint in (checkpoints[0], checkpoints[-1]):
        saved = Checkpoint.from_bytes(checkpoint.to_bytes())
        rest = story(spec(), mnist, kernel, resume=saved)
        assert losses_of(rest) == whole[checkpoint.step :]
        assert rest[-1].final_loss == undisturbed[-1].final_loss


def test_the_last_step_is_logged_however_seldom_it_logs(
    undisturbed: list[Any], mnist: Dataset, kernel: Kernel | None
) -> None:
    whole = losses_of(undisturbed)
    seldom = losses_of(story(spec(log_every=16), mnist, kernel))
    assert seldom == [*whole[::16], *([] if whole[-1] == whole[::16][-1] else whole[-1:])]


def test_it_goes_on_behind_the_blow_up_if_it_is_told_to(
    undisturbed: list[Any], mnist: Dataset, kernel: Kernel | None
) -> None:
    whole = losses_of(undisturbed)
    run = train(spec(on_divergence="continue"), mnist, kernel=kernel, block_s=0)
    points = (point for block in run if isinstance(block, Block) for point in block.points)
    further = [(point.step, point.loss) for point in itertools.islice(points, len(whole) + 60)]
    run.close()
    assert len(further) == len(whole) + 60
    assert further[: len(whole)] == whole


# --- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield http


def ended(http: httpx2.Client, path: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        answer: dict[str, Any] = http.get(path, headers={"Prefer": "wait=10"}).json()
        return answer if answer["terminal"] else None

    return eventually(look, within_s=300, what="the end of the range test")


def test_a_range_test_of_adam_suggests_a_good_rate(http: httpx2.Client, client: Client, trained_job: str) -> None:
    latest = [client.predict([[0.0] * 784], model=name)["model"]["job_id"] for name in ("latest", "best")]
    answer = http.post("/lr-range-tests", json={"optimizer": "adam", "tags": {"why": "test"}})
    assert (answer.status_code, answer.headers["retry-after"]) == (202, "1")
    assert answer.json()["suggestion"]["outcome"] == "unfinished"
    path = answer.headers["location"]
    assert path == answer.json()["links"]["self"]
    test = ended(http, path)
    assert (test["status"], test["error"]) == ("succeeded", None)
    curve, suggestion, progress = test["curve"], test["suggestion"], test["progress"]
    count = len(curve["step"])
    assert {name: len(values) for name, values in curve.items()} == dict.fromkeys(curve, count)
    assert curve["rate"] == pytest.approx([1e-6 * 10 ** (7 * step / 499) for step in range(count)], rel=1e-9)
    assert 100 < count < 500
    assert (progress["step"], progress["total_steps"], progress["fraction"]) == (count, count, 1.0)
    assert (suggestion["outcome"], suggestion["blown_up_rate"]) == ("suggested", curve["rate"][-1])
    assert 5e-4 < suggestion["rate"] < 1e-2
    assert suggestion["rate"] == pytest.approx(suggestion["least_rate"] / 10)
    assert suggestion["steepest_rate"] <= suggestion["least_rate"] < suggestion["blown_up_rate"]
    assert suggestion["sentence"]["en"] != suggestion["sentence"]["zh"]

    job = http.get(test["links"]["job"]).json()
    assert [point["loss"] for point in client.jobs.get(job["id"]).loss().points] == curve["loss"]
    assert (job["result"]["test_accuracy"], job["model"]["ready"]) == (None, False)
    assert http.get(job["links"]["model"]).status_code == 409
    assert [client.predict([[0.0] * 784], model=name)["model"]["job_id"] for name in ("latest", "best")] == latest
    assert http.post(job["links"]["resume"], json={"epochs": 1}).status_code == 422
    etag = http.get(path).headers["etag"]
    assert http.get(path, headers={"If-None-Match": etag}).status_code == 304


def test_it_is_a_job_that_can_be_named_previewed_and_cancelled(http: httpx2.Client) -> None:
    body: dict[str, Any] = {"optimizer": "SGD", "epochs": 100, "log_every": 10}
    preview = http.post("/lr-range-tests?validate_only=true", json=body)
    assert (preview.status_code, preview.json()["total_steps"], preview.json()["points"]) == (200, 50_000, 5001)
    key = {"Idempotency-Key": "range-test-once"}
    first, again = (http.post("/lr-range-tests", json=body, headers=key) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert http.post("/lr-range-tests", json=body | {"seed": 1}, headers=key).json()["code"] == "idempotency-key-reused"
    assert http.get("/jobs?limit=1").json()["jobs"][0]["id"] == first.json()["id"]  # the preview made none
    assert http.post(first.json()["links"]["cancel"]).status_code == 202
    test = ended(http, first.json()["links"]["self"])
    assert (test["status"], test["suggestion"]["outcome"]) == ("cancelled", "unfinished")


def test_only_a_range_test_is_found_there(http: httpx2.Client, trained_job: str) -> None:
    for job_id in (trained_job, "job_" + "0" * 32, "x"):
        answer = http.get(f"/lr-range-tests/{job_id}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"start": 1.0, "end": 0.1}, "/end"),
        ({"start": 0}, "/start"),
        ({"end": 1e7}, "/end"),
        ({"end": "10"}, "/end"),
        ({"start": None}, "/start"),
        ({"learning_rate": 0.1}, "/learning_rate"),
        ({"epochs": 0}, "/epochs"),
        ({"batch_size": 5000}, "/epochs"),
        ({"batch_size": 1}, "/log_every"),
        ({"batch_size": 50_001}, "/batch_size"),
        ({"optimizer": "adma"}, "/optimizer"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "/optimizer/momentum"),
        ({"optimizer": "adamw", "weight_decay": 0.1}, "/weight_decay"),
    ],
    ids=str,
)
def test_what_is_wrong_is_pointed_at(http: httpx2.Client, fields: dict[str, Any], pointer: str) -> None:
    answer = http.post("/lr-range-tests", json={"optimizer": "adam", **fields})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation-error")
    assert [problem["pointer"] for problem in answer.json()["errors"]] == [pointer]


def test_nan_is_no_rate(http: httpx2.Client) -> None:
    body = '{"optimizer": "adam", "start": NaN}'
    answer = http.post("/lr-range-tests", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed-json")
