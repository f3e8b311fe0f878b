"""A job while it trains: its bar and its curve on a terminal, a plain line now and then elsewhere, or JSON."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from client import output, plot
from client.answers import EpochEnded, EpochMetrics, Event, LossPoint, Points, StatusChanged

if TYPE_CHECKING:
    from client.client import Job

_PLAIN_EVERY_S = 10.0
_FRAMES_PER_S = 6
_MOST_POINTS = 1000  # in the picture; a terminal shows some hundreds
_PLOT_ROWS, _LEAST_ROWS = 8, 3
_OTHER_ROWS = 6  # of the terminal: what stands above and below the plot
_WIDE, _NARROW = 72, 48  # columns: with everything, and with less than half of it
_SPEED_POINTS = 20


class Course:
    """What a job's events have told so far."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.job_id, self.spec, self.status = data["id"], data["spec"], data["status"]
        self.total_steps = data["progress"]["total_steps"]
        self.points: list[tuple[float, float | None]] = []
        self.last: LossPoint | None = None
        self.epochs: list[EpochMetrics] = []
        self._recent: deque[LossPoint] = deque(maxlen=_SPEED_POINTS)

    def take(self, event: Event) -> None:
        match event:
            case Points(points=points):
                self.points += [(point["step"], point["loss"]) for point in points]
                self._recent.extend(points)
                self.last = points[-1]
                while len(self.points) > _MOST_POINTS:
                    self.points = thinned(self.points)
            case EpochEnded(metrics=metrics):
                self.epochs.append(metrics)
            case StatusChanged(status=status):
                self.status = status

    @property
    def steps_done(self) -> int:
        return self.last["step"] + 1 if self.last else 0

    @property
    def steps_per_s(self) -> float | None:
        """From the newest points; their time is that of training alone."""
        if len(self._recent) < 2:
            return None
        first, last = self._recent[0], self._recent[-1]
        seconds = last["time_s"] - first["time_s"]
        return (last["step"] - first["step"]) / seconds if seconds > 0 else None

    @property
    def speed(self) -> str:
        rate = self.steps_per_s
        return f"{rate * self.spec['batch_size']:,.0f} images/s" if rate else ""

    @property
    def eta(self) -> str:
        rate = self.steps_per_s
        if not rate or self.status != "running":
            return ""
        return f"{output.duration((self.total_steps - self.steps_done) / rate)} left"

    @property
    def epoch(self) -> str:
        now = self.last["epoch"] + 1 if self.last else 1
        return f"epoch {now}/{self.spec['epochs']}"

    @property
    def loss(self) -> str:
        if self.last is None:
            return ""
        loss = self.last["loss"]
        return f"loss {self.last.get('nonfinite', '') if loss is None else f'{loss:.4f}'}"

    @property
    def accuracy(self) -> str:
        return f"validation accuracy {self.epochs[-1]['valid_accuracy']:.2%}" if self.epochs else ""


def thinned(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Half of the points: of each four the least and the largest, in their order."""
    kept = []
    for start in range(0, len(points), 4):
        four = points[start : start + 4]
        known = [point for point in four if point[1] is not None] or four[:1]
        ends = {min(known, key=lambda p: p[1] or 0), max(known, key=lambda p: p[1] or 0)}
        kept += sorted(ends, key=lambda point: point[0])
    return kept


def follow(job: "Job", *, timeout_s: float, as_json: bool = False, quiet: bool = False, keep: bool = True) -> None:
    """Watch a job to its end; `job` is then as it ended. Raises WaitTimeout, Unreachable.

    `as_json`: events go to stdout. `keep`: the last picture stays on the terminal.
    """
    course = Course(job.data)
    with _presenting(course, as_json=as_json, quiet=quiet, keep=keep) as present:
        for event in job.stream(timeout_s):
            course.take(event)
            present(event)


Present = Callable[[Event], None]
_KINDS = {Points: "points", EpochEnded: "epoch", StatusChanged: "status"}


@contextmanager
def _presenting(course: Course, *, as_json: bool, quiet: bool, keep: bool) -> Iterator[Present]:
    is_drawn = output.err.is_terminal and not output.err.is_dumb_terminal
    if quiet or is_drawn:  # plain lines begin with that
        output.tell(f"{course.job_id} {course.status}")
    if as_json:
        yield lambda event: output.emit_json({"event": _KINDS[type(event)], **asdict(event)})
    elif quiet:
        yield lambda event: None
    elif is_drawn:
        with Live(
            get_renderable=lambda: picture(course),
            console=output.err,
            refresh_per_second=_FRAMES_PER_S,
            transient=not keep,
        ):
            yield lambda event: None
    else:
        yield _Lines(course).present


class _Lines:
    """Plain lines: what has changed, at once, and how far it is, from time to time."""

    def __init__(self, course: Course) -> None:
        self._course, self._said_at = course, time.monotonic()

    def present(self, event: Event) -> None:
        course = self._course
        match event:
            case StatusChanged(status=status):
                self._say(f"{course.job_id} {status}")
            case EpochEnded(metrics=metrics):
                done = f"epoch {metrics['epoch'] + 1}/{course.spec['epochs']} done"
                accuracy = f"validation accuracy {metrics['valid_accuracy']:.2%}"
                speed = f"{metrics['images_per_s']:,.0f} images/s"
                self._say(_joined(done, _mean(metrics["train_loss"]), accuracy, speed))
            case Points() if time.monotonic() - self._said_at > _PLAIN_EVERY_S:
                steps = f"step {course.steps_done:,} of {course.total_steps:,}"
                self._say(_joined(course.epoch, steps, course.loss, course.speed))

    def _say(self, text: str) -> None:
        output.tell(text)
        self._said_at = time.monotonic()


def _mean(loss: float | None) -> str:
    return "mean loss not finite" if loss is None else f"mean loss {loss:.4f}"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


# --- the picture -------------------------------------------------------------------------------------------------------


def picture(course: Course) -> RenderableType:
    """One frame, as wide as the terminal and at most as high."""
    width, height = output.err.size
    rows = min(_PLOT_ROWS, height - _OTHER_ROWS)
    curve = (
        plot.plot([plot.Line(list(course.points))], width=min(width - 1, 100), height=rows)
        if rows >= _LEAST_ROWS
        else []
    )
    head = Text(output.title_of(course.spec), "bold", no_wrap=True, overflow="ellipsis")
    return Group(head, _bar(course, width), *curve)


def _bar(course: Course, width: int) -> Table:
    """Status, epoch, bar, steps, speed, time to go, loss: less of it where there is less room."""
    grid = Table.grid(padding=(0, 1), expand=True)
    cells: list[RenderableType] = [output.status(course.status), course.epoch]
    if width >= _NARROW:
        cells += [ProgressBar(total=course.total_steps, completed=course.steps_done)]
        cells += [f"{course.steps_done:,}/{course.total_steps:,}"]
    if width >= _WIDE:
        cells += [course.speed]
    cells += [course.eta, course.loss]
    for cell in cells:
        grid.add_column(no_wrap=True, ratio=1 if isinstance(cell, ProgressBar) else None)
    grid.add_row(*cells)
    return grid
