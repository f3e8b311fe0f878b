"""The training itself, as a generator of progress. Knows no server: give it a spec and arrays (five lines in the README)."""

import hashlib
import os
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from core.errors import DeviceUnavailable, Diverged
from core.spec import JobSpec
from core.training.checkpoint import Checkpoint
from core.training.datasets import Dataset, Split
from core.training.fused.layer import Kernel
from core.training.network import DigitNetwork, Weights, new_network, weights_of
from core.training.optimizers import Schedule, new_optimizer, restore, state_of
from core.training.progress import EpochEnd, Finished, History, Progress, RangeTested, Started

BLOCK_S = 0.2  # how long losses may stay on the device before they are yielded
CHECKPOINT_S = 30.0
_EVAL_BATCH = 1000


def train(
    spec: JobSpec,
    data: Dataset,
    *,
    kernel: Kernel | None = None,
    block_s: float = BLOCK_S,
    checkpoint_s: float = CHECKPOINT_S,
    wants_checkpoint: Callable[[], bool] = lambda: False,
    resume: Checkpoint | None = None,
) -> Generator[Progress, None, None]:
    """Train the lesson's network as `spec` says, yielding Started, then Blocks, EpochEnds and Checkpoints, then Finished.

    `kernel` is what `kernel.load(...)` gave: several times faster on a CPU than Paddle's own operators, which are used without
    it. The same spec gives the same losses to the last bit on one backend, also when it goes on from a checkpoint in `resume`.
    Checkpoints come after each epoch, every `checkpoint_s` seconds, and soon after `wants_checkpoint()` says so. Closing the
    generator ends the training. A range test ends with RangeTested, early when its loss has blown up. Raises DeviceUnavailable
    at once, ValueError for a checkpoint of another training, and Diverged (after the block with the curve up to there) when
    the run blows up and the spec does not say to go on.
    """
    place = select_device(spec.device)
    if spec.wants_gpu and place == "cpu":
        raise DeviceUnavailable("bf16 and to_static need a GPU, and this job came to a CPU")
    kernel = kernel if place == "cpu" else None
    started = Started(
        device=place,
        kernel=kernel.name if kernel else "paddle",
        threads=int(os.environ.get("OMP_NUM_THREADS", "1")),
        resumed_from_step=resume.step if resume else None,
    )
    run = _Run(spec, data, kernel, started.backend)
    if resume:
        run.restore(resume)
    yield started
    history, saved_at = run.history, time.monotonic()
    for epoch in range(history.step // spec.steps_per_epoch, spec.epochs):
        history.begin_epoch()
        order = paddle.to_tensor(permutation(spec.seed, epoch, len(data.train)))
        for start in range(run.batch * spec.batch_size, len(data.train), spec.batch_size):
            run.make_step(order[start : start + spec.batch_size])
            if history.is_over:
                break
            if history.is_due(block_s):
                yield from history.flush()
                if run.batch and (wants_checkpoint() or time.monotonic() - saved_at > checkpoint_s):
                    saved_at = time.monotonic()
                    yield run.checkpoint()
        yield from history.flush()
        if history.is_over:
            break
        yield run.end_epoch(epoch)
        saved_at = time.monotonic()
        yield run.checkpoint()
    yield run.finished(data.test)


class _Run:
    """A training in progress: all that changes from step to step."""

    def __init__(self, spec: JobSpec, data: Dataset, kernel: Kernel | None, backend: dict[str, Any]) -> None:
        self._spec, self._backend = spec, backend
        self.network = new_network(spec.seed, kernel)
        self._schedule = Schedule(spec)
        self._optimizer = new_optimizer(spec, self.network.parameters())
        self._rate: float | None = None  # which the optimizer has
        self._loss_of = _loss_function(self.network, spec)
        self._images, self._labels = _on_device(data.train)
        self._valid = _on_device(data.valid)
        self.history = History(spec)
        self.valid_accuracy = 0.0

    @property
    def batch(self) -> int:
        """The next one within its epoch."""
        return self.history.step % self._spec.steps_per_epoch

    def make_step(self, rows: Tensor) -> None:
        if self._rate != self._schedule.rate:
            self._rate = self._schedule.rate
            self._optimizer.set_lr(self._rate)
        self._learn(paddle.gather(self._images, rows), paddle.gather(self._labels, rows))
        self._schedule.end_step()

    def _learn(self, images: Tensor, labels: Tensor) -> None:
        loss = self._loss_of(images, labels)
        loss.backward()
        self._optimizer.step()
        self._optimizer.clear_grad()
        self.history.add(loss)

    def end_epoch(self, epoch: int) -> EpochEnd:
        valid_loss, self.valid_accuracy = evaluate(self.network, *self._valid)
        assert self._rate is not None
        end = self.history.end_epoch(epoch, valid_loss, self.valid_accuracy, self._rate)
        self._schedule.end_epoch(valid_loss)
        return end

    def finished(self, test: Split) -> Finished | RangeTested:
        history = self.history
        final_loss, speed, seconds = history.last_loss, history.images_per_s, round(history.seconds, 3)
        if self._spec.range_test:
            return RangeTested(final_loss=final_loss, images_per_s=speed, seconds=seconds)
        _, test_accuracy = evaluate(self.network, *_on_device(test))
        return Finished(
            weights=_finite(weights_of(self.network), self._spec),
            final_loss=final_loss,
            valid_accuracy=self.valid_accuracy,
            test_accuracy=test_accuracy,
            images_per_s=speed,
            seconds=seconds,
        )

    def checkpoint(self) -> Checkpoint:
        """The state between two steps, when no loss waits to be yielded."""
        clock, losses = self.history.state()
        parts = {"network": weights_of(self.network), "optimizer": state_of(self._optimizer), "history": losses}
        epoch = self.history.step // self._spec.steps_per_epoch
        return Checkpoint(
            step=self.history.step,
            state={
                "epoch": epoch,
                "batch": self.batch,
                "permutation": self._permutation(epoch),
                "schedule": self._schedule.state(),
                "clock": clock,
                "valid_accuracy": self.valid_accuracy,
                "backend": self._backend,
            },
            tensors={f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what the checkpoint's run was. Raises ValueError when it is another training's."""
        state, spec = checkpoint.state, self._spec
        try:
            if state["permutation"] != self._permutation(state["epoch"]):
                raise ValueError("the order of the images is not the one it was")
            self._learn(self._images[:1], self._labels[:1])  # on which Paddle makes the accumulators
            self.history = History(spec)
            self.network.set_state_dict(checkpoint.part("network"))
            restore(self._optimizer, checkpoint.part("optimizer"))
            self._schedule.restore(state["schedule"])
            self.history.restore(checkpoint.step, state["clock"], checkpoint.part("history"))
            self.valid_accuracy = state["valid_accuracy"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the checkpoint is of another training: {error!r}") from error

    def _permutation(self, epoch: int) -> dict[str, Any]:
        """Which order of images an epoch has, and its digest: a NumPy that shuffles otherwise is noticed."""
        order = permutation(self._spec.seed, epoch, len(self._labels))
        return {"seed": self._spec.seed, "epoch": epoch, "sha256": hashlib.sha256(order.tobytes()).hexdigest()}


def _loss_function(network: DigitNetwork, spec: JobSpec) -> Callable[[Tensor, Tensor], Tensor]:
    """A batch's bytes and labels to its loss, as the spec wants it computed; the loss itself is always float32."""
    forward = paddle.jit.to_static(network.forward) if spec.to_static else network.forward

    def mixed(images: Tensor) -> Tensor:
        with paddle.amp.auto_cast(dtype="bfloat16"):
            return forward(images).astype("float32")

    logits_of = mixed if spec.precision == "bf16" else forward
    return lambda images, labels: F.cross_entropy(logits_of(as_seen(images)), labels)


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

    On a GPU the deterministic algorithms are chosen, so that equal jobs stay equal.

    Raises DeviceUnavailable for a GPU this Paddle cannot use.
    """
    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    device = ("gpu:0" if gpus else "cpu") if wanted == "auto" else "gpu:0" if wanted == "gpu" else wanted
    if device != "cpu" and int(device.removeprefix("gpu:")) >= gpus:
        why = f"{gpus} GPUs are here" if paddle.is_compiled_with_cuda() else "this Paddle is built for the CPU only"
        raise DeviceUnavailable(f"device {wanted!r} was asked for, but {why}")
    paddle.device.set_device(device)
    if device != "cpu":
        paddle.set_flags({"FLAGS_cudnn_deterministic": True})
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
