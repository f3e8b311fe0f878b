"""The training itself, as a generator of progress. Knows no server: give it a spec and arrays (five lines in the README)."""

import math
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from core.errors import DeviceUnavailable, Diverged
from core.spec import TRAIN_IMAGES, JobSpec
from core.training.datasets import Dataset, Split
from core.training.fused import Kernel
from core.training.network import DigitNetwork, Weights, new_network, weights_of
from core.training.optimizers import new_optimizer

BLOCK_S = 0.2  # how long losses may stay on the device before they are yielded
_EVAL_BATCH = 1000
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


Progress = Started | Block | EpochEnd | Finished


def train(
    spec: JobSpec, data: Dataset, *, kernel: Kernel | None = None, block_s: float = BLOCK_S
) -> Generator[Progress, None, None]:
    """Train the lesson's network as `spec` says, yielding Started, then Blocks and EpochEnds, then Finished.

    `kernel` is `fused.load(...)`'s: several times faster on a CPU than Paddle's own operators, which are used without it. The
    same spec gives the same losses to the last bit on one backend. Closing the generator ends the training. Raises
    DeviceUnavailable at once, and Diverged (after the block with the curve up to there) when the run blows up and the spec
    does not say to go on.
    """
    place = select_device(spec.device)
    kernel = kernel if place == "cpu" else None
    yield Started(
        device=place, kernel=kernel.name if kernel else "paddle", threads=int(os.environ.get("OMP_NUM_THREADS", "1"))
    )
    network = new_network(spec.seed, kernel)
    optimizer = new_optimizer(spec, network.parameters())
    images, labels = _on_device(data.train)
    valid, test = _on_device(data.valid), _on_device(data.test)
    history = _History(spec)
    for epoch in range(spec.epochs):
        history.begin_epoch()
        order = paddle.to_tensor(permutation(spec.seed, epoch, len(data.train)))
        for start in range(0, len(data.train), spec.batch_size):
            rows = order[start : start + spec.batch_size]
            loss = F.cross_entropy(network(as_seen(paddle.gather(images, rows))), paddle.gather(labels, rows))
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            history.add(loss)
            if history.is_due(block_s):
                yield from history.flush()
        yield from history.flush()
        valid_loss, valid_accuracy = evaluate(network, *valid)
        yield history.end_epoch(epoch, valid_loss, valid_accuracy)
    _, test_accuracy = evaluate(network, *test)
    yield Finished(
        weights=_finite(weights_of(network), spec),
        final_loss=history.last_loss,
        valid_accuracy=valid_accuracy,
        test_accuracy=test_accuracy,
        images_per_s=history.images_per_s,
        seconds=round(history.seconds, 3),
    )


def warm_up(kernel: Kernel | None) -> None:
    """Train one step on nothing, so that threads and libraries are ready before the first real one."""
    network = new_network(0, kernel)
    optimizer = paddle.optimizer.Adam(parameters=network.parameters())
    images, labels = paddle.zeros([100, 1, 28, 28], "uint8"), paddle.zeros([100, 1], "int64")
    F.cross_entropy(network(as_seen(images)), labels).backward()
    optimizer.step()


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch's images: a fresh shuffle that depends on nothing but its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def evaluate(network: DigitNetwork, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over all images, in large batches."""
    loss, right = 0.0, 0
    with paddle.no_grad():
        for start in range(0, len(labels), _EVAL_BATCH):
            logits = network(as_seen(images[start : start + _EVAL_BATCH]))
            wanted = labels[start : start + _EVAL_BATCH]
            loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
            right += int((logits.argmax(axis=1) == wanted.flatten()).sum())
    return loss / len(labels), right / len(labels)


def select_device(wanted: str) -> str:
    """Make Paddle use a device and return its name, `cpu` or `gpu:N`. `auto` is the first GPU, or the CPU where none is.

    Raises DeviceUnavailable for a GPU this Paddle cannot use.
    """
    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    device = ("gpu:0" if gpus else "cpu") if wanted == "auto" else "gpu:0" if wanted == "gpu" else wanted
    if device != "cpu" and int(device.removeprefix("gpu:")) >= gpus:
        why = f"{gpus} GPUs are here" if paddle.is_compiled_with_cuda() else "this Paddle is built for the CPU only"
        raise DeviceUnavailable(f"device {wanted!r} was asked for, but {why}")
    paddle.device.set_device(device)
    return device


