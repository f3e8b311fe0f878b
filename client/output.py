"""How things are shown: data on stdout, everything else on stderr; tables for people, JSON for programs."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client import plot

_WIDE = 200  # columns of what is not a terminal, so that nothing is cut for a program that reads it
_FULL_ID_FROM = 140  # columns; a narrower terminal shows the end of an id, which commands take as well
_ENDING = 8
_GAP = 2  # between columns
_RULE = box.Box("    \n    \n ── \n    \n    \n    \n    \n    \n")  # one line, below the heads
_BROKEN_PIPE = 141  # as a shell says of a command that SIGPIPE has ended

STATUS_STYLES = {
    "succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "dim", "paused": "magenta",
}  # fmt: skip
VERDICT_STYLES = {"good": "green", "diverged": "red", "oscillating": "yellow", "too_slow": "yellow"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        end_quietly()


def _console(*, stderr: bool) -> Console:
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if is_terminal else _WIDE)


out = _console(stderr=False)
err = _console(stderr=True)


def end_quietly(code: int = _BROKEN_PIPE) -> NoReturn:
    """Whoever read our output has enough, or it cannot be written: what is left of it goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code)


def emit(text: str) -> None:
    """A line on stdout as it is, at once: nothing wraps it."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        end_quietly()


def emit_bytes(content: bytes) -> None:
    """A file on stdout."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        end_quietly()


def emit_json(value: object) -> None:
    """One JSON value, in one line."""
    emit(json.dumps(value))


def show(*parts: Any) -> None:
    """Tables and text on stdout; a program that reads them gets no padding."""
    for part in parts:
        if out.is_terminal:
            out.print(part)
            continue
        with out.capture() as captured:
            out.print(part)
        emit("\n".join(line.rstrip() for line in captured.get().splitlines()))


def tell(text: str | Text, style: str = "") -> None:
    """What is no data: on stderr."""
    err.print(text, style=style or None, soft_wrap=True)


# --- values ------------------------------------------------------------------------------------------------------------


def short(job_id: str) -> str:
    """An id as a table has room for it: the end of it, on a terminal that is not wide."""
    return job_id if not out.is_terminal or out.width >= _FULL_ID_FROM else job_id[-_ENDING:]


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def last_loss(latest: Mapping[str, Any] | None) -> str:
    """Of a job: empty as long as there is none."""
    return "" if latest is None else "not finite" if latest["loss"] is None else f"{latest['loss']:.4g}"


def rate_of(rate: float | Mapping[str, Any]) -> str:
    """A learning rate, or a schedule by its name and what it begins with."""
    if isinstance(rate, Mapping):
        first = next((rate[name] for name in ("initial", "start", "max_learning_rate") if name in rate), None)
        return f"{rate['schedule']}" + (f" {first:g}" if isinstance(first, int | float) else "")
    return f"{rate:g}"


def optimizer_of(optimizer: str | Mapping[str, Any]) -> str:
    return str(optimizer["name"]) if isinstance(optimizer, Mapping) else optimizer


def title_of(spec: Mapping[str, Any]) -> str:
    """What is trained, in a few words."""
    name = f"{spec['name']}: " if spec.get("name") else ""
    epochs = f"{spec['epochs']} epoch{'s' if spec['epochs'] != 1 else ''}"
    return f"{name}{optimizer_of(spec['optimizer'])} {rate_of(spec['learning_rate'])}, {spec['dataset']}, {epochs}"


def age(moment: str | None) -> str:
    """How long ago, in the largest unit that fits."""
    if not moment:
        return ""
    seconds = max(0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds:.0f}s"


def duration(seconds: float | None) -> str:
    """`7.3 s`, or minutes and hours as a clock has them."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def status(word: str) -> Text:
    return Text(word, STATUS_STYLES.get(word, ""))


def verdict(found: Mapping[str, Any] | None) -> Text:
    """A run's verdict in a word."""
    outcome = found["outcome"] if found else ""
    return Text(outcome.replace("_", " "), VERDICT_STYLES.get(outcome, ""))


# --- tables ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a table: `most` characters of it are shown. Where room is short the highest `rank` goes first, and if that
    is not enough, a column is cut to its `least`."""

    name: str
    right: bool = False
    most: int = 100
    least: int = 100
    rank: int = 0


def table(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table without vertical lines, no wider than the terminal as long as there are columns with a rank to leave out.

    Such a column is left out as well where all of it is empty.
    """
    kept = [place for place, column in enumerate(columns) if not column.rank or any(str(row[place]) for row in rows)]
    widths = [
        min(max(cell_len(column.name), *(cell_len(str(row[place])) for row in rows), 0), column.most)
        for place, column in enumerate(columns)
    ]
    while sum(widths[place] + _GAP for place in kept) > out.width + _GAP:
        last = max(kept, key=lambda place: columns[place].rank)
        if not columns[last].rank:
            widths = [min(width, column.least) for width, column in zip(widths, columns, strict=True)]
            break
        kept.remove(last)
    lines = _RULE if out.is_terminal else None
    gap = _GAP - 1 if lines else _GAP  # a box has a blank between columns
    made = Table(box=lines, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for place in kept:
        column = columns[place]
        made.add_column(column.name, justify="right" if column.right else "left", no_wrap=True, max_width=widths[place])
    for row in rows:
        made.add_row(*(row[place] for place in kept))
    return made


def pairs(rows: Iterable[tuple[str, Any]]) -> Table:
    """Names and values below each other; what is empty is left out."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        if value is not None and str(value):
            made.add_row(name, value if isinstance(value, Text) else str(value))
    return made


def curve(values: Sequence[float | None], width: int) -> Text:
    return Text(plot.sparkline(values, width), "cyan")
