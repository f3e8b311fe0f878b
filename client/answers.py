"""What the server answers, as types: plain dictionaries with known names, exactly as the REST API has them.

Nothing is converted and nothing is refused, so what a newer server adds is simply there as well. The events of a stream and
a loss history, which have a form of their own here, are dataclasses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

if TYPE_CHECKING:
    import pandas

Setting = dict[str, Any]  # an optimizer, a schedule or a clip, with its own parameters

# --- what is asked for -------------------------------------------------------------------------------------------------


class Recipe(TypedDict, total=False):
    """How to train; the server has the lesson's defaults for what is left out."""

    dataset: str
    epochs: int
    batch_size: int
    log_every: int
    weight_decay: float
    grad_clip: Setting | None
    device: str
    precision: str
    to_static: bool
    on_divergence: str
    max_runtime_s: int
    name: str | None
    tags: dict[str, str]


class JobSpec(Recipe, total=False):
    optimizer: str | Setting
    learning_rate: float | Setting
    seed: int


class SweepSpec(Recipe, total=False):
    optimizers: Sequence[str | Setting]
    learning_rates: Sequence[float | Setting] | Setting
    seeds: Sequence[int]
    strategy: str
    samples: int | None
    search_seed: int
    max_concurrent: int | None
    early_stopping: str | Setting | None
    target_accuracy: float


class RangeTestSpec(Recipe, total=False):
    optimizer: str | Setting
    start: float
    end: float
    seed: int


# --- jobs --------------------------------------------------------------------------------------------------------------


class Progress(TypedDict):
    step: int  # done
    total_steps: int
    epoch: int  # from 0
    epochs: int
    fraction: float
    eta_s: float | None


class Latest(TypedDict):
    step: int
    loss: float | None  # None: not finite


class Backend(TypedDict):
    device: str
    kernel: str
    threads: int


class Result(TypedDict):
    valid_accuracy: float | None
    test_accuracy: float | None
    final_loss: float | None
    images_per_s: float | None
    seconds: float | None


class ModelInfo(TypedDict):
    ready: bool
    partial: bool
    sha256: str | None  # of the safetensors file
    size_bytes: int | None


class JobError(TypedDict):
    code: str
    message: str
    step: int | None


class WaitingFor(TypedDict):
    """What no live worker has that a queued job needs."""

    needs: str
    en: str
    zh: str


class StoppedEarly(TypedDict):
    epochs: int
    valid_accuracy: float
    place: int
    runs: int
    kept: int


class Transition(TypedDict):
    status: str
    at: str
    worker: str | None
    request_id: str | None


class Ending(TypedDict):
    """What jobs, sweeps and range tests have in common."""

    id: str
    status: str
    terminal: bool
    links: dict[str, str]


class JobData(Ending):
    """A job. One that comes from a list has not what is `NotRequired`, until it is refreshed."""

    created_at: str
    started_at: str | None
    finished_at: str | None
    updated_at: str
    spec: JobSpec
    spec_hash: str
    attempt: int
    progress: Progress
    latest: Latest | None
    result: Result
    model: ModelInfo
    error: JobError | None
    sweep: str | None
    stopped_early: StoppedEarly | None
    resumed_from_step: NotRequired[int | None]
    queue_position: NotRequired[int | None]
    waiting_for: NotRequired[WaitingFor | None]
    backend: NotRequired[Backend | None]
    transitions: NotRequired[list[Transition]]


class JobPreview(TypedDict):
    """What a job would be."""

    spec: JobSpec
    spec_hash: str
    total_steps: int
    points: int


class LossPoint(TypedDict):
    step: int  # from 0 over the whole job
    epoch: int
    batch: int  # from 0 within its epoch
    loss: float | None  # None when it is not finite; `nonfinite` then says which
    nonfinite: NotRequired[Literal["nan", "inf", "-inf"]]
    time_s: float


class Sampling(TypedDict):
    method: str
    of: int
    buckets: int


