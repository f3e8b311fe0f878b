"""What a client may ask for: the job's spec, and the optimizers' own parameters. Pydantic only; imports no Paddle.

Parameter names and defaults are Paddle's own (`paddle.optimizer`, 3.3), so what the lesson says can be typed as it is.
"""

import difflib
import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from core.errors import FieldProblem, InvalidRequest

DEVICE_PATTERN = r"^(auto|cpu|gpu(:([0-9]|1[0-5]))?)$"
MAX_POINTS = 200_000  # loss points one job may store
TRAIN_IMAGES = {"mnist": 50_000}  # data set -> images in its training split


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Epsilon = Annotated[float, Field(ge=1e-12, le=1)]


class Sgd(_Strict):
    """The plain mini-batch gradient."""

    name: Literal["sgd"] = "sgd"


class Momentum(_Strict):
    """An inertia term: past directions, weighted with the present gradient."""

    name: Literal["momentum"] = "momentum"
    momentum: Fraction = 0.9
    use_nesterov: bool = False


class Adagrad(_Strict):
    """A rate of its own for each parameter, from the sum of all squared gradients; it only falls."""

    name: Literal["adagrad"] = "adagrad"
    epsilon: Epsilon = 1e-6
    initial_accumulator_value: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class RmsProp(_Strict):
    """AdaGrad with a running mean instead of the sum, so that the rate does not collapse."""

    name: Literal["rmsprop"] = "rmsprop"
    rho: Fraction = 0.95
    epsilon: Epsilon = 1e-6
    momentum: Fraction = 0.0
    centered: bool = False


class Adam(_Strict):
    """Momentum and an adaptive rate together."""

    name: Literal["adam"] = "adam"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Epsilon = 1e-8
    amsgrad: bool = False


OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam")


def nearest(word: str, allowed: tuple[str, ...]) -> str | None:
    """The allowed word somebody probably meant."""
    return next(iter(difflib.get_close_matches(word.lower(), allowed, n=1, cutoff=0.5)), None)


def _named(value: object) -> object:
    """Turn `"adam"` into `{"name": "adam"}`, take names in any case, and refuse unknown ones with a hint."""
    if isinstance(value, BaseModel):
        return value
    fields: dict[str, Any] = dict(value) if isinstance(value, dict) else {"name": value}
    name = fields.get("name")
    if not isinstance(name, str):
        raise PydanticCustomError(
            "optimizer", "an optimizer is a name or an object with a name", {"allowed": OPTIMIZERS}
        )
    fields["name"] = name.lower()
    if fields["name"] not in OPTIMIZERS:
        shown = f" '{name}'" if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) else ""
        hint = nearest(name[:40], OPTIMIZERS)
        raise PydanticCustomError(
            "optimizer", f"unknown optimizer{shown}", {"allowed": OPTIMIZERS, "did_you_mean": hint}
        )
    return fields


Optimizer = Annotated[
    Sgd | Momentum | Adagrad | RmsProp | Adam,
    Field(discriminator="name"),
    BeforeValidator(_named, json_schema_input_type=str | Sgd | Momentum | Adagrad | RmsProp | Adam),
]


Rate = Annotated[float, Field(ge=1e-12, le=1e6)]


class _Schedule(_Strict):
    initial: Rate = Field(description="The rate it starts from.")
    interval: Literal["epoch", "step"] = Field("epoch", description="What the schedule counts.")


class StepDecay(_Schedule):
    """`initial`, multiplied by `gamma` after every `step_size` intervals."""

    schedule: Literal["step_decay"]
    step_size: int = Field(ge=1, le=10**9)
    gamma: float = Field(0.1, ge=0, le=1)


class CosineAnnealing(_Schedule):
    """Half a cosine, from `initial` down to `eta_min` within `T_max` intervals."""

    schedule: Literal["cosine_annealing"]
    T_max: int = Field(ge=1, le=10**9)
    eta_min: float = Field(0.0, ge=0, le=1e6)


SCHEDULES = ("step_decay", "cosine_annealing")


def _scheduled(value: object) -> object:
    """Refuse an object that is not a known schedule, with a hint."""
    name = value.get("schedule") if isinstance(value, dict) else None
    if isinstance(value, dict) and (not isinstance(name, str) or name not in SCHEDULES):
        hint = nearest(name[:40], SCHEDULES) if isinstance(name, str) else None
        raise PydanticCustomError(
            "schedule",
            "a schedule is an object whose `schedule` names it",
            {"allowed": SCHEDULES, "did_you_mean": hint},
        )
    return value


