"""Every optimizer's first steps against a reference written from its paper, in NumPy and float64."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from core.catalogue import OPTIMIZERS
from core.spec import JobSpec
from core.training.optimizers import new_optimizer

Array = npt.NDArray[np.float64]
Update = Callable[[Array, Array, int], Array]  # weights, gradient, step from 1 -> what is added to the weights

LR, STEPS = 0.01, 12
START = np.random.default_rng(5).normal(size=(4, 3))
GRADIENTS = np.random.default_rng(6).normal(size=(STEPS, 4, 3)) * np.array([1e-3, 1.0, 10.0])


def sgd() -> Update:
    return lambda w, g, t: -LR * g


def momentum(mu: float = 0.9, nesterov: bool = False) -> Update:
    """Polyak 1964; Nesterov's form after Sutskever et al. 2013."""
    v = np.zeros_like(START)

    def update(w: Array, g: Array, t: int) -> Array:
        nonlocal v
        v = mu * v + g
        return -LR * (g + mu * v if nesterov else v)

    return update


def adagrad(epsilon: float = 1e-6, start: float = 0.0) -> Update:
    """Duchi, Hazan, Singer 2011."""
    total = np.full_like(START, start)

    def update(w: Array, g: Array, t: int) -> Array:
        nonlocal total
        total = total + g**2
        return -LR * g / (np.sqrt(total) + epsilon)

    return update


def rmsprop(rho: float = 0.95, epsilon: float = 1e-6, mu: float = 0.0, centered: bool = False) -> Update:
    """Hinton's lecture 6e; centered and with momentum after Graves 2013."""
    square, mean, v = (np.zeros_like(START) for _ in range(3))

    def update(w: Array, g: Array, t: int) -> Array:
        nonlocal square, mean, v
        square = rho * square + (1 - rho) * g**2
        mean = rho * mean + (1 - rho) * g if centered else mean
        v = mu * v + LR * g / np.sqrt(square - mean**2 + epsilon)
        return -v

    return update


def moments(beta1: float = 0.9, beta2: float = 0.999) -> Callable[[Array, int], tuple[Array, Array]]:
    """Adam's two running means, corrected for their start at zero."""
    m, v = np.zeros_like(START), np.zeros_like(START)

    def update(g: Array, t: int) -> tuple[Array, Array]:
        nonlocal m, v
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        return m / (1 - beta1**t), v / (1 - beta2**t)

    return update


def adam(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, decay: float = 0.0) -> Update:
    """Kingma, Ba 2015; with decoupled decay Loshchilov, Hutter 2019."""
    of = moments(beta1, beta2)

    def update(w: Array, g: Array, t: int) -> Array:
        m, v = of(g, t)
        return -LR * m / (np.sqrt(v) + epsilon) - LR * decay * w

    return update


def amsgrad() -> Update:
    """Reddi, Kale, Kumar 2018."""
    m, v, most = (np.zeros_like(START) for _ in range(3))

    def update(w: Array, g: Array, t: int) -> Array:
        nonlocal m, v, most
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        most = np.maximum(most, v)
        return -LR * m / (1 - 0.9**t) / (np.sqrt(most / (1 - 0.999**t)) + 1e-8)

    return update


def adamax() -> Update:
    """Kingma, Ba 2015, section 7.1."""
    m, u = np.zeros_like(START), np.zeros_like(START)

    def update(w: Array, g: Array, t: int) -> Array:
        nonlocal m, u
        m, u = 0.9 * m + 0.1 * g, np.maximum(0.999 * u + 1e-8, np.abs(g))
        return -LR / (1 - 0.9**t) * m / u

    return update


def adadelta(rho: float = 0.95, epsilon: float = 1e-6) -> Update:
    """Zeiler 2012; the rate is a factor that the paper does not have."""
    square, moved = np.zeros_like(START), np.zeros_like(START)

    def update(w: Array, g: Array, t: int) -> Array:
        nonlocal square, moved
        square = rho * square + (1 - rho) * g**2
        step = -np.sqrt((moved + epsilon) / (square + epsilon)) * g
        moved = rho * moved + (1 - rho) * step**2
        return LR * step

    return update


def nadam(psi: float = 0.004) -> Update:
    """Dozat 2016."""
    m, v, product = np.zeros_like(START), np.zeros_like(START), 1.0

    def mu(t: int) -> float:
        return float(0.9 * (1 - 0.5 * 0.96 ** (t * psi)))

    def update(w: Array, g: Array, t: int) -> Array:
        nonlocal m, v, product
        product *= mu(t)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        looked_ahead = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        return -LR * looked_ahead / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    return update


def radam() -> Update:
    """Liu et al. 2020."""
    of, longest = moments(), 2 / (1 - 0.999) - 1

    def update(w: Array, g: Array, t: int) -> Array:
        m, v = of(g, t)
        length = longest - 2 * t * 0.999**t / (1 - 0.999**t)
        if length <= 5:
            return -LR * m
        r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return -LR * m * np.sqrt(r) / (np.sqrt(v) + 1e-8)

    return update


def lamb(decay: float = 0.01) -> Update:
    """You et al. 2020."""
    of = moments()

    def update(w: Array, g: Array, t: int) -> Array:
        m, v = of(g, t)
        r = m / (np.sqrt(v) + 1e-6) + decay * w
        return -LR * r * np.linalg.norm(w) / np.linalg.norm(r)

    return update


