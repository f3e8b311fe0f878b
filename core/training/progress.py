"""What a training tells as it goes on, and the history of its losses."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from core.errors import Diverged
from core.spec import TRAIN_IMAGES, JobSpec
from core.training.checkpoint import Checkpoint, Tensors
from core.training.network import Weights
from core.training.rate_range import Ramp

_CLASSES = 10
# A run has blown up when a loss is not finite, or when the mean of this many losses in a row is three times what pure
# guessing gives: the network is then confidently wrong. (Paddle caps a single image's loss at 64, so it rarely ends in inf.)
_BLOWN_UP_STEPS = 50
_BLOWN_UP_LOSS = 3 * math.log(_CLASSES)


@dataclass(frozen=True, kw_only=True)
class Started:
    """The training is about to begin, on this device."""

    device: str
    kernel: str
    threads: int
    resumed_from_step: int | None = None

    @property
    def backend(self) -> dict[str, Any]:
        return {"device": self.device, "kernel": self.kernel, "threads": self.threads}


@dataclass(frozen=True, kw_only=True)
class LossPoint:
    """The mean cross-entropy of one batch before its step; `time_s` is seconds of training so far."""

    step: int
    epoch: int
    batch: int
    loss: float
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of the loss history: only the steps that the spec's `log_every` asks for. May hold no point."""

    points: list[LossPoint]
    steps_done: int
    images_per_s: float


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """An epoch, counted from 0, and what the network then gives on the validation images. Seconds and speed: training only."""

    epoch: int
    train_loss: float
    valid_loss: float
    valid_accuracy: float
    learning_rate: float
    images_per_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The trained weights, and how they do on the test images."""

    weights: Weights
    final_loss: float
    valid_accuracy: float
    test_accuracy: float
    images_per_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RangeTested:
    """The end of a range test. Its curve is the result; it leaves no model, for its last rates have ruined the weights."""

    final_loss: float
    images_per_s: float
    seconds: float


Progress = Started | Block | EpochEnd | Checkpoint | Finished | RangeTested


@dataclass
class History:
    """The losses of a run. They stay on the device until a block is due: one sync a block, never one a step."""

    spec: JobSpec
    step: int = 0  # the next one
    last_loss: float = math.nan
    seconds: float = 0.0  # of training, without evaluation
    _waiting: list[tuple[int, Tensor, float]] = field(default_factory=list)
    _epoch_losses: list[float] = field(default_factory=list)
    _recent: list[float] = field(default_factory=list)
    _epoch_began: float = 0.0  # in seconds of training
    _clock_set: float = 0.0  # when a clock would have shown no seconds of training
    _flushed_at: float = -math.inf

    def __post_init__(self) -> None:
        """A range test that may end early is judged by its ramp, at each step, so that it always ends with the same one."""
        stops = self.spec.range_test and self.spec.on_divergence == "stop"
        self._ramp = Ramp(self.spec.decades_per_step) if stops else None

    @property
    def is_over(self) -> bool:
        """Whether this is a range test whose loss has blown up: it has seen what it was to see."""
        return self._ramp is not None and self._ramp.is_over

    @property
    def images_per_s(self) -> float:
        epochs, steps = divmod(self.step, self.spec.steps_per_epoch)
        images = epochs * TRAIN_IMAGES[self.spec.dataset] + steps * self.spec.batch_size
        return round(images / self.seconds, 1) if self.seconds else 0.0

    def begin_epoch(self) -> None:
        """Start the clock; it stands still between the epochs. An epoch that was resumed has its first losses already."""
        if self.step % self.spec.steps_per_epoch == 0:
            self._epoch_losses.clear()
            self._epoch_began = self.seconds
        self._clock_set = time.perf_counter() - self.seconds

    def add(self, loss: Tensor) -> None:
        self.seconds = time.perf_counter() - self._clock_set
        self._waiting.append((self.step, loss.detach(), self.seconds))
        self.step += 1
        if self._ramp:
            self._ramp.add(float(loss))

    def is_due(self, block_s: float) -> bool:
        """The very first loss is not kept waiting."""
        return time.perf_counter() - self._flushed_at >= block_s

    def flush(self) -> Iterator[Block]:
        """Yield the losses that wait, in one block; then raise Diverged if they have blown up."""
        losses = paddle.stack([loss for _, loss, _ in self._waiting]).tolist() if self._waiting else []
        blown_up_at = self._blown_up(losses)
        points = []
        for (step, _, seconds), loss in zip(self._waiting, losses, strict=True):
            if self.spec.is_logged(step) or step == blown_up_at or (self.is_over and step == self.step - 1):
                epoch, batch = divmod(step, self.spec.steps_per_epoch)
                points.append(LossPoint(step=step, epoch=epoch, batch=batch, loss=loss, time_s=round(seconds, 4)))
            if step == blown_up_at:
                break
        self._waiting.clear()
        self._epoch_losses += losses
        self.last_loss = losses[-1] if losses else self.last_loss
        self._flushed_at = time.perf_counter()
        steps_done = self.step if blown_up_at is None else blown_up_at + 1
        yield Block(points=points, steps_done=steps_done, images_per_s=self.images_per_s)
        if blown_up_at is not None:
            raise Diverged(
                f"the loss blew up at step {blown_up_at}: the learning rate is too large for {self.spec.optimizer.name}",
                step=blown_up_at,
            )

    def _blown_up(self, losses: list[float]) -> int | None:
        """The first step at which the run has blown up, if it is to be stopped for that."""
        if self.spec.on_divergence == "continue" or self._ramp:
            return None
        for (step, _, _), loss in zip(self._waiting, losses, strict=True):
            self._recent = [*self._recent[1 - _BLOWN_UP_STEPS :], loss]
            if not math.isfinite(loss):
                return step
            if len(self._recent) == _BLOWN_UP_STEPS and sum(self._recent) / _BLOWN_UP_STEPS > _BLOWN_UP_LOSS:
                return step
        return None

    def end_epoch(self, epoch: int, valid_loss: float, valid_accuracy: float, learning_rate: float) -> EpochEnd:
        seconds = self.seconds - self._epoch_began
        return EpochEnd(
            epoch=epoch,
            train_loss=float(np.mean(self._epoch_losses)),
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            learning_rate=learning_rate,
            images_per_s=round(TRAIN_IMAGES[self.spec.dataset] / seconds, 1),
            seconds=round(seconds, 3),
        )

    def state(self) -> tuple[dict[str, float], Tensors]:
        """What a checkpoint keeps of it, when no loss waits: seconds, and the losses that later ones are judged by."""
        losses = {"epoch_losses": self._epoch_losses, "recent": self._recent, "last_loss": [self.last_loss]}
        losses |= {"ramp": self._ramp.state()} if self._ramp else {}
        clock = {"seconds": self.seconds, "epoch_began": self._epoch_began}
        return clock, {name: np.array(values, "float64") for name, values in losses.items()}

    def restore(self, step: int, clock: dict[str, float], losses: Tensors) -> None:
        """Go on after `step` steps, from what `state` gave."""
        self.step, self.seconds, self._epoch_began = step, clock["seconds"], clock["epoch_began"]
        self._epoch_losses, self._recent = losses["epoch_losses"].tolist(), losses["recent"].tolist()
        self.last_loss = float(losses["last_loss"][0])
        if self._ramp:
            self._ramp.restore(losses["ramp"].tolist())
