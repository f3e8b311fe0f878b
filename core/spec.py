"""What a client may ask for: the job's spec. Pydantic only; imports no Paddle."""

import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from core.catalogue import (
    DATASETS,
    DEFAULT_DATASET,
    AdamW,
    DatasetName,
    GradClip,
    Lamb,
    LearningRate,
    OneCycle,
    Optimizer,
    RangeTest,
    Strict,
)
from core.errors import FieldProblem, InvalidRequest

_DEVICE = r"^(auto|cpu|gpu(:([0-9]|1[0-5]))?)$"  # for the document as well, whose patterns are found anywhere
MAX_POINTS = 200_000  # loss points one job may store
# How many loss points a range test may have: enough to see a curve, and one page of a history.
RANGE_TEST_POINTS = range(50, 10_001)
TRAIN_IMAGES = {name: facts.train_images for name, facts in DATASETS.items()}

Seed = Annotated[int, Field(ge=0, le=2**53 - 1, description="Fixes the initial weights and the order of the images.")]


def _device(text: str) -> str:
    if not re.fullmatch(_DEVICE, text):
        raise PydanticCustomError("device", "a device is auto, cpu, gpu, or gpu:N with N from 0 to 15")
    return text


Device = Annotated[str, AfterValidator(_device), Field(json_schema_extra={"pattern": _DEVICE})]


def wrong(pointer: str, message: str) -> PydanticCustomError:
    """A rule over several fields is broken; `pointer` is the one to change."""
    return PydanticCustomError("rule", message, {"field": pointer})


class Recipe(Strict):
    """How to train, whatever the optimizer and its learning rate are. The defaults are the lesson's."""

    dataset: DatasetName = Field(
        DEFAULT_DATASET, description="What to learn: digits or clothes; GET /datasets has more."
    )
    epochs: int = Field(5, ge=1, le=1000)
    batch_size: int = Field(
        100, ge=1, le=max(TRAIN_IMAGES.values()), description="Images a step; at most the size of the training split."
    )
    log_every: int = Field(10, ge=1, le=10_000, description="Steps from one stored loss point to the next.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="L2 penalty, Paddle's `weight_decay`.")
    grad_clip: GradClip | None = Field(None, description="How large a gradient may be.")
    device: Device = Field("auto", description="`auto`, `cpu`, `gpu` or `gpu:N`.")
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


class _Choice(Strict):
    optimizer: Optimizer = Field(description="A name, in any case, or an object with that optimizer's own parameters.")
    learning_rate: LearningRate = Field(description="A number, or an object with a schedule's own parameters.")
    seed: Seed = 0


class JobSpec(Recipe, _Choice):
    """One training job. An optimizer and a learning rate are a whole spec; the rest has the lesson's defaults."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"optimizer": "adam", "learning_rate": 0.001, "epochs": 1}]}
    )

    @model_validator(mode="after")
    def _fits(self) -> "JobSpec":
        images, name = TRAIN_IMAGES[self.dataset], self.optimizer.name
        if self.batch_size > images:
            raise wrong("/batch_size", f"batch_size is at most {images}, the images of {self.dataset}")
        if self.device == "cpu" and self.wants_gpu:
            raise wrong("/device", "bf16 and to_static need a GPU, and device says cpu")
        if self.weight_decay and isinstance(self.optimizer, AdamW | Lamb):
            raise wrong("/weight_decay", f"{name} has a weight decay of its own: set it in the optimizer")
        if isinstance(self.learning_rate, OneCycle) and self.learning_rate.total_steps < self._intervals:
            raise wrong("/learning_rate/total_steps", f"this job has {self._intervals}, and one_cycle ends before")
        if self.points > MAX_POINTS:
            raise wrong("/log_every", f"this job would store more than {MAX_POINTS} loss points: raise log_every")
        if self.range_test and self.points not in RANGE_TEST_POINTS:
            bounds = f"{RANGE_TEST_POINTS[0]} to {RANGE_TEST_POINTS[-1]} loss points"
            field = "/epochs" if self.points < RANGE_TEST_POINTS[0] else "/log_every"
            raise wrong(field, f"a range test has {bounds}, and this one would have {self.points}: raise {field[1:]}")
        return self

    @property
    def _intervals(self) -> int:
        """How many epochs or steps, whichever it is, the schedule is asked for."""
        rate = self.learning_rate
        if isinstance(rate, float):
            return 0
        warmup = rate.warmup.warmup_steps if rate.warmup else 0
        return self.epochs if rate.interval == "epoch" else max(self.total_steps - warmup, 0)

    @property
    def range_test(self) -> RangeTest | None:
        """The rates it goes through, when it is a learning-rate range test and no training for its own sake."""
        return self.learning_rate if isinstance(self.learning_rate, RangeTest) else None

    @property
    def decades_per_step(self) -> float:
        """How far the rate of a range test goes up in a step, on the scale of log10; 0 for any other job."""
        rates = self.range_test
        return math.log10(rates.end / rates.start) / (self.total_steps - 1) if rates else 0.0

    @property
    def wants_gpu(self) -> bool:
        """Whether it asks for something that only a GPU does."""
        return self.precision != "float32" or self.to_static

    @property
    def needs(self) -> str:
        """What a worker must have to train it: `any` worker can, one with a `gpu`, or with the GPU of a number, `gpu:N`."""
        if self.device in ("auto", "cpu"):
            return "gpu" if self.wants_gpu else "any"
        return self.device

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
        if self.range_test:
            raise InvalidRequest(
                FieldProblem("/epochs", "a range test cannot be made longer: its rates would be others")
            )
        try:
            return JobSpec.model_validate(self.model_dump() | {"epochs": self.epochs + epochs})
        except ValidationError as error:
            why = error.errors(include_input=False)[0]["msg"]
            raise InvalidRequest(FieldProblem("/epochs", f"the longer job could not be: {why}")) from None

    def hash(self, backend: dict[str, Any] | None = None) -> str:
        """Equal for specs that ask for the same training; name and tags do not count.

        With the `backend` that trains it, equal hashes mean equal results, to the last bit.
        """
        named = {"spec": self.model_dump(exclude={"name", "tags"}), "backend": backend}
        canonical = json.dumps(named, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
