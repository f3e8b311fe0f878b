"""The tables of optimizers and schedules: a spec to Paddle's own class. Adding one is a line here and a class in spec.py."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import paddle
from paddle import Tensor
from paddle.optimizer import Optimizer, lr
from paddle.optimizer.lr import LRScheduler

from core.spec import JobSpec
from core.training.checkpoint import Tensors

_CLASSES: dict[str, Callable[..., Optimizer]] = {
    "sgd": paddle.optimizer.SGD,
    "momentum": paddle.optimizer.Momentum,
    "adagrad": paddle.optimizer.Adagrad,
    "rmsprop": paddle.optimizer.RMSProp,
    "adam": paddle.optimizer.Adam,
}
_SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "step_decay": lr.StepDecay,
    "cosine_annealing": lr.CosineAnnealingDecay,
}
_COUNTER = re.compile(r"_\d+$")  # Paddle numbers its accumulators, by how many this process has made


def new_schedule(spec: JobSpec) -> LRScheduler | None:
    """Paddle's schedule at its start; None for a rate that stays."""
    if isinstance(spec.learning_rate, float):
        return None
    own = spec.learning_rate.model_dump(exclude={"schedule", "initial", "interval"})
    return _SCHEDULES[spec.learning_rate.schedule](learning_rate=spec.learning_rate.initial, **own)


def new_optimizer(spec: JobSpec, parameters: Sequence[Tensor], schedule: LRScheduler | None = None) -> Optimizer:
    """Paddle's optimizer with the spec's rate (or the schedule made of it), weight decay and its own parameters."""
    own = spec.optimizer.model_dump(exclude={"name"})
    return _CLASSES[spec.optimizer.name](
        learning_rate=schedule or spec.learning_rate,
        parameters=parameters,
        weight_decay=spec.weight_decay or None,
        **own,
    )


def state_of(optimizer: Optimizer) -> Tensors:
    """Copies of the optimizer's accumulators, by parameter and accumulator; none before its first step."""
    return {_COUNTER.sub("", name): np.array(value.numpy()) for name, value in _accumulators(optimizer).items()}


def restore(optimizer: Optimizer, state: Tensors, schedule: LRScheduler | None) -> None:
    """Put accumulators back. Paddle makes them at the first step only, so the optimizer must have made one before.

    Raises KeyError when the state is that of another optimizer.
    """
    wanted = _accumulators(optimizer)
    values = {name: paddle.to_tensor(state[_COUNTER.sub("", name)]) for name in wanted}
    optimizer.set_state_dict(values | ({"LR_Scheduler": schedule.state_dict()} if schedule else {}))


def _accumulators(optimizer: Optimizer) -> dict[str, Tensor]:
    return {name: value for name, value in optimizer.state_dict().items() if name != "LR_Scheduler"}
