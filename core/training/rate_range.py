"""The learning-rate range test: when its loss has blown up, and which rate its curve suggests. Standard library and NumPy only.

Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks" (2015), section 3.3: raise the rate during one short
run, and see where the loss falls and where it blows up. The ramp is exponential, so everything here counts in decades of the
rate: the losses are smoothed over a quarter of one, whatever the number of steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SMOOTHED_OVER = 0.25  # decades of the rate: the time constant of the exponential mean
_LEAST_STEPS = 5  # of smoothing, however steep the ramp
_SETTLED = 1 - 1 / math.e  # the weight of the mean after one time constant
BLOWN_UP = 4.0  # times the least smoothed loss so far
LEAST_FALL = 0.1  # of the loss it began with: a smaller fall may be noise
BELOW_LEAST = 10.0  # the suggested rate is so many times below that of the least smoothed loss


class Ramp:
    """The losses of a rising rate, in order: their exponential mean, debiased as Adam's, and whether they have blown up.

    That is so when a loss is not finite, or when the mean is more than four times the least it was. The first losses, before
    the mean has settled, are not judged.
    """

    def __init__(self, decades_per_step: float) -> None:
        self._fading = min(decades_per_step / SMOOTHED_OVER, 1 / _LEAST_STEPS)
        self._sum, self._weight, self._least = 0.0, 0.0, math.inf
        self.is_over = False

    @property
    def is_settled(self) -> bool:
        return self._weight >= _SETTLED

    def add(self, loss: float, steps: int = 1) -> float:
        """Add the loss of the step that lies so many behind the one before. Returns the smoothed loss."""
        if not math.isfinite(loss):
            self.is_over = True
            return math.nan
        kept = math.exp(-steps * self._fading)
        self._sum = kept * self._sum + (1 - kept) * loss
        self._weight = kept * self._weight + (1 - kept)
        smoothed = self._sum / self._weight
        if self.is_settled:
            self._least = min(self._least, smoothed)
            self.is_over |= smoothed > BLOWN_UP * self._least
        return smoothed

    def state(self) -> list[float]:
        """What `restore` needs to go on from here; all of it is float64."""
        return [self._sum, self._weight, self._least]

    def restore(self, state: Sequence[float]) -> None:
        self._sum, self._weight, self._least = state


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What the curve of a range test says. Rates that were not found are None.

    `outcome`: `suggested`; or, without a suggestion, `unfinished`, `never_fell`, `blew_up` (before the loss had fallen),
    `still_falling` (at the largest rate) or `below_range` (the rate would be smaller than the smallest).
    """

    smoothed: list[float | None]
    outcome: str
    suggested_rate: float | None = None
    steepest_rate: float | None = None
    least_rate: float | None = None
    blown_up_rate: float | None = None
    fell_from: float | None = None
    fell_to: float | None = None

    @property
    def sentence(self) -> dict[str, str]:
        """How the rate was found, or why there is none, in English and Chinese."""
        facts = {name: f"{value:.2g}" for name, value in vars(self).items() if isinstance(value, float)}
        return {language: text.format_map(facts) for language, text in _SENTENCES[self.outcome].items()}


_SENTENCES = {
    "suggested": {
        "en": "The smoothed loss fell from {fell_from} to {fell_to}, fastest at the rate {steepest_rate} and lowest at "
        "{least_rate}; suggested is a tenth of the latter, {suggested_rate}.",
        "zh": "平滑后的损失从 {fell_from} 降到 {fell_to}：学习率为 {steepest_rate} 时下降最快，为 {least_rate} 时最低；"
        "建议取后者的十分之一，即 {suggested_rate}。",
    },
    "still_falling": {
        "en": "The smoothed loss fell from {fell_from} to {fell_to} and was still falling at the largest rate: raise end.",
        "zh": "平滑后的损失从 {fell_from} 降到 {fell_to}，到最大学习率时仍在下降：请增大 end。",
    },
    "never_fell": {
        "en": "The smoothed loss never fell by a tenth: no rate of this range trains the network; try a larger end.",
        "zh": "平滑后的损失下降始终不足十分之一：此范围内没有能训练网络的学习率，请增大 end。",
    },
    "blew_up": {
        "en": "The loss blew up before it had fallen: the rates of this range are too large; try a smaller start.",
        "zh": "损失尚未下降就已发散：此范围的学习率过大，请减小 start。",
    },
    "below_range": {
        "en": "The smoothed loss fell from {fell_from} to {fell_to} and was lowest at the rate {least_rate}; a tenth of that "
        "lies below the range: try a smaller start.",
        "zh": "平滑后的损失从 {fell_from} 降到 {fell_to}，学习率为 {least_rate} 时最低，"
        "其十分之一已低于测试范围：请减小 start。",
    },
    "unfinished": {
        "en": "The test has not come to its end, so it says nothing yet.",
        "zh": "测试尚未完成，还不能给出结论。",
    },
}


def analyse(
    steps: Sequence[int],
    rates: Sequence[float],
    losses: Sequence[float | None],
    *,
    decades_per_step: float,
    is_whole: bool,
    blew_up: bool = False,
) -> Analysis:
    """Judge a curve: the steps that were logged, their rates, and losses (None: not finite). `is_whole`: the run has succeeded.

    `blew_up`: the trainer ended it for that. It looks at every step, so the logged ones alone need not show it.

    The rule: a tenth of the rate at which the smoothed loss was least before it blew up.
    """
    smoothed, settled, over = _follow(steps, losses, decades_per_step)
    if over is None and blew_up and smoothed:
        over = len(smoothed) - 1
    found = Analysis(
        smoothed=[loss if math.isfinite(loss) else None for loss in smoothed],
        outcome="unfinished",
        blown_up_rate=None if over is None else rates[over],
    )
    if not is_whole:
        return found
    end = len(smoothed) if over is None else over
    judged, decades = np.array(smoothed[settled:end]), np.log10(rates[settled:end])
    if len(judged) < 2 or judged.min() > (1 - LEAST_FALL) * judged[0]:
        return replace(found, outcome="never_fell" if over is None else "blew_up")
    least = int(judged.argmin())
    steepest = int(np.gradient(judged, decades)[: least + 1].argmin())
    found = replace(
        found,
        steepest_rate=rates[settled + steepest],
        least_rate=rates[settled + least],
        fell_from=float(judged[0]),
        fell_to=float(judged[least]),
    )
    if over is None and decades[-1] - decades[least] < SMOOTHED_OVER:
        return replace(found, outcome="still_falling")
    suggested = rates[settled + least] / BELOW_LEAST
    if suggested < rates[0]:
        return replace(found, outcome="below_range")
    return replace(found, outcome="suggested", suggested_rate=suggested)


def _follow(
    steps: Sequence[int], losses: Sequence[float | None], decades_per_step: float
) -> tuple[list[float], int, int | None]:
    """The smoothed losses, the index from which on they are judged, and that at which they had blown up, if they did."""
    ramp = Ramp(decades_per_step)
    smoothed: list[float] = []
    settled = over = None
    for index, (step, loss) in enumerate(zip(steps, losses, strict=True)):
        gap = step - (steps[index - 1] if index else -1)
        smoothed.append(ramp.add(math.nan if loss is None else loss, gap))
        settled = index if settled is None and ramp.is_settled else settled
        over = index if over is None and ramp.is_over else over
    return smoothed, len(smoothed) if settled is None else settled, over