def _on_device(split: Split) -> tuple[Tensor, Tensor]:
    """All images as one tensor, uint8 [N, 1, 28, 28], and labels int64 [N, 1].

    Bytes take a quarter of the memory, and gathering and scaling a batch of them is quicker than gathering floats.
    """
    images, labels = split.images[:, None], split.labels.astype(np.int64).reshape(-1, 1)
    return paddle.to_tensor(np.ascontiguousarray(images)), paddle.to_tensor(labels)


def as_seen(images: Tensor) -> Tensor:
    """Bytes as the network sees them: float32, value / 256, exactly `datasets.scaled`."""
    return images.astype("float32") * (1 / 256)


def _finite(weights: Weights, spec: JobSpec) -> Weights:
    if spec.on_divergence == "stop" and not all(np.isfinite(value).all() for value in weights.values()):
        raise Diverged("the weights are not finite any more", step=spec.total_steps - 1)
    return weights


@dataclass
class _History:
    """The losses of a run. They stay on the device until a block is due: one sync a block, never one a step."""

    spec: JobSpec
    step: int = 0  # the next one
    last_loss: float = math.nan
    seconds: float = 0.0  # of training, without evaluation
    _waiting: list[tuple[int, Tensor, float]] = field(default_factory=list)
    _epoch_losses: list[float] = field(default_factory=list)
    _recent: list[float] = field(default_factory=list)
    _began: float = 0.0
    _seconds_before: float = 0.0
    _flushed_at: float = -math.inf

    @property
    def images_per_s(self) -> float:
        epochs, steps = divmod(self.step, self.spec.steps_per_epoch)
        images = epochs * TRAIN_IMAGES[self.spec.dataset] + steps * self.spec.batch_size
        return round(images / self.seconds, 1) if self.seconds else 0.0

    def begin_epoch(self) -> None:
        self._epoch_losses.clear()
        self._began, self._seconds_before = time.perf_counter(), self.seconds

    def add(self, loss: Tensor) -> None:
        self.seconds = self._seconds_before + time.perf_counter() - self._began
        self._waiting.append((self.step, loss.detach(), self.seconds))
        self.step += 1

    def is_due(self, block_s: float) -> bool:
        """The very first loss is not kept waiting."""
        return time.perf_counter() - self._flushed_at >= block_s

    def flush(self) -> Iterator[Block]:
        """Yield the losses that wait, in one block; then raise Diverged if they have blown up."""
        losses = paddle.stack([loss for _, loss, _ in self._waiting]).tolist() if self._waiting else []
        blown_up_at = self._blown_up(losses)
        points = []
        for (step, _, seconds), loss in zip(self._waiting, losses, strict=True):
            if self.spec.is_logged(step) or step == blown_up_at:
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
                f"the loss blew up at step {blown_up_at}: the learning rate {self.spec.learning_rate} is too large "
                f"for {self.spec.optimizer.name}",
                step=blown_up_at,
            )

    def _blown_up(self, losses: list[float]) -> int | None:
        """The first step at which the run has blown up, if it is to be stopped for that."""
        if self.spec.on_divergence == "continue":
            return None
        for (step, _, _), loss in zip(self._waiting, losses, strict=True):
            self._recent = [*self._recent[1 - _BLOWN_UP_STEPS :], loss]
            if not math.isfinite(loss):
                return step
            if len(self._recent) == _BLOWN_UP_STEPS and sum(self._recent) / _BLOWN_UP_STEPS > _BLOWN_UP_LOSS:
                return step
        return None

    def end_epoch(self, epoch: int, valid_loss: float, valid_accuracy: float) -> EpochEnd:
        seconds = self.seconds - self._seconds_before
        return EpochEnd(
            epoch=epoch,
            train_loss=float(np.mean(self._epoch_losses)),
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            learning_rate=self.spec.learning_rate,
            images_per_s=round(TRAIN_IMAGES[self.spec.dataset] / seconds, 1),
            seconds=round(seconds, 3),
        )
