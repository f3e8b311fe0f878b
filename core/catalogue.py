"""What can be chosen: the optimizers, the learning-rate schedules and the gradient clips, with all their own parameters.

Names and defaults are Paddle's (`paddle.optimizer`, `paddle.optimizer.lr`, `paddle.nn`, 3.3), so what the lesson says can be
typed as it is. The first line of each docstring, and `zh`, are what `GET /optimizers` shows. Pydantic only; imports no Paddle.
"""

import difflib
import math
import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """No unknown field, no conversion, no change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _with_its_name(schema: dict[str, Any]) -> None:
    """The name says which of the choices an object is; that it has a default serves our own code alone."""
    if "name" in schema["properties"]:
        schema["required"] = ["name", *schema.get("required", [])]


class Described(Strict):
    """Something that can be chosen: its docstring says what it is, `zh` the same in Chinese."""

    model_config = ConfigDict(json_schema_extra=_with_its_name)

    zh: ClassVar[str]


def nearest(word: str, allowed: tuple[str, ...]) -> str | None:
    """The allowed word somebody probably meant: of the close ones, one that is about as long."""
    close = difflib.get_close_matches(word.lower(), allowed, n=5, cutoff=0.5)
    return min(close, key=lambda match: abs(len(match) - len(word)), default=None)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Epsilon = Annotated[float, Field(ge=1e-12, le=1)]
Rate = Annotated[float, Field(ge=1e-12, le=1e6)]
Count = Annotated[int, Field(ge=1, le=10**9)]


# --- optimizers --------------------------------------------------------------------------------------------------------


class Sgd(Described):
    """The plain mini-batch gradient."""

    zh = "随机梯度下降：沿小批量梯度的反方向更新。"
    name: Literal["sgd"] = "sgd"


class Momentum(Described):
    """An inertia term: past directions, weighted with the present gradient."""

    zh = "动量：把历史梯度方向按惯性累加到当前梯度上。"
    name: Literal["momentum"] = "momentum"
    momentum: Fraction = 0.9
    use_nesterov: bool = False


class Adagrad(Described):
    """A rate of its own for each parameter, from the sum of all squared gradients; it only falls."""

    zh = "AdaGrad：按梯度平方的累加和为每个参数调整学习率，学习率只减不增。"
    name: Literal["adagrad"] = "adagrad"
    epsilon: Epsilon = 1e-6
    initial_accumulator_value: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class RmsProp(Described):
    """AdaGrad with a running mean instead of the sum, so that the rate does not collapse."""

    zh = "RMSProp：用滑动平均代替 AdaGrad 的累加和，避免学习率过早衰减。"
    name: Literal["rmsprop"] = "rmsprop"
    rho: Fraction = 0.95
    epsilon: Epsilon = 1e-6
    momentum: Fraction = 0.0
    centered: bool = False


class Adam(Described):
    """Momentum and an adaptive rate together."""

    zh = "Adam：动量与自适应学习率的结合。"
    name: Literal["adam"] = "adam"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Epsilon = 1e-8
    amsgrad: bool = False


class AdamW(Described):
    """Adam with the weight decay taken off the weights themselves, not added to the gradient."""

    zh = "AdamW：权重衰减直接作用于参数，而不是加到梯度里的 Adam。"
    name: Literal["adamw"] = "adamw"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Epsilon = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    amsgrad: bool = False


class Adamax(Described):
    """Adam with the largest recent gradient in the place of the mean square."""

    zh = "Adamax：用梯度的无穷范数代替二阶矩的 Adam。"
    name: Literal["adamax"] = "adamax"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Epsilon = 1e-8


class Adadelta(Described):
    """Steps scaled by the size of past steps over that of past gradients."""

    zh = "Adadelta：用历史更新量与历史梯度的比值缩放步长。"
    name: Literal["adadelta"] = "adadelta"
    epsilon: Epsilon = 1e-6
    rho: Fraction = 0.95


class NAdam(Described):
    """Adam with Nesterov's look ahead."""

    zh = "NAdam：加入 Nesterov 前瞻的 Adam。"
    name: Literal["nadam"] = "nadam"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Epsilon = 1e-8
    momentum_decay: Annotated[float, Field(ge=0, le=1)] = 0.004


