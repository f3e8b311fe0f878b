"""Strokes on paper: what of a grey picture is ink, and what is paper, shade, a frame around the page, or dust."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

_LEAST_CONTRAST = 12  # of 255: less is a blank page with dirt in its file
_MOST_NOISE = 64  # of 255: what stands out more is ink, however uneven the paper is
_NOISE = 4  # standard deviations of the paper that are still paper
_FAINT = 0.06  # of the ink's darkness: less is paper, too
_SAMPLES = 64  # a side: where the paper is looked for
_SHADES = 64
_CLEARLY = 0.65  # of a picture
_PIECES_SIDE = 128  # cells of the longer side in which connected pieces are looked for
_MOST_PIECES = 32
_BAND = 0.12  # of a side: how near to an edge a frame lies
_SPECK = 0.015  # of all ink: less, by itself, is dust


def found(grey: Floats) -> Floats | None:
    """How much ink is where, 0 to 1, cut to where it is; float32 [H, W], 0 to 255, dark on light or light on dark.

    The paper is the plane through most of the picture, so it may be grey, and lit from a side. None when there is no ink.
    """
    paper, noise = _paper(grey)
    flat = grey - paper
    darker, lighter = np.maximum(-flat, 0), np.maximum(flat, 0)
    ink = darker if np.square(darker).sum() > np.square(lighter).sum() else lighter
    above = ink[ink >= _threshold(ink)]
    full = float(np.percentile(above, 90)) if above.size else 0.0
    if full < max(_LEAST_CONTRAST, min(1.5 * _NOISE * noise, _MOST_NOISE)):
        return None
    ink = np.where(ink > max(min(_NOISE * noise, full / 4), _FAINT * full), np.minimum(ink / full, 1), 0)
    ink *= _wanted(ink)
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else None


def _paper(grey: Floats) -> tuple[Floats, float]:
    """The brightness of the paper as a plane, and the standard deviation of its grain.

    Of the two shades of a picture the paper is the one that most of it has, or its edge where that is not clear; then what
    is far from the plane is left out.
    """
    rows, columns = (np.linspace(0, side - 1, min(side, _SAMPLES)).astype(np.intp) for side in grey.shape)
    levels = grey[np.ix_(rows, columns)].ravel()
    y, x = np.meshgrid(rows / len(grey), columns / grey.shape[1], indexing="ij")
    places = np.stack([np.ones(levels.size), y.ravel(), x.ravel()], axis=1)
    light = grey[np.ix_(rows, columns)] >= _threshold(levels)
    share = float(light.mean())
    if max(share, 1 - share) < _CLEARLY:
        share = float(np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]]).mean())
    near = light.ravel() == (share > 0.5)
    grain = 0.0
    for _ in range(4):
        chosen = places[near]
        plane = np.linalg.pinv(chosen.T @ chosen) @ (chosen.T @ levels[near])
        off = np.abs(levels - places @ plane)
        grain = 1.4826 * float(np.median(off[near]))
        near = off <= max(2.5 * grain, 1)
    down, across = (np.arange(side, dtype=np.float32) / side for side in grey.shape)
    return (plane[0] + plane[1] * down[:, None] + plane[2] * across).astype(np.float32), grain


def _threshold(levels: Floats) -> float:
    """What parts the two shades of a picture best (Otsu 1979)."""
    least, span = float(levels.min()), max(float(np.ptp(levels)), 1)
    counts = np.bincount(((levels - least) * (_SHADES / span) * 0.999).astype(np.uint8).ravel(), minlength=_SHADES)
    below, mass = np.cumsum(counts[:-1]), np.cumsum(counts * np.arange(_SHADES))
    total, whole = counts.sum(), mass[-1]
    between = np.square(whole * below / total - mass[:-1]) / np.maximum(below * (total - below), 1)
    return least + (int(between.argmax()) + 1) * span / _SHADES


@dataclass(frozen=True)
class _Piece:
    """Connected ink, in cells."""

    label: int
    mass: float
    cells: Ints  # [2, n]: rows and columns

    @property
    def first(self) -> Ints:
        return self.cells.min(axis=1)

    @property
    def last(self) -> Ints:
        return self.cells.max(axis=1)

    def lies_along(self, first: Ints, last: Ints) -> bool:
        """Whether nearly all of it is near the edges of this rectangle."""
        sides = (last - first + 1)[:, None]
        depth = np.minimum(self.cells - first[:, None], last[:, None] - self.cells) / sides
        return bool((depth.min(axis=0) <= _BAND).mean() > 0.95)


def _wanted(ink: Floats) -> Mask:
    """Where the ink is that belongs to what is drawn: without frames around it, and without specks."""
    cell = -(-max(ink.shape) // _PIECES_SIDE)
    high, wide = (-(-side // cell) for side in ink.shape)
    padded = np.zeros((high * cell, wide * cell), np.float32)
    padded[: ink.shape[0], : ink.shape[1]] = ink
    cells = padded.reshape(high, cell, wide, cell).sum(axis=(1, 3))
    labels = _labels(cells > 0)
    masses = np.bincount(labels.ravel(), cells.ravel())
    largest = [label for label in np.argsort(masses)[::-1][:_MOST_PIECES].tolist() if masses[label] > 0]
    pieces = [_Piece(label, masses[label], np.array(np.nonzero(labels == label))) for label in largest]
    kept = list(_without_frames(pieces, np.array(cells.shape)))
    least = _SPECK * sum(piece.mass for piece in kept)
    wanted = np.zeros(len(masses), np.bool_)
    wanted[[piece.label for piece in kept if piece.mass >= least]] = True
    return wanted[labels].repeat(cell, axis=0).repeat(cell, axis=1)[: ink.shape[0], : ink.shape[1]]


def _without_frames(pieces: list[_Piece], page: Ints) -> Iterator[_Piece]:
    """A frame lies along the edges of the page or of a rectangle, or touches all sides, with something of size within."""
    zero, end = np.zeros(2, np.intp), page - 1
    for piece in pieces:
        first, last = piece.first, piece.last
        touches = bool((first == 0).any() or (last == end).any())
        is_around = bool((first == 0).all() and (last == end).all())
        is_outline = is_around or (touches and piece.lies_along(zero, end)) or piece.lies_along(first, last)
        inside = (
            other
            for other in pieces
            if other is not piece
            and (touches or ((other.first > first).all() and (other.last < last).all()))
            and (other.last - other.first + 1).max() >= 0.2 * (last - first + 1).max()
            and not other.lies_along(zero, end)
        )
        if not (is_outline and any(inside)):
            yield piece


def _labels(mask: Mask) -> Ints:
    """A number for each connected piece (of eight neighbours); 0 where nothing is.

    Each cell points to the greatest number around it, then to what that points to, until nothing changes.
    """
    size = mask.size
    labels = np.where(mask, np.arange(1, size + 1).reshape(mask.shape), 0)
    pointers = np.zeros(size + 1, np.intp)
    while True:
        across = np.pad(labels, 1)
        across = np.maximum(np.maximum(across[:-2], across[1:-1]), across[2:])
        around = np.maximum(np.maximum(across[:, :-2], across[:, 1:-1]), across[:, 2:])
        pointers[1:] = np.where(mask, around, 0).ravel()
        grown = pointers[pointers[pointers]][1:].reshape(mask.shape)
        if np.array_equal(grown, labels):
            return labels
        labels = grown
