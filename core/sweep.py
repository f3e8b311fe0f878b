"""A sweep: many jobs in one call, over optimizers, learning rates and seeds. Pydantic only; imports no Paddle."""

import math
import random
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from core.catalogue import LESSON_OPTIMIZERS, LearningRate, Optimizer, RangeTest, Rate, Strict
from core.spec import JobSpec, Recipe, Seed, wrong

MAX_JOBS = 500  # of one sweep
_DIGITS = 4  # significant ones of a rate that is drawn
_MOST_DRAWS = 10 * MAX_JOBS

Configuration = tuple[Optimizer, LearningRate]


class RateRange(Strict):
    """Rates to draw at random, evenly on a logarithmic scale."""

    low: Rate
    high: Rate

    @model_validator(mode="after")
    def _rises(self) -> "RateRange":
        if self.low >= self.high:
            raise wrong("/high", "high must be above low")
        return self

    def draw(self, rng: random.Random) -> float:
        rate = 10 ** rng.uniform(math.log10(self.low), math.log10(self.high))
        return min(max(float(f"{rate:.{_DIGITS}g}"), self.low), self.high)


class Asha(Strict):
    """Asynchronous successive halving (Li et al. 2018): hopeless runs are stopped early.

    After `min_epochs` epochs, and after `reduction_factor` times as many each time, a run goes on only when its validation
    accuracy is among the best `1 / reduction_factor` (rounded up) of the runs that have come so far.
    """

    name: Literal["asha"] = "asha"
    reduction_factor: int = Field(3, ge=2, le=10)
    min_epochs: int = Field(1, ge=1, le=1000)

    def rungs(self, epochs: int) -> list[int]:
        """The numbers of epochs after which runs of so many are compared; never after the last."""
        rungs, rung = [], self.min_epochs
        while rung < epochs:
            rungs.append(rung)
            rung *= self.reduction_factor
        return rungs


def _tag_of_rates(value: object) -> str:
    return "range" if isinstance(value, dict | RateRange) else "list"


Rates = Annotated[
    Annotated[list[LearningRate], Field(min_length=1, max_length=100), Tag("list")]
    | Annotated[RateRange, Tag("range")],
    Discriminator(_tag_of_rates),
]
EarlyStopping = Annotated[
    Asha,
    BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v, json_schema_input_type=Asha | Literal["asha"]),
]


def _lesson_optimizers() -> list[Optimizer]:
    return [TypeAdapter(Optimizer).validate_python(name) for name in LESSON_OPTIMIZERS]


def _lesson_rates() -> Rates:
    return [0.1, 0.01, 0.001]


class _Grid(Strict):
    optimizers: list[Optimizer] = Field(
        default_factory=_lesson_optimizers,
        min_length=1,
        max_length=50,
        description="As in a job; the lesson's five when left out.",
    )
    learning_rates: Rates = Field(
        default_factory=_lesson_rates,
        description="As in a job; or, with the strategy `random`, a range to draw from.",
    )
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1, max_length=50)
    strategy: Literal["grid", "random"] = Field("grid", description="Every combination, or `samples` of them.")
    samples: int | None = Field(
        None, ge=1, le=MAX_JOBS, description="How many configurations `random` draws; each is trained with every seed."
    )
    search_seed: int = Field(0, ge=0, le=2**53 - 1, description="Fixes what `random` draws.")
    max_concurrent: int | None = Field(None, ge=1, le=MAX_JOBS, description="How many of its jobs may run at a time.")
    early_stopping: EarlyStopping | None = Field(None, description="`asha` stops hopeless runs early.")
    target_accuracy: float = Field(0.97, gt=0, lt=1, description="The table says how soon each run reached it.")


class SweepSpec(Recipe, _Grid):
    """Every optimizer with every rate, each with every seed. `{}` is the lesson: five optimizers at three rates."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"optimizers": ["sgd", "adam"], "learning_rates": [0.1, 0.01, 0.001], "seeds": [0, 1, 2]}]
        }
    )

    @model_validator(mode="after")
    def _fits(self) -> "SweepSpec":
        for name in ("optimizers", "learning_rates", "seeds"):
            values = getattr(self, name)
            if isinstance(values, list) and any(value in values[:index] for index, value in enumerate(values)):
                raise wrong(f"/{name}", "the same value stands here twice")
        if isinstance(self.learning_rates, list) and any(isinstance(rate, RangeTest) for rate in self.learning_rates):
            raise wrong("/learning_rates", "a range test leaves no model to compare: POST /lr-range-tests")
        self._check_strategy()
        if (count := self.count) > MAX_JOBS:
            raise wrong("/seeds", f"a sweep has at most {MAX_JOBS} jobs, and this one would have {count}")
        if len(self.jobs()) < count:
            raise wrong("/samples", "the range has fewer rates of four digits than that")
        return self

    def _check_strategy(self) -> None:
        is_range = isinstance(self.learning_rates, RateRange)
        if self.strategy == "grid":
            if self.samples is not None:
                raise wrong("/samples", "samples belongs to the strategy random")
            if is_range:
                raise wrong("/learning_rates", "a range of rates needs the strategy random")
        elif self.samples is None:
            raise wrong("/samples", "the strategy random needs to know how many")
        elif not is_range and self.samples > (size := len(self._grid())):
            raise wrong("/samples", f"there are only {size} combinations")

    @property
    def count(self) -> int:
        """How many jobs it is."""
        return (self.samples or len(self._grid())) * len(self.seeds)

    def jobs(self) -> list[JobSpec]:
        """Its jobs, in the order they are queued: each configuration with every seed."""
        common = {name: getattr(self, name) for name in Recipe.model_fields}
        return [
            self._job(common | {"optimizer": optimizer, "learning_rate": rate, "seed": seed})
            for optimizer, rate in self._configurations()
            for seed in self.seeds
        ]

    def _job(self, fields: dict[str, object]) -> JobSpec:
        try:
            return JobSpec.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = str(first.get("ctx", {}).get("field", ""))
            raise wrong(field.replace("/learning_rate/", "/learning_rates/"), first["msg"]) from None

    def _configurations(self) -> Iterator[Configuration]:
        rng = random.Random(self.search_seed)
        if isinstance(self.learning_rates, RateRange):
            drawn: dict[tuple[int, float], None] = {}  # in the order they came
            for _ in range(_MOST_DRAWS):  # a narrow range may have fewer rates than are wanted
                if len(drawn) < (self.samples or 0):
                    drawn[rng.randrange(len(self.optimizers)), self.learning_rates.draw(rng)] = None
            yield from ((self.optimizers[place], rate) for place, rate in drawn)
        elif self.strategy == "random":
            yield from rng.sample(self._grid(), self.samples or 0)
        else:
            yield from self._grid()

    def _grid(self) -> list[Configuration]:
        rates = self.learning_rates if isinstance(self.learning_rates, list) else []
        return [(optimizer, rate) for optimizer in self.optimizers for rate in rates]