class RAdam(Described):
    """Adam that adapts its rate only once it has seen enough gradients to trust their variance."""

    zh = "RAdam：在梯度方差可信之前先不做自适应的 Adam。"
    name: Literal["radam"] = "radam"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Epsilon = 1e-8


class Lamb(Described):
    """Adam with each layer's step scaled to the size of its weights, for large batches."""

    zh = "LAMB：按每层参数的大小缩放步长的 Adam，适合大批量。"
    name: Literal["lamb"] = "lamb"
    lamb_weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Epsilon = 1e-6
    always_adapt: bool = False


AnyOptimizer = Sgd | Momentum | Adagrad | RmsProp | Adam | AdamW | Adamax | Adadelta | NAdam | RAdam | Lamb
OPTIMIZER_CLASSES: dict[str, type[Described]] = {
    cls.model_fields["name"].default: cls
    for cls in (Sgd, Momentum, Adagrad, RmsProp, Adam, AdamW, Adamax, Adadelta, NAdam, RAdam, Lamb)
}
OPTIMIZERS = tuple(OPTIMIZER_CLASSES)
LESSON_OPTIMIZERS = OPTIMIZERS[:5]


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
    AnyOptimizer,
    Field(discriminator="name"),
    BeforeValidator(_named, json_schema_input_type=Literal[OPTIMIZERS] | AnyOptimizer),
]


# --- learning-rate schedules -------------------------------------------------------------------------------------------


class Warmup(Strict):
    """Before anything else the rate rises in a straight line, from `start_lr` to what the schedule then says."""

    warmup_steps: Count = Field(description="Training steps, whatever the schedule counts.")
    start_lr: float = Field(0.0, ge=0, le=1e6)


class _Schedule(Described):
    interval: Literal["epoch", "step"] = Field("epoch", description="What the schedule counts.")
    warmup: Warmup | None = None


class _FromInitial(_Schedule):
    initial: Rate = Field(description="The rate it starts from.")


class Constant(_FromInitial):
    """The same rate all the time; with a warm-up, from its end on."""

    zh = "固定学习率；可加预热。"
    schedule: Literal["constant"]


class StepDecay(_FromInitial):
    """`initial`, multiplied by `gamma` after every `step_size` intervals."""

    zh = "每隔 step_size 个周期乘以 gamma。"
    schedule: Literal["step_decay"]
    step_size: Count
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.1


class MultiStepDecay(_FromInitial):
    """`initial`, multiplied by `gamma` at each of the `milestones`."""

    zh = "到达每个 milestones 时乘以 gamma。"
    schedule: Literal["multi_step_decay"]
    milestones: list[Count] = Field(min_length=1, max_length=100)
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _rising(self) -> "MultiStepDecay":
        if any(later <= earlier for earlier, later in zip(self.milestones, self.milestones[1:], strict=False)):
            raise PydanticCustomError("milestones", "milestones must rise")
        return self


class ExponentialDecay(_FromInitial):
    """`initial` times `gamma` to the power of the interval."""

    zh = "initial × gamma^n。"
    schedule: Literal["exponential_decay"]
    gamma: Annotated[float, Field(gt=0, lt=1)]


class NaturalExpDecay(_FromInitial):
    """`initial` times e to the power of minus `gamma` times the interval."""

    zh = "initial × e^(-gamma·n)。"
    schedule: Literal["natural_exp_decay"]
    gamma: Annotated[float, Field(gt=0, le=1e3)]


class InverseTimeDecay(_FromInitial):
    """`initial` over 1 + `gamma` times the interval."""

    zh = "initial ÷ (1 + gamma·n)。"
    schedule: Literal["inverse_time_decay"]
    gamma: Annotated[float, Field(gt=0, le=1e3)]


class PolynomialDecay(_FromInitial):
    """From `initial` to `end_lr` within `decay_steps` intervals, along a power."""

    zh = "在 decay_steps 个周期内按幂次从 initial 降到 end_lr。"
    schedule: Literal["polynomial_decay"]
    decay_steps: Count
    end_lr: Annotated[float, Field(ge=0, le=1e6)] = 0.0001
    power: Annotated[float, Field(gt=0, le=100)] = 1.0
    cycle: bool = False


