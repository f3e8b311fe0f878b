import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from core.catalogue import OPTIMIZERS
from core.errors import DeviceUnavailable, Diverged
from core.spec import JobSpec
from core.training import network, trainer
from core.training.datasets import Dataset, Split, scaled
from core.training.fused.layer import Kernel
from core.training.optimizers import new_optimizer
from core.training.progress import Block, EpochEnd, Finished, LossPoint, Started
from core.training.trainer import train
from tests.conftest import part_of


def spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"optimizer": "sgd", "learning_rate": 0.01, "log_every": 1, **fields})


def first_points(job: JobSpec, data: Dataset, kernel: Kernel | None, count: int) -> list[LossPoint]:
    """The first loss points of a run, which is then closed."""
    run = train(job, data, kernel=kernel, block_s=0)
    blocks = (progress for progress in run if isinstance(progress, Block))
    points = list(itertools.islice(itertools.chain.from_iterable(block.points for block in blocks), count))
    run.close()
    return points


def test_the_network_has_the_lessons_parameters() -> None:
    parameters = network.new_network(seed=0).parameters()
    assert sum(parameter.size for parameter in parameters) == 20_350


def test_the_untrained_loss_is_near_that_of_guessing(mnist: Dataset, kernel: Kernel | None) -> None:
    (point,) = first_points(spec(), mnist, kernel, 1)
    assert (point.step, point.epoch, point.batch) == (0, 0, 0)
    assert abs(point.loss - math.log(10)) < 0.7


def lesson_losses(job: JobSpec, data: Dataset, steps: int) -> list[float]:
    """The lesson's loop as it is written there: images one by one into batches, plain operators, Paddle's optimizer."""
    model = network.new_network(job.seed)
    optimizer = new_optimizer(job, model.parameters())
    order = trainer.permutation(job.seed, 0, len(data.train))
    losses = []
    for step in range(steps):
        rows = order[step * job.batch_size : (step + 1) * job.batch_size]
        images = np.stack([scaled(data.train.images[row : row + 1])[0] for row in rows])
        labels = np.array([[data.train.labels[row]] for row in rows], np.int64)
        x = paddle.to_tensor(images)
        x = paddle.nn.functional.max_pool2d(paddle.nn.functional.relu(model.conv1(x)), 2, 2)
        x = paddle.nn.functional.max_pool2d(paddle.nn.functional.relu(model.conv2(x)), 2, 2)
        logits = model.fc(paddle.reshape(x, [x.shape[0], 980]))
        loss = paddle.nn.functional.cross_entropy(logits, paddle.to_tensor(labels))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_losses_are_those_of_the_lessons_loop(optimizer: str, mnist: Dataset, kernel: Kernel | None) -> None:
    job = spec(optimizer=optimizer, learning_rate=0.001, batch_size=50)
    ours = [point.loss for point in first_points(job, mnist, kernel, 8)]
    assert ours == pytest.approx(lesson_losses(job, mnist, 8), rel=2e-4)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "momentum", "momentum": 0.5, "use_nesterov": True},
        {"name": "adagrad", "epsilon": 1e-3, "initial_accumulator_value": 0.1},
        {"name": "rmsprop", "rho": 0.5, "momentum": 0.5, "centered": True},
        {"name": "adam", "beta1": 0.5, "beta2": 0.9, "amsgrad": True},
    ],
)
def test_an_optimizers_own_parameters_reach_paddle(
    optimizer: dict[str, object], mnist: Dataset, kernel: Kernel | None
) -> None:
    job = spec(optimizer=optimizer, learning_rate=0.01, batch_size=20)
    plain = spec(optimizer=optimizer["name"], learning_rate=0.01, batch_size=20)
    changed, usual = first_points(job, mnist, kernel, 5), first_points(plain, mnist, kernel, 5)
    assert changed[0].loss == usual[0].loss
    assert changed[-1].loss != usual[-1].loss


def test_weight_decay_changes_the_losses(mnist: Dataset, kernel: Kernel | None) -> None:
    with_decay = first_points(spec(weight_decay=0.1, batch_size=20), mnist, kernel, 5)
    without = first_points(spec(batch_size=20), mnist, kernel, 5)
    assert with_decay[0].loss == without[0].loss
    assert with_decay[-1].loss != without[-1].loss


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_spec_gives_the_same_bits(optimizer: str, mnist: Dataset, kernel: Kernel | None) -> None:
    job = spec(optimizer=optimizer, batch_size=50)
    once, again = (first_points(job, mnist, kernel, 6) for _ in range(2))
    assert [point.loss for point in once] == [point.loss for point in again]
    assert [p.loss for p in first_points(spec(optimizer=optimizer, batch_size=50, seed=1), mnist, kernel, 6)] != [
        point.loss for point in once
    ]


