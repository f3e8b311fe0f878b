"""The tables of optimizers, schedules and clips: a spec to Paddle's own class.

Adding one is a line here and a class in core/catalogue.py.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.optimizer import Optimizer, lr
from paddle.optimizer.lr import LRScheduler

from core.catalogue import RangeTest
from core.spec import JobSpec
from core.training.checkpoint import Tensors

_CLASSES: dict[str, Callable[..., Optimizer]] = {
    "sgd": paddle.optimizer.SGD,
    "momentum": paddle.optimizer.Momentum,
    "adagrad": paddle.optimizer.Adagrad,
    "rmsprop": paddle.optimizer.RMSProp,
    "adam": paddle.optimizer.Adam,
    "adamw": paddle.optimizer.AdamW,
    "adamax": paddle.optimizer.Adamax,
    "adadelta": paddle.optimizer.Adadelta,
    "nadam": paddle.optimizer.NAdam,
    "radam": paddle.optimizer.RAdam,
    "lamb": paddle.optimizer.Lamb,
}
_SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "step_decay": lr.StepDecay,
    "multi_step_decay": lr.MultiStepDecay,
    "exponential_decay": lr.ExponentialDecay,
    "natural_exp_decay": lr.NaturalExpDecay,
    "inverse_time_decay": lr.InverseTimeDecay,
    "polynomial_decay": lr.PolynomialDecay,
    "cosine_annealing": lr.CosineAnnealingDecay,
    "one_cycle": lr.OneCycleLR,
    "cyclic": lr.CyclicLR,
    "reduce_on_plateau": lr.ReduceOnPlateau,
}
_CLIPS: dict[str, Callable[..., Any]] = {
    "norm": paddle.nn.ClipGradByNorm,
    "global_norm": paddle.nn.ClipGradByGlobalNorm,
    "value": paddle.nn.ClipGradByValue,
}
_COUNTER = re.compile(r"_\d+$")  # Paddle numbers its accumulators, by how many this process has made


class Schedule:
    """The learning rate as a training goes on: Paddle's schedule, after a linear warm-up if there is one.

    The warm-up counts steps. A schedule that counts steps begins when the warm-up has ended; one that counts epochs begins
    with the training, and the warm-up rises to what it says.
    """

    def __init__(self, spec: JobSpec) -> None:
        wanted = spec.learning_rate
        self._initial, self._inner, self._warmup = 0.0, None, None
        self._counts_steps, self._step = False, 0
        if isinstance(wanted, float):
            self._initial = wanted
            return
        self._warmup, self._counts_steps = wanted.warmup, wanted.interval == "step"
        if isinstance(wanted, RangeTest):
            self._inner = lr.LambdaDecay(1.0, functools.partial(wanted.rate_at, total_steps=spec.total_steps))
            return
        own = wanted.model_dump(exclude={"schedule", "initial", "interval", "warmup"})
        if wanted.schedule == "constant":
            self._initial = wanted.initial
            return
        initial = {"learning_rate": wanted.initial} if hasattr(wanted, "initial") else {}
        self._inner = _SCHEDULES[wanted.schedule](**initial, **own)

    @property
    def rate(self) -> float:
        """The rate of the next step."""
        target = float(self._inner()) if self._inner else self._initial
        warmup = self._warmup
        if warmup and self._step < warmup.warmup_steps:
            return warmup.start_lr + (target - warmup.start_lr) * self._step / warmup.warmup_steps
        return target

    def end_step(self) -> None:
        self._step += 1
        if self._inner and self._counts_steps and self._step > (self._warmup.warmup_steps if self._warmup else 0):
            self._inner.step()

    def end_epoch(self, valid_loss: float) -> None:
        if isinstance(self._inner, lr.ReduceOnPlateau):
            self._inner.step(valid_loss)
        elif self._inner and not self._counts_steps:
            self._inner.step()

    def state(self) -> dict[str, Any]:
        return {"step": self._step, "inner": self._inner.state_dict() if self._inner else None}

    def restore(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        if self._inner:
            self._inner.set_state_dict(state["inner"])


def new_optimizer(spec: JobSpec, parameters: Sequence[Tensor]) -> Optimizer:
    """Paddle's optimizer with the spec's first rate, weight decay, gradient clip and its own parameters."""
    own = spec.optimizer.model_dump(exclude={"name"})
    if spec.optimizer.name != "lamb":  # it has `lamb_weight_decay`
        own.setdefault("weight_decay", spec.weight_decay or None)
    if spec.grad_clip:
        own["grad_clip"] = _CLIPS[spec.grad_clip.type](**spec.grad_clip.model_dump(exclude={"type"}))
    return _CLASSES[spec.optimizer.name](learning_rate=Schedule(spec).rate, parameters=parameters, **own)


def state_of(optimizer: Optimizer) -> Tensors:
    """Copies of the optimizer's accumulators, by parameter and accumulator; none before its first step."""
    return {_COUNTER.sub("", name): np.array(value.numpy()) for name, value in optimizer.state_dict().items()}


def restore(optimizer: Optimizer, state: Tensors) -> None:
    """Put accumulators back. Paddle makes them at the first step only, so the optimizer must have made one before.

    Raises KeyError when the state is that of another optimizer.
    """
    wanted = optimizer.state_dict()
    optimizer.set_state_dict({name: paddle.to_tensor(state[_COUNTER.sub("", name)]) for name in wanted})
