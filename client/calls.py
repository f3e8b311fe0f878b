"""Calls that several make, and how what is sent is written."""

import base64
import os
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2

from client.errors import ClientError
from client.views import JobView
from client.wire import Call, Caller

DEFAULT_URL = "http://127.0.0.1:8000"
_PAGE = 100  # jobs, sweeps or models a page, at most
_SIDE = 28  # pixels of an image


def options_of(url: str | None, key: str | None, timeout_s: float, *, trust_env: bool) -> tuple[str, dict[str, Any]]:
    """Where the server is, and what an HTTP client is made with. Raises ClientError for what is no address or no key."""
    url = (url or os.environ.get("DESCENT_URL") or DEFAULT_URL).rstrip("/")
    if not _is_address(url):
        raise ClientError(f"{url!r} is no address of a server: it should be like {DEFAULT_URL} (DESCENT_URL)")
    key = (key or os.environ.get("DESCENT_API_KEY") or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ClientError("that is no key (DESCENT_API_KEY): a key is of the form dsc_..., in plain letters and digits")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return url, {"base_url": url, "headers": headers, "timeout": timeout_s, "trust_env": trust_env}


def _is_address(url: str) -> bool:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 1) < 1 << 16


def creation(path: str, spec: Any, key: str | None) -> Call:
    """A call that makes something, once however often it is sent: the server knows the key again."""
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    return Call(method="POST", path=path, json=spec, headers=headers)


def preview(path: str, spec: Any) -> Call:
    return Call(method="POST", path=path, json=spec, params={"validate_only": "true"})


async def listed(
    caller: Caller, path: str, name: str, params: dict[str, Any], limit: int | None
) -> AsyncGenerator[Any, None]:
    """All items of all pages, or so many at most."""
    after, left = None, limit
    while left is None or left > 0:
        asked = params | {"after": after, "limit": _PAGE if left is None else min(_PAGE, left)}
        page = await caller.json(Call(method="GET", path=path, params=asked))
        for item in page[name]:
            yield item
        after = page["next"]
        left = None if left is None else left - len(page[name])
        if after is None:
            return


def id_of(job: str | JobView) -> str:
    return job if isinstance(job, str) else job.id


def is_one_image(images: Any) -> bool:
    """Whether it is an image and no list of them: a path, bytes, or 784 or 28x28 numbers."""
    if isinstance(images, str | bytes | os.PathLike):
        return True
    if hasattr(images, "shape"):
        return tuple(images.shape) in ((_SIDE * _SIDE,), (_SIDE, _SIDE))
    if not isinstance(images, list | tuple):
        return False
    if len(images) == _SIDE * _SIDE:
        return isinstance(images[0], int | float)
    return len(images) == _SIDE and all(isinstance(row, list | tuple) and len(row) == _SIDE for row in images)


def as_json(image: Any) -> Any:
    """A picture as base64, an array as lists. A text is the path of a file, unless it is a data URL."""
    if isinstance(image, os.PathLike) or (isinstance(image, str) and not image.startswith("data:")):
        image = Path(image).read_bytes()
    if isinstance(image, bytes):
        return base64.b64encode(image).decode("ascii")
    return image.tolist() if hasattr(image, "tolist") else image
