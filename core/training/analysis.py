"""What loss histories say: a verdict on a run, and which of several runs is better, as far as that can be told.

Pure functions over plain sequences, without NumPy, so that the API may import them. Losses are cross-entropies in nats, one a
logged step, None where one was not finite. docs/analysis.md says why the rules are as they are, and how often they are right.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from statistics import fmean

Losses = Sequence[float | None]

TEST_IMAGES = 10_000

# The limits of the verdict's rules; all but the first are shares of the loss of pure guessing.
_FEWEST_POINTS = 20
_GUESSING = 0.9  # a loss above this is no better than guessing
_FAR = 0.5  # a loss above this has learned little
_MOVED = 0.05  # nearer to its start than this, a loss has not left it
_FALL = 0.02  # from the second to the last quarter: less is standing still
_RISE = 0.035  # of the smoothed loss in the second half: more is not settling
_GAIN = 0.02  # from as many steps again: more is worth having


class Outcome(StrEnum):
    TOO_SLOW = "too_slow"
    GOOD = "good"
    OSCILLATING = "oscillating"
    DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a run, the rule that says so, the numbers it looked at, and one sentence in two languages."""

    outcome: Outcome
    rule: str
    numbers: dict[str, float]
    en: str
    zh: str


def verdict(losses: Losses, *, has_ended: bool, has_diverged: bool = False, classes: int = 10) -> Verdict | None:
    """Judge a run by its losses, in the order of their steps; `has_diverged` when its trainer stopped it for that.

    None when there is too little to say: fewer than 20 losses, or a run that goes on and may become anything but diverged.
    """
    if has_diverged or None in losses[-max(len(losses) // 4, 1) :]:
        return _blown_up(losses)
    finite = [loss for loss in losses if loss is not None]
    if len(finite) < _FEWEST_POINTS:
        return None
    found = _judged(_looked_at(finite, chance=math.log(classes)))
    return found if has_ended or found.outcome is Outcome.DIVERGED else None


def smoothed(losses: Losses, *, span: int) -> list[float | None]:
    """The exponential moving average that weighs about `span` points (alpha = 2 / (span + 1)), without bias to its start.

    As in Adam (Kingma & Ba 2015), the weights so far are divided out. A loss that is not finite gives None, and no weight.
    """
    alpha, total, weight = 2 / (span + 1), 0.0, 0.0
    means: list[float | None] = []
    for loss in losses:
        if loss is None:
            means.append(None)
            continue
        total += alpha * (loss - total)
        weight += alpha * (1 - weight)
        means.append(total / weight)
    return means


def _looked_at(losses: Sequence[float], *, chance: float) -> dict[str, float]:
    """The numbers that the rules look at, in nats. `early` and `level` are the means of the second and the last quarter.

    `rise` is the most that the smoothed loss rises again within the second half. `gain` is the fall to expect from as many
    steps again, if the loss goes on as a power of the step; the middles of the two quarters are 3/8 and 7/8 of the run.
    """
    count, middle = len(losses), len(losses) // 2
    early = max(fmean(losses[count // 4 : middle]), 1e-12)
    level = max(fmean(losses[3 * count // 4 :]), 1e-12)
    later = [mean for mean in smoothed(losses, span=max(10, count // 10)) if mean is not None][middle:]
    exponent = math.log(early / level) / math.log(7 / 3)
    return {
        "points": count,
        "chance": chance,
        "first": losses[0],
        "early": early,
        "level": level,
        "rise": max(mean - least for mean, least in zip(later, accumulate(later, min), strict=True)),
        "gain": level * (1 - 2**-exponent),
    }


def _judged(look: Mapping[str, float]) -> Verdict:
    """The first rule that holds."""
    chance, first, level, rise, gain = (look[name] for name in ("chance", "first", "level", "rise", "gain"))
    has_moved = abs(level - first) > _MOVED * chance or rise > _RISE * chance
    stands = look["early"] - level < _FALL * chance or level > first
    if not has_moved and level > _FAR * chance:
        return _because(
            Outcome.TOO_SLOW, "unmoved", look,
            f"The loss has not left its start ({first:.2f}, in the end {level:.2f}): the learning rate is far too small.",
            f"损失几乎没有离开起点（开始 {first:.2f}，最后 {level:.2f}）：学习率太小。",
        )  # fmt: skip
    if stands and (level > _GUESSING * chance or (level > _FAR * chance and rise < _RISE * chance)):
        return _because(
            Outcome.DIVERGED, "stuck", look,
            f"The loss left its start ({first:.2f}) and then stood at {level:.2f}, where guessing gives {chance:.2f}: "
            "the learning rate is too large and destroyed the network.",
            f"损失离开起点（{first:.2f}）后停在 {level:.2f}（随机猜测为 {chance:.2f}）：学习率过大，网络已被破坏。",
        )  # fmt: skip
    if rise > _RISE * chance:
        return _because(
            Outcome.OSCILLATING, "rising_again", look,
            f"In the second half of the run the smoothed loss rose again by {rise:.2f}, more than the "
            f"{_RISE * chance:.2f} of a run that settles: the learning rate is too large.",
            f"后半程平滑后的损失又回升了 {rise:.2f}，超过稳定训练的上限 {_RISE * chance:.2f}：学习率偏大。",
        )  # fmt: skip
    if gain > _GAIN * chance or level > _FAR * chance:
        return _because(
            Outcome.TOO_SLOW, "still_falling", look,
            f"The loss ended at {level:.2f} and was still falling, by about {gain:.2f} more for as many steps again: "
            "take a larger learning rate, or more epochs.",
            f"损失最后为 {level:.2f} 且仍在下降，再训练同样多步约可再降 {gain:.2f}：请增大学习率或训练更多轮。",
        )  # fmt: skip
    return _because(
        Outcome.GOOD, "settled", look,
        f"The loss came down to {level:.3f}; as many steps again would lower it by about {max(gain, 0):.3f}.",
        f"损失降到 {level:.3f}，再训练同样多步约可再降 {max(gain, 0):.3f}。",
    )  # fmt: skip


def _blown_up(losses: Losses) -> Verdict:
    finite = [loss for loss in losses if loss is not None]
    look: dict[str, float] = {"points": len(losses), "nonfinite": len(losses) - len(finite)}
    if not finite:
        en, zh = "it was never a finite number", "始终不是有限数"
    else:
        look |= {"first": finite[0], "last_finite": finite[-1]}
        en, zh = f"from {finite[0]:.2f} to {finite[-1]:.2f}", f"从 {finite[0]:.2f} 到 {finite[-1]:.2f}"
        if None in losses:
            en, zh = f"{en} and beyond every number", f"{zh}，随后不再是有限数"
    return _because(
        Outcome.DIVERGED, "blown_up", look,
        f"The loss blew up ({en}): the learning rate is too large.",
        f"损失发散（{zh}）：学习率过大。",
    )  # fmt: skip


def _because(outcome: Outcome, rule: str, look: Mapping[str, float], en: str, zh: str) -> Verdict:
    numbers = {name: round(value, 4) for name, value in look.items()}
    return Verdict(outcome=outcome, rule=rule, numbers=numbers, en=en, zh=zh)


# --- comparing runs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What is known of an epoch that ended: training seconds of it alone, accuracy on the validation images."""

    valid_accuracy: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Steps and seconds of training at the end of the first epoch that had the accuracy."""

    steps: int
    seconds: float


def time_to(target_accuracy: float, epochs: Sequence[Epoch], *, steps_per_epoch: int) -> Reached | None:
    """When the validation accuracy was first there; None if it never was.

    It is measured once an epoch, so the end of that epoch is all that is known: nothing is interpolated.
    """
    seconds = 0.0
    for number, epoch in enumerate(epochs, start=1):
        seconds += epoch.seconds
        if epoch.valid_accuracy >= target_accuracy:
            return Reached(steps=number * steps_per_epoch, seconds=round(seconds, 3))
    return None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a number varies over seeds. `n` counts those that have it."""

    n: int
    mean: float
    min: float
    max: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of the values that are there; None when there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(n=len(known), mean=fmean(known), min=min(known), max=max(known))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Whether the best two groups can be told apart, by which rule, and in a sentence in two languages."""

    within_noise: bool
    rule: str
    best: str
    second: str
    numbers: dict[str, float]
    en: str
    zh: str


def noise(accuracies: Mapping[str, Sequence[float]], *, test_images: int = TEST_IMAGES) -> Noise | None:
    """Whether the two groups with the best mean test accuracy lie within noise of each other; None below two groups.

    With two seeds or more in both, they do when their ranges overlap. With one seed in either there is no range: they do
    when they differ by less than two standard errors of a difference of two accuracies over so many test images.
    """
    groups = {label: found for label, values in accuracies.items() if (found := spread(values))}
    if len(groups) < 2:
        return None
    best, second = sorted(groups, key=lambda label: -groups[label].mean)[:2]
    if min(groups[best].n, groups[second].n) >= 2:
        return _by_ranges(best, groups[best], second, groups[second])
    return _by_error(best, groups[best], second, groups[second], test_images)


def _by_ranges(best: str, a: Spread, second: str, b: Spread) -> Noise:
    overlap = a.min <= b.max
    ranges = {"best_min": a.min, "best_max": a.max, "second_min": b.min, "second_max": b.max}
    span_a, span_b = f"{a.min:.2%} - {a.max:.2%}", f"{b.min:.2%} - {b.max:.2%}"
    en = (
        f"their ranges over seeds overlap ({span_a}, {span_b}): which is better cannot be told from these runs."
        if overlap
        else f"their ranges over seeds do not overlap ({span_a}, {span_b})."
    )
    zh = (
        f"各随机种子的范围重叠（{span_a}；{span_b}），无法据此分出优劣。"
        if overlap
        else f"各随机种子的范围不重叠（{span_a}；{span_b}）。"
    )
    return _told(overlap, "ranges_over_seeds", best, a, second, b, ranges, en, zh)


def _by_error(best: str, a: Spread, second: str, b: Spread, test_images: int) -> Noise:
    share = (a.mean + b.mean) / 2
    error = math.sqrt(share * (1 - share) / test_images)
    limit, difference = 2 * math.sqrt(2) * error, a.mean - b.mean
    within = difference <= limit
    numbers = {"difference": difference, "limit": limit, "standard_error": error, "test_images": test_images}
    points = f"{difference * 100:.2f}", f"{limit * 100:.2f}"
    en = (
        f"they differ by {points[0]} points, {'no more' if within else 'more'} than the {points[1]} points that "
        f"{test_images:,} test images can tell apart"
        + (": which is better cannot be told from one seed." if within else "; other seeds may still turn it.")
    )
    zh = (
        f"相差 {points[0]} 个百分点，{'不超过' if within else '超过'} {test_images} 张测试图所能分辨的 {points[1]} 个百分点"
        + ("，仅凭一个种子无法分出优劣。" if within else "；换随机种子仍可能改变次序。")
    )
    return _told(within, "binomial_error", best, a, second, b, numbers, en, zh)


def _told(
    within: bool, rule: str, best: str, a: Spread, second: str, b: Spread, numbers: dict[str, float], en: str, zh: str
) -> Noise:
    numbers = {"best_mean": a.mean, "second_mean": b.mean, "best_n": a.n, "second_n": b.n} | numbers
    return Noise(
        within_noise=within,
        rule=rule,
        best=best,
        second=second,
        numbers={name: round(value, 6) for name, value in numbers.items()},
        en=f"{best} ({a.mean:.2%}) and {second} ({b.mean:.2%}): {en}",
        zh=f"{best}（{a.mean:.2%}）与 {second}（{b.mean:.2%}）：{zh}",
    )
