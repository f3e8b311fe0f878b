"""Which of an answer's forms a client wants: `Accept` (RFC 9110, 12.5.1)."""

import re
from collections.abc import Iterable
from functools import lru_cache

_QUALITY = re.compile(r"q=(0(?:\.\d*)?|1(?:\.0*)?)")


def preferred(accept: str, offered: Iterable[str]) -> str | None:
    """The media type that is wanted most: by its quality, then by how exactly it is named, then the first. None: none is.

    What is no media range is left out of account, and so is a quality that is none; without any range all is wanted alike.
    """
    if accept in ("", "*/*"):
        return next(iter(offered), None)
    ranges = _ranges(accept)
    if not ranges:
        return next(iter(offered), None)
    wishes = {media: _wish(ranges, media) for media in offered}
    best = max(wishes, key=wishes.__getitem__, default=None)
    return best if best and wishes[best][0] else None


def _wish(ranges: dict[str, float], media: str) -> tuple[float, int]:
    """Its quality, and how exactly the range that says so names it: the most exact one counts."""
    candidates = ((media, 2), (media.partition("/")[0] + "/*", 1), ("*/*", 0))
    return next(((ranges[name], exact) for name, exact in candidates if name in ranges), (0.0, 0))


@lru_cache(maxsize=256)
def _ranges(accept: str) -> dict[str, float]:
    ranges = {}
    for entry in accept.lower().split(","):
        media, *parameters = [part.strip() for part in entry.split(";")]
        if "/" in media:
            qualities = (_QUALITY.fullmatch(parameter.replace(" ", "")) for parameter in parameters)
            ranges[media] = next((float(quality[1]) for quality in qualities if quality), 1.0)
    return ranges
