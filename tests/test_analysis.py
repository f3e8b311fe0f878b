"""Verdicts on made curves and on recorded ones; smoothing, time to a target, spread over seeds, and noise."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from bench.verdicts import EPOCHS, HELD_OUT, SET_ON, agreement, recorded
from core.training.analysis import Epoch, Outcome, Reached, Verdict, noise, smoothed, spread, time_to, verdict

CHANCE = math.log(10)
START = 2.68


def curve(shape: Callable[[float], float], *, points: int = 100, noise: float = 0.05, seed: int = 0) -> list[float]:
    """Losses along `shape`, a function of the share of the run, with noise as batches have it."""
    random = np.random.default_rng(seed)
    return [START, *(shape(n / points) + random.normal(0, noise) for n in range(1, points))]


MADE: dict[str, tuple[Callable[[float], float], Outcome, str]] = {
    "a power law that has come down": (lambda t: 0.08 * t**-0.5, Outcome.GOOD, "settled"),
    "flat and low": (lambda t: 0.3, Outcome.GOOD, "settled"),
    "still falling at its end": (lambda t: 0.6 * t**-0.7, Outcome.TOO_SLOW, "still_falling"),
    "a straight line that has got half way": (lambda t: START - 1.3 * t, Outcome.TOO_SLOW, "still_falling"),
    "passing ln 10 on its way down": (lambda t: START - 0.5 * t, Outcome.TOO_SLOW, "still_falling"),
    "hardly moving": (lambda t: START - 0.02 * t, Outcome.TOO_SLOW, "unmoved"),
    "killed, at guessing": (lambda t: CHANCE, Outcome.DIVERGED, "stuck"),
    "killed half way": (lambda t: 0.4 if t < 0.4 else CHANCE, Outcome.DIVERGED, "stuck"),
    "above guessing, with jumps": (lambda t: 2.6 + 0.4 * math.sin(60 * t), Outcome.DIVERGED, "stuck"),
    "worse than at its start, though falling": (lambda t: 60 - 20 * t, Outcome.DIVERGED, "stuck"),
    "stuck half learned": (lambda t: 1.4, Outcome.DIVERGED, "stuck"),
    "swinging": (lambda t: 0.4 + 0.3 * math.sin(30 * t), Outcome.OSCILLATING, "rising_again"),
    "falling, then rising": (lambda t: 0.2 if t < 0.7 else 0.2 + 2 * (t - 0.7), Outcome.OSCILLATING, "rising_again"),
}


@pytest.mark.parametrize("points", [40, 100, 2_000])
@pytest.mark.parametrize("name", MADE)
def test_a_made_curve_gets_its_verdict_however_many_points_it_has(name: str, points: int) -> None:
    shape, outcome, rule = MADE[name]
    for seed in range(5):
        found = verdict(curve(shape, points=points, seed=seed), has_ended=True)
        assert found is not None
        assert (found.outcome, found.rule) == (outcome, rule), found


def test_noise_of_small_batches_is_no_oscillation() -> None:
    losses = curve(lambda t: 0.1 * t**-0.3, points=5_000, noise=0.25)
    found = verdict(losses, has_ended=True)
    assert found is not None
    assert found.outcome is Outcome.GOOD


def test_a_loss_that_is_not_finite_has_diverged() -> None:
    good = curve(lambda t: 0.1)
    for losses in ([*good[:30], None], [None], [None] * 50, [*good[:50], *[None] * 50]):
        found = verdict(losses, has_ended=False)
        assert found is not None
        assert (found.outcome, found.rule) == (Outcome.DIVERGED, "blown_up")
        assert all(map(math.isfinite, found.numbers.values()))
    stopped = verdict([START, 5.0, 60.1], has_ended=True, has_diverged=True)
    assert stopped is not None
    assert stopped.numbers == {"points": 3, "nonfinite": 0, "first": START, "last_finite": 60.1}
    assert "2.68 to 60.10" in stopped.en
    assert "2.68 到 60.10" in stopped.zh
    past = verdict([good[0], None, *good[1:]], has_ended=True)  # `on_divergence: continue`, and it recovered
    assert past is not None
    assert past.outcome is Outcome.GOOD


def test_a_run_that_goes_on_is_judged_only_when_it_is_lost() -> None:
    for shape, outcome, _ in MADE.values():
        found = verdict(curve(shape), has_ended=False)
        assert (found and found.outcome) == (Outcome.DIVERGED if outcome is Outcome.DIVERGED else None)


def test_too_few_points_get_no_verdict() -> None:
    assert verdict([], has_ended=True) is None
    assert verdict([START] * 19, has_ended=True) is None
    assert verdict([START] * 20, has_ended=True) is not None


def test_extreme_losses_break_nothing() -> None:
    for losses in ([0.0] * 50, [1e300] * 50, [START] + [0.0] * 49, [1e-300] * 50, [0.0] * 25 + [1e30] * 25):
        found = verdict(losses, has_ended=True)
        assert found is not None
        json.dumps(found.numbers, allow_nan=False)


def test_guessing_is_measured_by_the_number_of_classes() -> None:
    losses = [1.5] + [math.log(2)] * 50
    two, ten = verdict(losses, has_ended=True, classes=2), verdict(losses, has_ended=True)
    assert two is not None
    assert ten is not None
    assert (two.outcome, ten.outcome) == (Outcome.DIVERGED, Outcome.GOOD)


def every_verdict() -> list[Verdict]:
    made = [verdict(curve(shape), has_ended=True) for shape, _, _ in MADE.values()]
    return [found for found in [*made, verdict([START, None], has_ended=True)] if found]


def test_every_verdict_says_why_in_two_languages_with_the_numbers_it_used() -> None:
    verdicts = every_verdict()
    assert {found.rule for found in verdicts} == {
        "unmoved", "stuck", "rising_again", "still_falling", "settled", "blown_up",
    }  # fmt: skip
    for found in verdicts:
        assert found.en.endswith(".")
        assert found.en.isascii()
        assert found.zh.endswith("。")
        assert any("一" <= letter <= "鿿" for letter in found.zh)
        level = found.numbers[
            "first" if found.rule == "blown_up" else "rise" if found.rule == "rising_again" else "level"
        ]
        told = f"{level:.3f}" if found.rule == "settled" else f"{level:.2f}"
        assert told in found.en
        assert told in found.zh


@pytest.mark.parametrize(("seeds", "least"), [(SET_ON, 0.9), (HELD_OUT, 0.9)], ids=["set on", "held out"])
@pytest.mark.parametrize("epochs", range(1, EPOCHS + 1))
def test_the_recorded_curves_are_judged_as_in_hindsight(epochs: int, seeds: tuple[int, ...], least: float) -> None:
    """Real curves (bench/verdicts.py); those held out were not looked at when the limits were chosen."""
    counts = agreement(recorded(epochs), seeds)
    assert counts.total() == 25 * len(seeds)
    assert sum(count for (wanted, found), count in counts.items() if wanted == found) >= least * counts.total()
    assert not counts[Outcome.GOOD, Outcome.DIVERGED] + counts[Outcome.TOO_SLOW, Outcome.DIVERGED]
    assert not counts[Outcome.DIVERGED, Outcome.GOOD] + counts[Outcome.TOO_SLOW, Outcome.GOOD]


def test_smoothing_has_no_bias_to_its_start() -> None:
    assert smoothed([3.0] * 5, span=10) == pytest.approx([3.0] * 5)
    assert smoothed([], span=10) == []
    alpha = 2 / 11
    weights = np.array([(1 - alpha) ** 2, 1 - alpha, 1])
    expected = float(weights @ [1.0, 5.0, 2.0] / weights.sum())
    assert smoothed([1.0, 5.0, 2.0], span=10)[2] == pytest.approx(expected)
    assert smoothed([1.0, 7.0], span=1) == pytest.approx([1.0, 7.0])


def test_smoothing_leaves_a_gap_where_a_loss_is_not_finite() -> None:
    assert smoothed([None, 1.0, None, 1.0], span=10) == [None, pytest.approx(1.0), None, pytest.approx(1.0)]


def test_the_time_to_a_target_is_the_end_of_the_first_epoch_that_has_it() -> None:
    epochs = [Epoch(valid_accuracy=accuracy, seconds=2.5) for accuracy in (0.9, 0.97, 0.96, 0.98)]
    assert time_to(0.97, epochs, steps_per_epoch=500) == Reached(steps=1000, seconds=5.0)
    assert time_to(0.971, epochs, steps_per_epoch=500) == Reached(steps=2000, seconds=10.0)
    assert time_to(0.99, epochs, steps_per_epoch=500) is None
    assert time_to(0.5, [], steps_per_epoch=500) is None


def test_a_spread_is_of_those_that_have_the_number() -> None:
    found = spread([0.25, None, 0.75])
    assert found is not None
    assert (found.n, found.mean, found.min, found.max) == (2, 0.5, 0.25, 0.75)
    assert spread([None]) is None


def test_ranges_that_overlap_are_noise() -> None:
    near = noise({"a": [0.980, 0.986], "b": [0.984, 0.988], "c": [0.9, 0.91], "d": []})
    assert near is not None
    assert (near.within_noise, near.rule, near.best, near.second) == (True, "ranges_over_seeds", "b", "a")
    assert "98.40% - 98.80%" in near.en
    assert "重叠" in near.zh
    apart = noise({"a": [0.980, 0.9835], "b": [0.984, 0.988]})
    assert apart is not None
    assert (apart.within_noise, apart.numbers["second_max"]) == (False, 0.9835)
    assert "do not overlap" in apart.en
    assert "不重叠" in apart.zh


def test_one_seed_is_measured_by_the_error_of_the_test_images() -> None:
    """At 98 %, one accuracy over 10,000 images has a standard error of 0.14 points; two of a difference are 0.396."""
    for seeds in ([0.9820], [0.9819, 0.9821]):
        near = noise({"a": [0.9785], "b": seeds})
        assert near is not None
        assert (near.within_noise, near.rule) == (True, "binomial_error")
        assert near.numbers["limit"] == pytest.approx(2 * math.sqrt(2 * 0.98025 * 0.01975 / 10_000), abs=1e-6)
        assert "0.35 points" in near.en
        assert "10,000 test images" in near.en
        assert "0.35 个百分点" in near.zh
    apart = noise({"a": [0.975], "b": [0.982]})
    assert apart is not None
    assert not apart.within_noise
    equal = noise({"a": [1.0], "b": [1.0]})
    assert equal is not None
    assert equal.within_noise


def test_one_group_has_no_noise_to_speak_of() -> None:
    assert noise({"a": [0.98, 0.99], "b": []}) is None
    assert noise({}) is None
