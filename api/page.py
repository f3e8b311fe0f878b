"""The page at `/`: the files of `web/` as they are, and plotly.js out of its wheel.

Each stands below the digest of what it belongs to, so that a browser keeps it for ever and asks only for the page itself again.
The page is a client of the API like any other: nothing here knows a job.
"""

import gzip
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.conditional import etag_of, is_known, refuse_another
from core.errors import NotFound

router = APIRouter(include_in_schema=False)

WEB = Path(__file__).parent.parent / "web"
PLOTLY = "plotly.min.js"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_GZIP = re.compile(
    r"(?:^|,)\s*gzip\s*(?:,|$|;\s*q=(?!0(?:\.0*)?\s*(?:,|$)))", re.IGNORECASE
)  # and not with a quality of nothing
_FOR_EVER = "public, max-age=31536000, immutable"
# No inline script or style, nothing from elsewhere; pictures are drawn here (data: and blob:).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# plotly.js writes the style sheet of its maps, which we do not draw, unless an element with this id is there already.
_OWN_STYLE = re.compile(rb'getElementById\("([0-9a-f]{64})"\)')


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    text = await run_in_threadpool(_index)
    headers = {"ETag": etag_of(text), "Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
    refuse_another(request, headers["ETag"])
    if is_known(headers["ETag"], request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(text, media_type=_TYPES[".html"], headers=headers)


@router.api_route("/page/{digest}/{name}", methods=["GET", "HEAD"])
async def file(digest: str, name: str, request: Request) -> Response:
    packed = (await run_in_threadpool(_files)).get((digest, name))
    if packed is None and name == PLOTLY:
        packed = (await run_in_threadpool(_plotly)).get((digest, name))
    if packed is None:
        raise NotFound("no such file of the page; it may be of another version: load the page again")
    headers = {"Cache-Control": _FOR_EVER, "Vary": "Accept-Encoding"}
    if _GZIP.search(request.headers.get("accept-encoding", "")):
        headers["Content-Encoding"] = "gzip"
    else:
        packed = await run_in_threadpool(gzip.decompress, packed)
    return Response(packed, media_type=_TYPES[Path(name).suffix], headers=headers)


@cache
def _index() -> str:
    """The page itself, which names the digests that the others stand below."""
    digests = {digest for digest, _ in _files()}
    plotly = _plotly_file()
    own_style = _OWN_STYLE.search(plotly.read_bytes()) if plotly else None
    files = f"/page/{digests.pop()}"
    modules = sorted(name for _, name in _files() if name.endswith(".js") and name != "main.js")
    named = {
        "{files}": files,
        "{preload}": "\n    ".join(f'<link rel="modulepreload" href="{files}/{name}">' for name in modules),
        "{plotly}": f"/page/{_digest([plotly])}/{PLOTLY}" if plotly else "",
        "{plotly_style}": own_style[1].decode() if own_style else "no-plotly-style",
    }
    return re.sub("|".join(named), lambda name: named[name[0]], (WEB / "index.html").read_text("utf-8"))


@cache
def _files() -> Mapping[tuple[str, str], bytes]:
    paths = sorted(path for path in WEB.iterdir() if path.suffix in (".js", ".css", ".svg"))
    return _packed(paths)


@cache
def _plotly() -> Mapping[tuple[str, str], bytes]:
    """Compressing it takes 0.3 s: once a process, when somebody first looks at a chart."""
    path = _plotly_file()
    return _packed([path]) if path else {}


@cache
def _plotly_file() -> Path | None:
    """plotly.js where the package is installed (extra `ui`), without importing it."""
    try:
        path = Path(str(distribution("plotly").locate_file(f"plotly/package_data/{PLOTLY}")))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _packed(paths: list[Path]) -> Mapping[tuple[str, str], bytes]:
    digest = _digest(paths)
    return {(digest, path.name): gzip.compress(path.read_bytes(), mtime=0) for path in paths}


def _digest(paths: list[Path]) -> str:
    """Of names and contents."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]
