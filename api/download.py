"""A job's model to take away: in four formats, whole or in part, or not at all when the client has it (RFC 9110)."""

import hashlib
import logging
import time
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from api.conditional import CONDITIONAL, is_known, refuse_another, wanted_part
from api.problems import BYTES, documented, headers
from api.state import JobId, State, known, read_model, state_of
from api.strict import StrictRoute
from api.turns import turn
from core.jobs import artifacts
from core.jobs.store import StoredModel
from core.training import export

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)
log = logging.getLogger(__name__)

_MEDIA_TYPE = "application/octet-stream"
_ALWAYS = ("ETag", "Content-Disposition", "Accept-Ranges")


class ModelQuery(BaseModel):
    format: Literal["pdparams", "safetensors", "inference", "onnx"] = Field(
        "pdparams",
        description="`pdparams` for `paddle.load` and the lesson's class, `safetensors` for NumPy alone, `inference` a zip for "
        "`paddle.inference`, `onnx` for ONNX Runtime and others.",
    )


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {_MEDIA_TYPE: BYTES}, "description": "The whole file.", **headers(*_ALWAYS)},
    206: {
        "content": {_MEDIA_TYPE: BYTES},
        "description": "The part that `Range` asks for.",
        **headers(*_ALWAYS, "Content-Range"),
    },
    **CONDITIONAL,
    **documented(404, 409, 410, 416, 422, 500, 503),
}


@router.get("/{job_id}/model", responses=_RESPONSES, response_class=Response, summary="Download the trained weights")
async def model(job_id: JobId, query: Annotated[ModelQuery, Query()], request: Request) -> Response:
    """The trained network. `inference` and `onnx` take `images`, float32 [N, 1, 28, 28] from 0 to 1, and give probabilities
    [N, 10]; they are made when they are first asked for, which takes seconds.

    A job that was stopped on its way gives the weights it had then; the job's `model.partial` says so. A part of the file comes
    with `Range`, one range of bytes; to be sure that it is of the same file, send its ETag as `If-Range`.
    """
    return await _answer(known(job_id), query.format, request)


@router.head(
    "/{job_id}/model",
    responses={
        200: {"content": {_MEDIA_TYPE: BYTES}, "description": "It can be had.", **headers(*_ALWAYS)},
        **CONDITIONAL,
        **documented(404, 409, 410, 422, 500, 503),
    },
    response_class=Response,
    summary="How long the trained weights are, and their ETag",
)
async def model_head(job_id: JobId, query: Annotated[ModelQuery, Query()], request: Request) -> Response:
    """As GET, without the content."""
    return await _answer(known(job_id), query.format, request)


async def _answer(job_id: str, format: str, request: Request) -> Response:
    content = await _content(state_of(request), job_id, format)
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    refuse_another(request, etag)
    if is_known(etag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers={"ETag": etag})
    ending = artifacts.EXPORTS.get(format, format)
    about = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{job_id}.{ending}"',
    }
    if request.method == "HEAD":
        return Response(media_type=_MEDIA_TYPE, headers=about | {"Content-Length": str(len(content))})
    part = wanted_part(request, etag, len(content))
    if part is None:
        return Response(content, media_type=_MEDIA_TYPE, headers=about)
    about["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(content)}"
    return Response(content[part.start : part.stop], 206, about, _MEDIA_TYPE)


# --- the content -------------------------------------------------------------------------------------------------------


async def _content(state: State, job_id: str, format: str) -> bytes:
    """The file, verified. Raises NotFound, ModelNotReady, ModelDeleted, ModelUnsupported, ArtifactCorrupt, Unavailable."""
    files = state.files
    if format in artifacts.FORMATS:

        def read(stored: StoredModel) -> bytes:
            return artifacts.read_verified(files, stored.files[format])

        return (await read_model(state, job_id, read))[1]

    def read_export(stored: StoredModel) -> bytes | None:
        return artifacts.read_export(files, stored.files["safetensors"], format)

    _, content = await read_model(state, job_id, read_export)
    if content is None:
        async with turn(state.exporting, "other files are being made"):
            _, content = await read_model(state, job_id, read_export)  # who waited with us may have made it
            content = content or await _made(state, job_id, format)
    return content


async def _made(state: State, job_id: str, format: str) -> bytes:
    """Make the file from the weights, and keep it for the next who asks."""
    files = state.files
    stored, weights = await read_model(
        state, job_id, lambda it: _checked(artifacts.read_verified(files, it.files["safetensors"]))
    )
    began = time.monotonic()
    content = await export.made(format, weights)
    seconds = round(time.monotonic() - began, 2)
    log.info("model file made", extra={"job_id": job_id, "format": format, "seconds": seconds})
    source = stored.files["safetensors"]
    try:
        await to_thread.run_sync(artifacts.publish_export, files, source, format, content, limiter=state.fetching)
    except OSError as error:  # the file is as good as if it could be kept
        log.warning("the file cannot be kept", extra={"job_id": job_id, "format": format, "reason": str(error)})
    return content


def _checked(content: bytes) -> bytes:
    """The weights of the network. Raises ModelUnsupported for others, ArtifactCorrupt for what is no safetensors file."""
    from core.training.predictor import Predictor

    Predictor.from_safetensors(content)
    return content
