"""The table of optimizers: a spec to Paddle's own class. Adding one is one line here and one class in core/spec.py."""

from collections.abc import Callable, Sequence

import paddle
from paddle import Tensor
from paddle.optimizer import Optimizer

from core.spec import JobSpec

_CLASSES: dict[str, Callable[..., Optimizer]] = {
    "sgd": paddle.optimizer.SGD,
    "momentum": paddle.optimizer.Momentum,
    "adagrad": paddle.optimizer.Adagrad,
    "rmsprop": paddle.optimizer.RMSProp,
    "adam": paddle.optimizer.Adam,
}


def new_optimizer(spec: JobSpec, parameters: Sequence[Tensor]) -> Optimizer:
    """Paddle's optimizer with the spec's rate, weight decay and its own parameters."""
    own = spec.optimizer.model_dump(exclude={"name"})
    return _CLASSES[spec.optimizer.name](
        learning_rate=spec.learning_rate, parameters=parameters, weight_decay=spec.weight_decay or None, **own
    )