class CosineAnnealing(_FromInitial):
    """Half a cosine, from `initial` down to `eta_min` within `T_max` intervals, and up again."""

    zh = "余弦退火：在 T_max 个周期内从 initial 降到 eta_min。"
    schedule: Literal["cosine_annealing"]
    T_max: Count
    eta_min: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class OneCycle(_Schedule):
    """Once up to `max_learning_rate` and down again, within `total_steps` intervals."""

    zh = "单周期：在 total_steps 内升到 max_learning_rate 再降下来。"
    schedule: Literal["one_cycle"]
    max_learning_rate: Rate
    total_steps: Annotated[int, Field(ge=2, le=10**9)]
    divide_factor: Annotated[float, Field(gt=0, le=1e6)] = 25.0
    end_learning_rate: Annotated[float, Field(ge=0, le=1e6)] = 0.0001
    phase_pct: Annotated[float, Field(gt=0, lt=1)] = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    three_phase: bool = False
    interval: Literal["epoch", "step"] = Field("step", description="What the schedule counts.")

    @model_validator(mode="after")
    def _phases_fit(self) -> "OneCycle":
        if self.phase_pct * self.total_steps <= 1:
            raise PydanticCustomError("one_cycle", "phase_pct times total_steps must be above 1, or there is no way up")
        if self.three_phase and self.phase_pct >= 0.5:
            raise PydanticCustomError("one_cycle", "with three_phase, phase_pct must be below 0.5")
        return self


class Cyclic(_Schedule):
    """Up and down between two rates, again and again."""

    zh = "循环学习率：在两个学习率之间往复。"
    schedule: Literal["cyclic"]
    base_learning_rate: Rate
    max_learning_rate: Rate
    step_size_up: Count
    step_size_down: Count | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    exp_gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    interval: Literal["epoch", "step"] = Field("step", description="What the schedule counts.")


class ReduceOnPlateau(_FromInitial):
    """`initial`, multiplied by `factor` when the validation loss has not fallen for more than `patience` epochs."""

    zh = "验证损失连续 patience 轮不再下降时乘以 factor。"
    schedule: Literal["reduce_on_plateau"]
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=0, le=1000)] = 10
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0001
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: Annotated[int, Field(ge=0, le=1000)] = 0
    min_lr: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    interval: Literal["epoch"] = Field("epoch", description="It counts epochs: it needs their validation loss.")


class RangeTest(_Schedule):
    """A learning-rate range test: from `start` up to `end`, by the same factor each step, over all the steps of the job.

    Leslie N. Smith, Cyclical Learning Rates for Training Neural Networks, 2015, with the exponential ramp that is usual since.
    The job ends, as a success, when the loss blows up, and leaves no model: what it learns is a rate.
    """

    zh = "学习率范围测试：每一步乘以同一倍数，从 start 升到 end；损失发散时提前成功结束，不留下模型。"
    schedule: Literal["range_test"]
    start: Rate = 1e-6
    end: Rate = 10.0
    interval: Literal["step"] = Field("step", description="It counts steps.")
    warmup: None = Field(None, description="It has none: it begins small.")

    @model_validator(mode="after")
    def _rises(self) -> "RangeTest":
        if self.end < 10 * self.start:
            raise PydanticCustomError("range_test", "end must be at least ten times start", {"field": "/end"})
        return self

    def rate_at(self, step: int, total_steps: int) -> float:
        """The rate of a step, from 0, in a job of so many."""
        return self.start * math.pow(self.end / self.start, step / (total_steps - 1))


AnySchedule = (
    Constant
    | StepDecay
    | MultiStepDecay
    | ExponentialDecay
    | NaturalExpDecay
    | InverseTimeDecay
    | PolynomialDecay
    | CosineAnnealing
    | OneCycle
    | Cyclic
    | ReduceOnPlateau
    | RangeTest
)
SCHEDULE_CLASSES: dict[str, type[_Schedule]] = {
    cls.model_json_schema()["properties"]["schedule"]["const"]: cls
    for cls in (
        Constant,
        StepDecay,
        MultiStepDecay,
        ExponentialDecay,
        NaturalExpDecay,
        InverseTimeDecay,
        PolynomialDecay,
        CosineAnnealing,
        OneCycle,
        Cyclic,
        ReduceOnPlateau,
        RangeTest,
    )
}
SCHEDULES = tuple(SCHEDULE_CLASSES)
# what pydantic puts into the path of an error in a learning rate, beside the schedule's name
RATE_TAGS = ("number", "object")


