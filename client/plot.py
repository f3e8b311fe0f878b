"""Curves, sparklines and bars made of characters, for a terminal."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

_BLANK = 0x2800  # Unicode's braille patterns: 2 x 4 dots in a cell
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row from above, then by column
_LABEL = 6  # characters of the numbers at the left
_LOG_FROM = 20  # a range of so much is drawn on a logarithmic scale
_STEPS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
STYLES = ("cyan", "yellow", "green", "magenta", "blue", "red", "white")


@dataclass(frozen=True)
class Line:
    """A curve: its points in the order of x. A y of None or that is not finite is a gap."""

    points: Sequence[tuple[float, float | None]]
    style: str = STYLES[0]


def plot(lines: Sequence[Line], *, width: int, height: int, log_x: bool = False, unit: str = "step") -> list[Text]:
    """Curves in one frame of `height` rows and one more for the x axis, at most `width` characters wide; of a point none."""
    scaled = [list(_finite(line.points, log_x=log_x)) for line in lines]
    everything = [point for points in scaled for point in points]
    columns = width - _LABEL - 2
    if len(everything) < 2 or columns < 4 or height < 2:
        return []
    low, high = min(y for _, y in everything), max(y for _, y in everything)
    is_log = low > 0 and high / low >= _LOG_FROM
    left, right = min(x for x, _ in everything), max(x for x, _ in everything)
    canvas = _Canvas(columns, height)
    for points, line in zip(scaled, lines, strict=True):
        canvas.draw(
            [(_share(x, left, right), _share(_on(y, is_log), _on(low, is_log), _on(high, is_log))) for x, y in points],
            line.style,
        )
    labels = {0: _number(high), height - 1: _number(low)}
    rows = [
        Text(f"{labels.get(row, ''):>{_LABEL}} ", "dim").append("│", "dim") + canvas.row(row) for row in range(height)
    ]
    ends = [10**x if log_x else x for x in (left, right)]
    first, last = _number(ends[0]), f"{unit} {_number(ends[1])}"
    return [*rows, Text(f"{'':{_LABEL}} └{first}{last:>{max(columns - len(first), 0)}}"[:width], "dim")]


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The course of values in `width` characters, on a logarithmic scale where they spread far; a gap is blank."""
    if not any(_is_number(value) for value in values):
        return ""
    pieces = [_piece(values, index, width) for index in range(min(width, len(values)))]
    known = [value for value in pieces if value is not None]
    low, high = min(known), max(known)
    is_log = low > 0 and high / low >= _LOG_FROM
    ends = _on(low, is_log), _on(high, is_log)
    return "".join(" " if v is None else _STEPS[round(_share(_on(v, is_log), *ends) * 7)] for v in pieces)


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 to 1) of `width` characters, to an eighth of one."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


class _Canvas:
    """Braille dots, with a style for each cell: that of the last line drawn there."""

    def __init__(self, columns: int, rows: int) -> None:
        self._width, self._height = columns * 2, rows * 4
        self._cells = [[_BLANK] * columns for _ in range(rows)]
        self._styles = [[""] * columns for _ in range(rows)]

    def draw(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Join points, each from 0 to 1 in x and in y (1 is above)."""
        dots = [(round(x * (self._width - 1)), round((1 - y) * (self._height - 1))) for x, y in points]
        for start, end in zip(dots, dots[1:] or dots, strict=False):
            for x, y in _between(start, end):
                self._cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
                self._styles[y // 4][x // 2] = style

    def row(self, number: int) -> Text:
        text = Text()
        for cell, style in zip(self._cells[number], self._styles[number], strict=True):
            text.append(chr(cell) if cell != _BLANK else " ", style)
        return text


def _between(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots of a straight line, both ends among them."""
    (x0, y0), (x1, y1) = start, end
    count = max(abs(x1 - x0), abs(y1 - y0), 1)
    for step in range(count + 1):
        yield round(x0 + (x1 - x0) * step / count), round(y0 + (y1 - y0) * step / count)


def _finite(points: Sequence[tuple[float, float | None]], *, log_x: bool) -> Iterator[tuple[float, float]]:
    for x, y in points:
        if y is not None and math.isfinite(y) and (x > 0 or not log_x):
            yield (math.log10(x) if log_x else x), y


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _piece(values: Sequence[float | None], index: int, width: int) -> float | None:
    """The mean of one of the equal parts that values fall into."""
    count = min(width, len(values))
    part = values[index * len(values) // count : (index + 1) * len(values) // count]
    known = [value for value in part if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _on(value: float, is_log: bool) -> float:
    return math.log10(value) if is_log else value


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
