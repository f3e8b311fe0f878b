"""Going on from a checkpoint: to the last bit what an undisturbed run gives, for every optimizer and with a schedule."""

import itertools
from typing import Any

import numpy as np
import pytest

from core.catalogue import OPTIMIZERS
from core.spec import JobSpec
from core.training import trainer
from core.training.checkpoint import Checkpoint
from core.training.datasets import Dataset
from core.training.fused.layer import Kernel
from core.training.progress import Block, EpochEnd, Finished, Started
from core.training.trainer import train
from tests.conftest import part_of

STEP_DECAY = {"schedule": "step_decay", "initial": 0.01, "step_size": 2, "gamma": 0.5, "interval": "step"}
COSINE = {"schedule": "cosine_annealing", "initial": 0.01, "T_max": 7, "eta_min": 0.001, "interval": "step"}


def spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, "log_every": 1, "seed": 3, **fields})


def every_step(job: JobSpec, data: Dataset, kernel: Kernel | None, **options: Any) -> list[Any]:
    """A training that yields its losses and a checkpoint after each step."""
    return train(job, data, kernel=kernel, block_s=0, wants_checkpoint=lambda: True, **options)  # type: ignore[return-value]


def until(
    job: JobSpec, data: Dataset, kernel: Kernel | None, step: int, **options: Any
) -> tuple[list[float], Checkpoint]:
    """The losses of a run, and its checkpoint after `step` steps."""
    losses: list[float] = []
    for progress in every_step(job, data, kernel, **options):
        if isinstance(progress, Block):
            losses += [point.loss for point in progress.points]
        if isinstance(progress, Checkpoint) and progress.step == step:
            return losses, progress
    raise AssertionError("it ended before")


def through_bytes(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint.from_bytes(checkpoint.to_bytes())


CASES = [
    *({"optimizer": name} for name in OPTIMIZERS),
    {"optimizer": {"name": "momentum", "use_nesterov": True}},
    {"optimizer": {"name": "rmsprop", "momentum": 0.5, "centered": True}},
    {"optimizer": {"name": "adam", "amsgrad": True}},
    {"weight_decay": 0.01},
    {"learning_rate": STEP_DECAY},
    {"learning_rate": COSINE, "optimizer": "momentum"},
]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_a_resumed_run_is_the_undisturbed_one(fields: dict[str, Any], mnist: Dataset, kernel: Kernel | None) -> None:
    job = spec(**fields, batch_size=30)
    losses, end = until(job, mnist, kernel, 12)
    before, middle = until(job, mnist, kernel, 5)
    after, resumed_end = until(job, mnist, kernel, 12, resume=through_bytes(middle))
    assert before + after == losses
    for name in end.tensors:
        assert np.array_equal(end.tensors[name], resumed_end.tensors[name]), name
    assert end.state["schedule"] == resumed_end.state["schedule"]


def test_over_the_ends_of_epochs_to_the_model(mnist: Dataset, kernel: Kernel | None) -> None:
    """Two epochs of three steps, with a rate that falls after each, resumed at every step there is."""
    rate = {"schedule": "step_decay", "initial": 0.01, "step_size": 1, "gamma": 0.1}
    job, data = spec(learning_rate=rate, batch_size=20_000, epochs=2), part_of(mnist)
    whole = list(every_step(job, data, kernel))
    checkpoints = [progress for progress in whole if isinstance(progress, Checkpoint)]
    assert [checkpoint.step for checkpoint in checkpoints] == [1, 2, 3, 4, 5, 6]
    assert [end.learning_rate for end in whole if isinstance(end, EpochEnd)] == pytest.approx([0.01, 0.001])
    for checkpoint in checkpoints[1:]:
        rest = list(every_step(job, data, kernel, resume=through_bytes(checkpoint)))
        assert isinstance(rest[0], Started)
        assert rest[0].resumed_from_step == checkpoint.step
        assert told(rest) == told(whole)[-len(told(rest)) :]
        assert sum(len(p.points) for p in rest if isinstance(p, Block)) == 6 - checkpoint.step


def told(story: list[Any]) -> list[Any]:
    """What a story says but for its clock."""
    facts: list[Any] = []
    for progress in story:
        match progress:
            case Block():
                facts += [(point.step, point.epoch, point.batch, point.loss) for point in progress.points]
            case EpochEnd():
                facts.append(
                    (progress.train_loss, progress.valid_loss, progress.valid_accuracy, progress.learning_rate)
                )
            case Finished():
                weights = {name: value.tobytes() for name, value in progress.weights.items()}
                facts.append((weights, progress.final_loss, progress.valid_accuracy, progress.test_accuracy))
    return facts


def test_a_finished_run_goes_on_when_it_is_extended(mnist: Dataset, kernel: Kernel | None) -> None:
    one, data = spec(batch_size=25_000, epochs=1), part_of(mnist)
    _, end = until(one, data, kernel, 2)
    longer = list(every_step(one.extended(1), data, kernel, resume=through_bytes(end)))
    assert told(longer) == told(list(every_step(spec(batch_size=25_000, epochs=2), data, kernel)))[-len(told(longer)) :]


def test_checkpoints_come_by_the_clock_too(mnist: Dataset, kernel: Kernel | None) -> None:
    run = train(spec(batch_size=20), mnist, kernel=kernel, block_s=0.01, checkpoint_s=0.1)
    saved = list(itertools.islice((p for p in run if isinstance(p, Checkpoint)), 2))
    run.close()
    assert 0 < saved[0].step < saved[1].step < 2500


def test_a_checkpoint_of_another_training_is_refused(mnist: Dataset, kernel: Kernel | None) -> None:
    _, checkpoint = until(spec(optimizer="sgd", batch_size=30), mnist, kernel, 2)
    with pytest.raises(ValueError, match="another training"):
        next(train(spec(batch_size=30), mnist, kernel=kernel, resume=checkpoint))
    other_order = spec(optimizer="sgd", batch_size=30, seed=4)
    with pytest.raises(ValueError, match="order"):
        next(train(other_order, mnist, kernel=kernel, resume=checkpoint))


def test_what_is_no_checkpoint_is_refused() -> None:
    whole = Checkpoint(step=1, state={}, tensors={"network.w": np.zeros(3, np.float32)}).to_bytes()
    assert Checkpoint.from_bytes(whole).tensors["network.w"].shape == (3,)
    newer = whole.replace(b'\\"format\\": 1', b'\\"format\\": 2')
    assert newer != whole
    for content in (b"", b"x" * 100, whole[:-1], whole[:20], newer):
        with pytest.raises(ValueError):
            Checkpoint.from_bytes(content)


def test_the_order_of_images_is_pinned() -> None:
    """A run from an older version could not go on if this changed."""
    assert trainer.permutation(0, 0, 10).tolist() == np.random.default_rng([0, 0]).permutation(10).tolist()