def _scheduled(value: object) -> object:
    """Refuse an object that is not a known schedule, with a hint."""
    name = value.get("schedule") if isinstance(value, dict) else None
    if isinstance(value, dict) and name not in SCHEDULES:
        hint = nearest(name[:40], SCHEDULES) if isinstance(name, str) else None
        raise PydanticCustomError(
            "schedule",
            "a schedule is an object whose `schedule` names it",
            {"allowed": SCHEDULES, "did_you_mean": hint},
        )
    return value


def _number_or_object(value: object) -> str:
    return RATE_TAGS[isinstance(value, dict | _Schedule)]


LearningRate = Annotated[
    Annotated[Rate, Tag("number")] | Annotated[AnySchedule, Field(discriminator="schedule"), Tag("object")],
    Discriminator(_number_or_object),
    BeforeValidator(_scheduled, json_schema_input_type=Rate | AnySchedule),
]


# --- gradient clipping -------------------------------------------------------------------------------------------------


class ClipByNorm(Described):
    """Each parameter's gradient is scaled down to the norm `clip_norm`."""

    zh = "把每个参数的梯度范数限制在 clip_norm 以内。"
    type: Literal["norm"]
    clip_norm: Annotated[float, Field(gt=0, le=1e6)]


class ClipByGlobalNorm(Described):
    """All gradients together are scaled down to the norm `clip_norm`."""

    zh = "把所有梯度的总范数限制在 clip_norm 以内。"
    type: Literal["global_norm"]
    clip_norm: Annotated[float, Field(gt=0, le=1e6)]


class ClipByValue(Described):
    """Each value of a gradient is cut to the range from `min` to `max`; without `min`, from minus `max`."""

    zh = "把梯度的每个值截断到 [min, max]。"
    type: Literal["value"]
    max: Annotated[float, Field(gt=0, le=1e6)]
    min: Annotated[float, Field(ge=-1e6, lt=0)] | None = None


CLIP_CLASSES: dict[str, type[Described]] = {"norm": ClipByNorm, "global_norm": ClipByGlobalNorm, "value": ClipByValue}
GradClip = Annotated[ClipByNorm | ClipByGlobalNorm | ClipByValue, Field(discriminator="type")]


# --- data sets ---------------------------------------------------------------------------------------------------------


class DatasetFacts(Strict):
    """What a data set is. All have 28x28 grey images and ten classes, and are split as the lesson splits MNIST."""

    en: str
    zh: str
    train_images: int
    classes: tuple[str, ...] = Field(min_length=10, max_length=10)
    classes_zh: tuple[str, ...] = Field(min_length=10, max_length=10)
    are_digits: bool = False


DEFAULT_DATASET: Final = "mnist"
DATASETS = {
    "mnist": DatasetFacts(
        en="70,000 handwritten digits, 28x28, grey (LeCun, Cortes, Burges).",
        zh="7 万张 28x28 的手写数字灰度图。",
        train_images=50_000,
        classes=tuple("0123456789"),
        classes_zh=tuple("0123456789"),
        are_digits=True,
    ),
    "fashion-mnist": DatasetFacts(
        en="70,000 pictures of clothes, shoes and bags, 28x28, grey (Xiao, Rasul, Vollgraf 2017).",
        zh="7 万张 28x28 的服装、鞋、包灰度图。",
        train_images=50_000,
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        classes_zh=("T恤/上衣", "裤子", "套头衫", "连衣裙", "外套", "凉鞋", "衬衫", "运动鞋", "包", "短靴"),
    ),
}


def _known_dataset(value: object) -> object:
    """Refuse a name that is no data set's, with a hint."""
    if not isinstance(value, str) or value not in DATASETS:
        names = tuple(DATASETS)
        hint = nearest(value[:40], names) if isinstance(value, str) else None
        raise PydanticCustomError("dataset", "unknown data set", {"allowed": names, "did_you_mean": hint})
    return value


DatasetName = Annotated[Literal["mnist", "fashion-mnist"], BeforeValidator(_known_dataset)]