CASES: list[tuple[dict[str, Any], Callable[[], Update]]] = [
    ({"name": "sgd"}, sgd),
    ({"name": "momentum"}, momentum),
    ({"name": "momentum", "momentum": 0.5, "use_nesterov": True}, lambda: momentum(0.5, True)),
    ({"name": "adagrad"}, adagrad),
    ({"name": "adagrad", "epsilon": 0.1, "initial_accumulator_value": 0.5}, lambda: adagrad(0.1, 0.5)),
    ({"name": "rmsprop"}, rmsprop),
    ({"name": "rmsprop", "rho": 0.8, "epsilon": 0.1}, lambda: rmsprop(0.8, 0.1)),
    ({"name": "rmsprop", "momentum": 0.5, "centered": True}, lambda: rmsprop(mu=0.5, centered=True)),
    ({"name": "adam"}, adam),
    ({"name": "adam", "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}, lambda: adam(0.5, 0.9, 1e-3)),
    ({"name": "adam", "amsgrad": True}, amsgrad),
    ({"name": "adamw"}, lambda: adam(decay=0.01)),
    ({"name": "adamw", "weight_decay": 0.5}, lambda: adam(decay=0.5)),
    ({"name": "adamax"}, adamax),
    ({"name": "adadelta"}, adadelta),
    ({"name": "adadelta", "rho": 0.5, "epsilon": 1e-3}, lambda: adadelta(0.5, 1e-3)),
    ({"name": "nadam"}, nadam),
    ({"name": "nadam", "momentum_decay": 0.1}, lambda: nadam(0.1)),
    ({"name": "radam"}, radam),
    ({"name": "lamb"}, lamb),
    ({"name": "lamb", "lamb_weight_decay": 0.5}, lambda: lamb(0.5)),
]  # fmt: skip


def paddles(fields: dict[str, Any]) -> Iterator[Array]:
    """The weights after each step of Paddle's own optimizer, made as a job's is."""
    weights = paddle.create_parameter([4, 3], "float32")
    weights.set_value(START.astype("float32"))
    spec = JobSpec.model_validate({"learning_rate": LR, **fields})
    optimizer = new_optimizer(spec, [weights])
    for gradient in GRADIENTS:
        (weights * paddle.to_tensor(gradient.astype("float32"))).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        yield weights.numpy().astype("float64")


@pytest.mark.parametrize(
    ("optimizer", "reference"), CASES, ids=lambda case: str(case) if isinstance(case, dict) else ""
)
def test_its_first_steps_are_those_of_its_paper(optimizer: dict[str, Any], reference: Callable[[], Update]) -> None:
    """float32 against float64: within 2e-5 of the distance gone, and a rounding of the weights."""
    update, w = reference(), START
    for step, (gradient, ours) in enumerate(zip(GRADIENTS, paddles({"optimizer": optimizer}), strict=True), 1):
        w = w + update(w, gradient, step)
        assert ours == pytest.approx(w, rel=3e-6, abs=2e-5 * float(np.abs(w - START).max())), step


def test_every_optimizer_has_a_reference() -> None:
    assert {fields["name"] for fields, _ in CASES} == set(OPTIMIZERS)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name not in ("adamw", "lamb")])
def test_weight_decay_is_a_penalty_on_the_gradient(optimizer: str) -> None:
    """Decay 0.1 is the same as adding 0.1 w to each gradient, at the first step."""
    decayed = next(paddles({"optimizer": optimizer, "weight_decay": 0.1}))
    reference = {fields["name"]: make for fields, make in reversed(CASES) if len(fields) == 1}[optimizer]()
    assert decayed == pytest.approx(START + reference(START, GRADIENTS[0] + 0.1 * START, 1), rel=3e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("clip", "clipped"),
    [
        ({"type": "norm", "clip_norm": 0.5}, lambda g: g * min(1, 0.5 / np.linalg.norm(g))),
        ({"type": "global_norm", "clip_norm": 0.5}, lambda g: g * min(1, 0.5 / np.linalg.norm(g))),
        ({"type": "value", "max": 0.2}, lambda g: np.clip(g, -0.2, 0.2)),
        ({"type": "value", "max": 0.2, "min": -0.1}, lambda g: np.clip(g, -0.1, 0.2)),
    ],
)
def test_a_clip_limits_the_gradient(clip: dict[str, Any], clipped: Callable[[Array], Array]) -> None:
    after = next(paddles({"optimizer": "sgd", "grad_clip": clip}))
    assert after == pytest.approx(START - LR * clipped(GRADIENTS[0]), rel=3e-6)


def test_a_global_norm_is_over_all_parameters() -> None:
    one, other = (paddle.create_parameter([2], "float32") for _ in range(2))
    for weights in (one, other):
        weights.set_value(np.zeros(2, "float32"))
    clip = {"type": "global_norm", "clip_norm": 1.0}
    spec = JobSpec.model_validate({"optimizer": "sgd", "learning_rate": 1.0, "grad_clip": clip})
    optimizer = new_optimizer(spec, [one, other])
    (3 * one[0] + 4 * other[1]).backward()
    optimizer.step()
    assert one.numpy() == pytest.approx([-0.6, 0])
    assert other.numpy() == pytest.approx([0, -0.8])