class EpochMetrics(TypedDict):
    epoch: int  # from 0
    train_loss: float | None
    valid_loss: float | None
    valid_accuracy: float
    learning_rate: float
    images_per_s: float
    seconds: float
    at: str | None


class Checkpoint(TypedDict):
    step: int
    epoch: int
    metrics: EpochMetrics | None
    size_bytes: int
    sha256: str


class LogEntry(TypedDict):
    at: str | None
    type: str
    status: str | None
    worker: str | None
    epoch: int | None
    message: str


@dataclass(frozen=True, kw_only=True)
class LossHistory:
    """The points of a job, in order, each step once: `for point in history`, `len(history)`, `history.to_pandas()`.

    `next` is where it ends: `job.loss(after=history.next)` has what came since, and nothing twice.
    """

    job_id: str
    status: str
    terminal: bool
    count: int  # of all points stored so far
    points: list[LossPoint]
    next: str
    sampling: Sampling | None
    summary: dict[str, float | None]

    def __iter__(self) -> Iterator[LossPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each point, with its step as index; a loss that is not finite is NaN or infinite, as it was.

        Raises ImportError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("to_pandas needs pandas, which is not installed: pip install pandas") from None
        rows = [{**point, "loss": float(point.get("nonfinite") or point["loss"] or 0.0)} for point in self.points]
        columns = ["step", "epoch", "batch", "loss", "time_s"]
        return pandas.DataFrame(rows, columns=columns).set_index("step")


# --- what a stream tells -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Points:
    """New loss points of a job."""

    job_id: str
    points: list[LossPoint]


@dataclass(frozen=True, kw_only=True)
class EpochEnded:
    job_id: str
    metrics: EpochMetrics


@dataclass(frozen=True, kw_only=True)
class StatusChanged:
    job_id: str
    status: str
    terminal: bool


Event = Points | EpochEnded | StatusChanged


def event_of(name: str, data: dict[str, Any]) -> Event | None:
    """An event as the server sent it; None for a kind that this client does not know."""
    match name:
        case "points":
            return Points(job_id=data["job_id"], points=data["points"])
        case "epoch":
            return EpochEnded(job_id=data["job_id"], metrics=data["metrics"])
        case "status":
            return StatusChanged(job_id=data["job_id"], status=data["status"], terminal=data["terminal"])
    return None


# --- sweeps, comparisons, range tests ----------------------------------------------------------------------------------


class Spread(TypedDict):
    n: int
    mean: float
    min: float
    max: float


class Verdict(TypedDict):
    outcome: str
    rule: str
    numbers: dict[str, float]
    en: str
    zh: str


class Noise(TypedDict):
    within_noise: bool
    rule: str
    best: str
    second: str
    numbers: dict[str, float]
    en: str
    zh: str


class RunRow(TypedDict):
    job_id: str
    label: str
    optimizer: str
    learning_rate: float | Setting
    seed: int
    status: str
    final_loss: float | None
    valid_accuracy: float | None
    test_accuracy: float | None
    steps_to_target: int | None
    seconds_to_target: float | None
    verdict: Verdict | None


class GroupRow(TypedDict):
    label: str
    job_ids: list[str]
    seeds: list[int]
    test_accuracy: Spread | None
    final_loss: Spread | None
    reached: int
    steps_to_target: Spread | None
    seconds_to_target: Spread | None
    verdicts: dict[str, int]


class Best(TypedDict):
    label: str
    test_accuracy: float
    job_id: str


class Table(TypedDict):
    target_accuracy: float
    rows: list[GroupRow]  # best first
    runs: list[RunRow]
    best: Best | None
    noise: Noise | None


class EpochCurve(TypedDict):
    x: list[float]
    train_loss: list[float | None]
    valid_loss: list[float | None]
    valid_accuracy: list[float]


class Curve(TypedDict):
    job_id: str
    label: str
    status: str
    terminal: bool
    count: int
    x: list[float]
    loss: list[float | None]
    sampling: Sampling | None
    epochs: EpochCurve


class Comparison(TypedDict):
    x: str
    curves: list[Curve]
    table: Table


class SweepChoice(TypedDict):
    optimizer: Setting
    learning_rate: float | Setting
    seed: int


class SweepJob(SweepChoice):
    job_id: str
    status: str
    terminal: bool
    progress: Progress
    latest: Latest | None
    result: Result
    error: JobError | None
    stopped_early: StoppedEarly | None


class SweepProgress(TypedDict):
    jobs: int
    ended: int
    fraction: float


class SweepData(Ending):
    """A sweep. One that comes from a list has not what is `NotRequired`, until it is refreshed."""

    created_at: str
    cancelled_at: str | None
    name: str | None
    progress: SweepProgress
    counts: dict[str, int]
    spec: NotRequired[SweepSpec]
    jobs: NotRequired[list[SweepJob]]
    table: NotRequired[Table]


class SweepPreview(TypedDict):
    spec: SweepSpec
    jobs: list[SweepChoice]
    total_steps: int
    points: int
    seconds: float | None


class Text(TypedDict):
    en: str
    zh: str


class RangeCurve(TypedDict):
    step: list[int]
    rate: list[float]
    loss: list[float | None]
    smoothed: list[float | None]


class Suggestion(TypedDict):
    rate: float | None
    outcome: str
    steepest_rate: float | None
    least_rate: float | None
    blown_up_rate: float | None
    sentence: Text


class RangeTestData(Ending):
    spec: JobSpec
    progress: Progress
    error: JobError | None
    curve: RangeCurve
    suggestion: Suggestion


# --- models, predictions, the rest -------------------------------------------------------------------------------------


class Model(TypedDict):
    job_id: str
    dataset: str
    test_accuracy: float | None
    sha256: str
    size_bytes: int
    created_at: str
    finished_at: str | None
    names: list[str]
    links: dict[str, str]


class UsedModel(TypedDict):
    job_id: str
    dataset: str
    sha256: str
    test_accuracy: float | None


Ranked = TypedDict("Ranked", {"class": int, "label": str, "digit": int | None, "probability": float})
Prediction = TypedDict(
    "Prediction",
    {
        "class": int,
        "label": str,
        "digit": int | None,
        "confidence": float,
        "probabilities": list[float],
        "top_k": list[Ranked],
        "seen": NotRequired[str],  # base64 of a PNG, with `debug`
    },
)


class Predictions(TypedDict):
    model: UsedModel
    predictions: list[Prediction]
    latency_ms: float


ClassScore = TypedDict(
    "ClassScore",
    {"class": int, "label": str, "label_zh": str, "images": int, "precision": float | None, "recall": float},
)


class Example(TypedDict):
    index: int
    label: int
    predicted: int
    confidence: float
    seen: str


class Examples(TypedDict):
    wrong: list[Example]
    right: list[Example]


class Evaluation(TypedDict):
    job_id: str
    dataset: str
    sha256: str
    partial: bool
    images: int
    right: int
    accuracy: float
    confusion: list[list[int]]
    classes: list[ClassScore]
    examples: Examples


class Parameter(TypedDict):
    name: str
    required: bool
    default: Any
    schema: dict[str, Any]


class Choice(TypedDict):
    name: str
    summary: Text
    parameters: list[Parameter]


class OptimizerChoice(Choice):
    lesson: bool


class Optimizers(TypedDict):
    optimizers: list[OptimizerChoice]
    schedules: list[Choice]
    clips: list[Choice]


class Dataset(TypedDict):
    name: str
    summary: Text
    train_images: int
    classes: list[str]
    classes_zh: list[str]


class Check(TypedDict):
    ok: bool
    ms: float
    detail: str


class Readiness(TypedDict):
    ready: bool
    checks: dict[str, Check]