def test_an_epoch_takes_every_image_once_in_a_new_order() -> None:
    first, second = (trainer.permutation(0, epoch, 1000) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert not np.array_equal(first, second)


def test_a_run_tells_all_of_its_story(mnist: Dataset, kernel: Kernel | None) -> None:
    """Two epochs of five steps: the last batch is a smaller one."""
    job = spec(optimizer="adam", learning_rate=0.001, batch_size=12_345, epochs=2, log_every=2)
    story = list(train(job, part_of(mnist), kernel=kernel))
    assert isinstance(story[0], Started)
    points = [point for progress in story if isinstance(progress, Block) for point in progress.points]
    assert [(point.step, point.epoch, point.batch) for point in points] == [
        (0, 0, 0), (2, 0, 2), (4, 0, 4), (6, 1, 1), (8, 1, 3), (9, 1, 4),
    ]  # fmt: skip
    assert [p.time_s for p in points] == sorted(p.time_s for p in points)
    epochs = [progress for progress in story if isinstance(progress, EpochEnd)]
    assert [(end.epoch, end.learning_rate) for end in epochs] == [(0, 0.001), (1, 0.001)]
    assert epochs[1].valid_loss < epochs[0].valid_loss
    finished = story[-1]
    assert isinstance(finished, Finished)
    assert finished.final_loss == points[-1].loss
    assert finished.valid_accuracy == epochs[-1].valid_accuracy
    model = network.DigitNetwork()
    model.set_state_dict(finished.weights)
    images, labels = mnist.test.images[:500], mnist.test.labels[:500]
    guessed = model(paddle.to_tensor(scaled(images))).numpy().argmax(axis=1)
    assert (guessed == labels).mean() == pytest.approx(finished.test_accuracy)


@pytest.mark.parametrize(("batch_size", "tail"), [(24_999, 2), (49_999, 1)])
def test_a_tiny_last_batch_is_trained_too(batch_size: int, tail: int, mnist: Dataset, kernel: Kernel | None) -> None:
    job = spec(batch_size=batch_size, epochs=1)
    story = list(train(job, part_of(mnist), kernel=kernel))
    points = [point for progress in story if isinstance(progress, Block) for point in progress.points]
    assert len(points) == job.total_steps == 50_000 // batch_size + 1
    assert 50_000 % batch_size == tail


def test_a_rate_that_blows_up_ends_with_its_curve(mnist: Dataset, kernel: Kernel | None) -> None:
    points: list[LossPoint] = []
    with pytest.raises(Diverged) as caught:
        for progress in train(spec(learning_rate=1000.0, batch_size=20, log_every=7), part_of(mnist), kernel=kernel):
            if isinstance(progress, Block):
                points += progress.points
    assert caught.value.code == "diverged"
    assert caught.value.step == points[-1].step
    assert points[-1].loss > 3 * math.log(10)
    assert caught.value.step < 500


def test_on_divergence_continue_goes_on(mnist: Dataset, kernel: Kernel | None) -> None:
    job = spec(learning_rate=1000.0, batch_size=20, on_divergence="continue")
    assert len(first_points(job, part_of(mnist), kernel, 120)) == 120


def test_a_high_loss_at_the_start_is_no_divergence(mnist: Dataset, kernel: Kernel | None) -> None:
    """A few bad steps are usual with a large rate, and many runs recover."""
    points = first_points(spec(learning_rate=1.0, batch_size=20), mnist, kernel, 80)
    assert max(point.loss for point in points) > 3 * math.log(10)
    assert len(points) == 80


def test_a_device_that_is_not_there_is_a_clear_error(mnist: Dataset, kernel: Kernel | None) -> None:
    with pytest.raises(DeviceUnavailable, match="gpu:15"):
        next(train(spec(device="gpu:15"), mnist, kernel=kernel))


@pytest.mark.parametrize("wish", [{"precision": "bf16"}, {"to_static": True}])
def test_what_only_a_gpu_does_is_refused_on_a_cpu(
    wish: dict[str, object], mnist: Dataset, kernel: Kernel | None
) -> None:
    if paddle.is_compiled_with_cuda():
        assert first_points(spec(**wish), mnist, kernel, 2)
        return
    with pytest.raises(DeviceUnavailable, match="need a GPU"):
        next(train(spec(**wish), mnist, kernel=kernel))


def test_auto_takes_the_cpu_where_there_is_no_gpu(mnist: Dataset, kernel: Kernel | None) -> None:
    started = next(train(spec(), mnist, kernel=kernel))
    assert isinstance(started, Started)
    if not paddle.is_compiled_with_cuda():
        assert started.device == "cpu"


def test_pdparams_are_the_same_bytes_every_time() -> None:
    weights = network.weights_of(network.new_network(seed=3))
    assert network.to_pdparams(weights) == network.to_pdparams(weights)


def test_paddle_must_not_be_imported_before_the_machine_is_set_up() -> None:
    code = (
        "from core.training import runtime; runtime.prepare(2); import os; print(os.environ['OMP_NUM_THREADS']);"
        "import paddle\ntry: runtime.prepare(2)\nexcept RuntimeError: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
        env={"PATH": "/usr/bin:/bin"}, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["2", "refused"]


def test_splits_have_a_length() -> None:
    assert len(Split(np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8))) == 3
