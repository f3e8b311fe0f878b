"""The training itself, as a generator of progress. Knows no server: give it a spec and arrays (five lines in the README)."""

import os
from collections.abc import Callable, Generator

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from core.errors import DeviceUnavailable, Diverged
from core.spec import JobSpec
from core.training.datasets import Dataset, Split
from core.training.fused import Kernel
from core.training.network import DigitNetwork, Weights, new_network, weights_of
from core.training.optimizers import new_optimizer
from core.training.progress import Finished, History, Progress, Started

BLOCK_S = 0.2  # how long losses may stay on the device before they are yielded
_EVAL_BATCH = 1000


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
    if spec.wants_gpu and place == "cpu":
        raise DeviceUnavailable("bf16 and to_static need a GPU, and this job came to a CPU")
    kernel = kernel if place == "cpu" else None
    yield Started(
        device=place, kernel=kernel.name if kernel else "paddle", threads=int(os.environ.get("OMP_NUM_THREADS", "1"))
    )
    network = new_network(spec.seed, kernel)
    optimizer = new_optimizer(spec, network.parameters())
    loss_of = _loss_function(network, spec)
    images, labels = _on_device(data.train)
    valid, test = _on_device(data.valid), _on_device(data.test)
    history = History(spec)
    for epoch in range(spec.epochs):
        history.begin_epoch()
        order = paddle.to_tensor(permutation(spec.seed, epoch, len(data.train)))
        for start in range(0, len(data.train), spec.batch_size):
            rows = order[start : start + spec.batch_size]
            loss = loss_of(paddle.gather(images, rows), paddle.gather(labels, rows))
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