def _kind_of_rate(value: object) -> str:
    """The tag of a learning rate: that of a number, or the name of a schedule."""
    if isinstance(value, dict):
        return str(value.get("schedule"))
    return str(getattr(value, "schedule", "constant"))


LearningRate = Annotated[
    Annotated[Rate, Tag("constant")]
    | Annotated[StepDecay, Tag("step_decay")]
    | Annotated[CosineAnnealing, Tag("cosine_annealing")],
    Discriminator(_kind_of_rate),
    BeforeValidator(_scheduled, json_schema_input_type=Rate | StepDecay | CosineAnnealing),
]


class JobSpec(_Strict):
    """One training job. An optimizer and a learning rate are a whole spec; the rest has the lesson's defaults."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"optimizer": "adam", "learning_rate": 0.001, "epochs": 1}]}
    )

    optimizer: Optimizer = Field(description="A name, or an object with that optimizer's own parameters.")
    learning_rate: LearningRate = Field(description="A number, or an object with a schedule's own parameters.")
    dataset: Literal["mnist"] = "mnist"
    epochs: int = Field(5, ge=1, le=1000)
    batch_size: int = Field(100, ge=1, description="Images a step; at most the size of the training split.")
    seed: int = Field(0, ge=0, le=2**53 - 1, description="Fixes the initial weights and the order of the images.")
    log_every: int = Field(10, ge=1, le=10_000, description="Steps from one stored loss point to the next.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="L2 penalty, Paddle's `weight_decay`.")
    device: str = Field("auto", pattern=DEVICE_PATTERN, description="`auto`, `cpu`, `gpu` or `gpu:N`.")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="`bf16` is automatic mixed precision, on a GPU only."
    )
    to_static: bool = Field(False, description="Compile the network with Paddle's `to_static`, on a GPU only.")
    on_divergence: Literal["stop", "continue"] = Field("stop", description="Whether a run that blows up is ended.")
    max_runtime_s: int = Field(3600, ge=1, le=7 * 24 * 3600)
    name: str | None = Field(None, max_length=200)
    tags: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=200)]] = Field(
        default_factory=dict, max_length=16
    )

    @model_validator(mode="after")
    def _fits(self) -> "JobSpec":
        images = TRAIN_IMAGES[self.dataset]
        if self.batch_size > images:
            raise PydanticCustomError("batch_size", f"batch_size is at most {images}, the images of {self.dataset}")
        if self.device == "cpu" and self.wants_gpu:
            raise PydanticCustomError("device", "bf16 and to_static need a GPU, and device says cpu")
        if self.points > MAX_POINTS:
            raise PydanticCustomError(
                "points", f"this job would store more than {MAX_POINTS} loss points: raise log_every"
            )
        return self

    @property
    def wants_gpu(self) -> bool:
        """Whether it asks for something that only a GPU does."""
        return self.precision != "float32" or self.to_static

    @property
    def steps_per_epoch(self) -> int:
        """The last, smaller batch is kept, so this rounds up."""
        return math.ceil(TRAIN_IMAGES[self.dataset] / self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def points(self) -> int:
        """Loss points the job stores: every `log_every`th step, and the very last."""
        last = self.total_steps - 1
        return last // self.log_every + 1 + (last % self.log_every != 0)

    def is_logged(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.total_steps - 1

    def extended(self, epochs: int) -> "JobSpec":
        """The same training with so many epochs more. Raises InvalidRequest when that breaks a limit."""
        try:
            return JobSpec.model_validate(self.model_dump() | {"epochs": self.epochs + epochs})
        except ValidationError as error:
            raise InvalidRequest(FieldProblem("/epochs", error.errors(include_input=False)[0]["msg"])) from None

    def hash(self, backend: dict[str, Any] | None = None) -> str:
        """Equal for specs that ask for the same training; name and tags do not count.

        With the `backend` that trains it, equal hashes mean equal results, to the last bit.
        """
        named = {"spec": self.model_dump(exclude={"name", "tags"}), "backend": backend}
        canonical = json.dumps(named, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
