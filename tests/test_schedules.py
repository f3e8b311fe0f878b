"""Every schedule against its closed form, from the start, after a warm-up, and after a resume."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from core.catalogue import SCHEDULES
from core.spec import JobSpec
from core.training.optimizers import Schedule

R0, STEPS = 0.1, 12  # 12 steps: 4 epochs of 3


def one_cycle(n: int) -> float:
    """Up in the first 30 % of 12 steps from 0.1/25 to 0.1, then down to 0.0001, both along half a cosine."""
    low, high, end, peak = R0 / 25, R0, 0.0001, 0.3 * 12 - 1
    if n <= peak:
        return high + (low - high) * (1 + math.cos(math.pi * n / peak)) / 2
    return end + (high - end) * (1 + math.cos(math.pi * (n - peak) / (11 - peak))) / 2


def triangle(n: int, up: int = 3, down: int = 2) -> float:
    """0 at the start of each cycle, 1 at its peak."""
    place = n % (up + down)
    return place / up if place <= up else (up + down - place) / down


CASES: list[tuple[dict[str, Any], Callable[[int], float]]] = [
    ({"schedule": "constant", "initial": R0}, lambda n: R0),
    ({"schedule": "step_decay", "initial": R0, "step_size": 2, "gamma": 0.5}, lambda n: R0 * 0.5 ** (n // 2)),
    (
        {"schedule": "multi_step_decay", "initial": R0, "milestones": [1, 3], "gamma": 0.5},
        lambda n: R0 * 0.5 ** ((n >= 1) + (n >= 3)),
    ),
    ({"schedule": "exponential_decay", "initial": R0, "gamma": 0.9}, lambda n: R0 * 0.9**n),
    ({"schedule": "natural_exp_decay", "initial": R0, "gamma": 0.2}, lambda n: R0 * math.exp(-0.2 * n)),
    ({"schedule": "inverse_time_decay", "initial": R0, "gamma": 0.5}, lambda n: R0 / (1 + 0.5 * n)),
    (
        {"schedule": "polynomial_decay", "initial": R0, "decay_steps": 3, "end_lr": 0.01, "power": 2.0},
        lambda n: 0.01 + (R0 - 0.01) * (1 - min(n, 3) / 3) ** 2,
    ),
    (
        {"schedule": "cosine_annealing", "initial": R0, "T_max": 3, "eta_min": 0.01},
        lambda n: 0.01 + (R0 - 0.01) * (1 + math.cos(math.pi * n / 3)) / 2,
    ),
    ({"schedule": "one_cycle", "max_learning_rate": R0, "total_steps": 12}, one_cycle),
    (
        {"schedule": "cyclic", "base_learning_rate": 0.01, "max_learning_rate": R0, "step_size_up": 3, "step_size_down": 2},
        lambda n: 0.01 + (R0 - 0.01) * triangle(n),
    ),
    (
        {"schedule": "cyclic", "base_learning_rate": 0.01, "max_learning_rate": R0, "step_size_up": 2, "mode": "triangular2"},
        lambda n: 0.01 + (R0 - 0.01) * triangle(n, 2, 2) / 2 ** (n // 4),
    ),
]  # fmt: skip


def schedule(rate: dict[str, Any]) -> Schedule:
    spec = {"optimizer": "adam", "learning_rate": rate, "epochs": 4, "batch_size": 20_000}
    return Schedule(JobSpec.model_validate(spec))


def rates(schedule: Schedule, steps: int, start: int = 0) -> list[float]:
    """The rates of the next steps; an epoch has three."""
    seen = []
    for step in range(start, start + steps):
        seen.append(schedule.rate)
        schedule.end_step()
        if step % 3 == 2:
            schedule.end_epoch(1.0)
    return seen


@pytest.mark.parametrize(
    ("rate", "closed_form"), CASES, ids=lambda case: case["schedule"] if isinstance(case, dict) else ""
)
def test_a_schedule_is_its_closed_form(rate: dict[str, Any], closed_form: Callable[[int], float]) -> None:
    by_step = rates(schedule(rate | {"interval": "step"}), STEPS)
    assert by_step == pytest.approx([closed_form(n) for n in range(STEPS)], rel=1e-9)
    by_epoch = rates(schedule(rate | {"interval": "epoch"}), STEPS)
    assert by_epoch == pytest.approx([closed_form(n // 3) for n in range(STEPS)], rel=1e-9)


@pytest.mark.parametrize(
    ("rate", "closed_form"), CASES, ids=lambda case: case["schedule"] if isinstance(case, dict) else ""
)
def test_a_warmup_rises_to_it_in_a_straight_line(rate: dict[str, Any], closed_form: Callable[[int], float]) -> None:
    warmup = {"warmup_steps": 4, "start_lr": 0.002}
    by_step = rates(schedule(rate | {"interval": "step", "warmup": warmup}), STEPS)
    rising = [0.002 + (closed_form(0) - 0.002) * n / 4 for n in range(4)]
    assert by_step == pytest.approx(rising + [closed_form(n) for n in range(STEPS - 4)], rel=1e-9)
    by_epoch = rates(schedule(rate | {"interval": "epoch", "warmup": warmup}), STEPS)
    target = [closed_form(n // 3) for n in range(STEPS)]
    rising = [0.002 + (target[n] - 0.002) * n / 4 for n in range(4)]
    assert by_epoch == pytest.approx(rising + target[4:], rel=1e-9)


@pytest.mark.parametrize("rate", [case for case, _ in CASES], ids=lambda rate: rate["schedule"])
def test_a_schedule_goes_on_where_it_was(rate: dict[str, Any]) -> None:
    rate |= {"interval": "step", "warmup": {"warmup_steps": 2}}
    whole = rates(schedule(rate), STEPS)
    first = schedule(rate)
    for cut in range(STEPS):
        resumed = schedule(rate)
        resumed.restore(json.loads(json.dumps(first.state())))
        assert rates(resumed, STEPS - cut, cut) == whole[cut:]
        rates(first, 1, cut)


def test_a_plateau_lowers_the_rate() -> None:
    rate = {"schedule": "reduce_on_plateau", "initial": R0, "factor": 0.5, "patience": 1, "min_lr": 0.02}
    wanted = schedule(rate)
    seen = []
    for loss in (1.0, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8):
        seen.append(wanted.rate)
        wanted.end_epoch(loss)
        wanted_again = schedule(rate)
        wanted_again.restore(json.loads(json.dumps(wanted.state())))
        wanted = wanted_again
    # worse twice in a row is one more than its patience
    assert seen == pytest.approx([R0, R0, R0, R0, 0.05, 0.05, 0.05, 0.025, 0.025, 0.02])


def test_a_range_test_goes_up_by_the_same_factor_each_step_from_end_to_end() -> None:
    rate = {"schedule": "range_test", "start": 1e-5, "end": 1.0}
    spec = {"optimizer": "adam", "learning_rate": rate, "epochs": 1, "batch_size": 490, "log_every": 1}  # 103 steps
    job = JobSpec.model_validate(spec)
    whole = rates(Schedule(job), 103)
    assert whole == pytest.approx([1e-5 * 10 ** (5 * n / 102) for n in range(103)], rel=1e-9)
    first = Schedule(job)
    rates(first, 40)
    resumed = Schedule(job)
    resumed.restore(json.loads(json.dumps(first.state())))
    assert rates(resumed, 63, 40) == whole[40:]


def test_every_schedule_is_tested_here() -> None:
    assert {case["schedule"] for case, _ in CASES} | {"reduce_on_plateau", "range_test"} == set(SCHEDULES)
