"""The Open Inference Protocol v2 over the same models, for clients that other servers have: tritonclient, KServe's, ...

https://github.com/kserve/open-inference-protocol, with its binary tensor data extension. A model is called what `/predict`
calls it. Its version is the beginning of its weights' digest, so whoever names a version knows which weights answer.
"""

import time
from collections.abc import Iterator
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from api import tensors
from api.infer_request import INPUT, OUTPUTS, InferRequest, InputTensor, RequestedOutput
from api.models import Name
from api.problems import BYTES, documented, headers
from api.state import State, drawn, state_of
from api.strict import MAX_BODY_BYTES
from core.errors import FieldProblem, InvalidRequest, NotFound, Unavailable
from core.jobs.store import StoredModel

if TYPE_CHECKING:  # a thread loads NumPy beside the first requests (predicting.py)
    from core.training.predictor import Floats

router = APIRouter(prefix="/v2", tags=["inference"], route_class=tensors.TensorRoute)

_VERSION_DIGITS = 12
_AT_ONCE = 4  # images of a list that are checked without a thread: 0.2 ms

Version = Annotated[
    str,
    Path(
        description="The first 12 digits of the SHA-256 of the model's safetensors file.",
        json_schema_extra={"pattern": f"^[0-9a-f]{{{_VERSION_DIGITS}}}$"},
    ),
]


# --- what is answered --------------------------------------------------------------------------------------------------


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any length.")


class ModelMetadata(BaseModel):
    name: str = Field(description="As it was asked for.")
    versions: list[str] = Field(description="The one that the name names now.")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class OutputSizes(BaseModel):
    binary_data_size: int = Field(description="Bytes of this tensor behind the JSON.")


class OutputTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[float] | None = Field(None, description="Row-major and flat. Not there in the binary form.")
    parameters: OutputSizes | None = Field(None, description="In the binary form only.")


class InferAnswer(BaseModel):
    model_name: str = Field(description="As it was asked for.")
    model_version: str
    id: str = Field("", description="That of the request, if it had one.")
    parameters: dict[str, str] = Field(
        description="`job_id` and `dataset` of the model, which tells what a label means."
    )
    outputs: list[OutputTensor]


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


# --- the routes --------------------------------------------------------------------------------------------------------


@router.get("", summary="What this server is, and which extensions of the protocol it has")
async def server() -> ServerMetadata:
    return ServerMetadata(name="descent", version=package_version("descent"), extensions=["binary_tensor_data"])


@router.get("/health/live", summary="Does the process answer?")
async def live() -> ServerLive:
    return ServerLive(live=True)


@router.get("/health/ready", responses=documented(503), summary="Can predictions be had?")
async def ready(request: Request) -> ServerReady:
    """Without a worker, too; `/readyz` tells whether a job could run."""
    try:
        await state_of(request).store.count_queued()
    except Unavailable:
        raise Unavailable("Redis cannot be reached, so no model can be found") from None
    return ServerReady(ready=True)


@router.get("/models/{model}", responses=documented(404, 409, 410, 503), summary="A model's tensors, and its version")
async def model(model: Name, request: Request) -> ModelMetadata:
    return await _metadata(model, None, request)


@router.get(
    "/models/{model}/versions/{version}", responses=documented(404, 409, 410, 503), summary="The same of this version"
)
async def model_version(model: Name, version: Version, request: Request) -> ModelMetadata:
    return await _metadata(model, version, request)


@router.get("/models/{model}/ready", responses=documented(404, 409, 410, 500, 503), summary="Can this model predict?")
async def model_ready(model: Name, request: Request) -> ModelReady:
    """Its file is read if it is not in memory: a damaged one is told here as well."""
    await state_of(request).predicting.load(await _found(model, None, request))
    return ModelReady(name=model, ready=True)


@router.get(
    "/models/{model}/versions/{version}/ready",
    responses=documented(404, 409, 410, 500, 503),
    summary="Can this version predict?",
)
async def version_ready(model: Name, version: Version, request: Request) -> ModelReady:
    await state_of(request).predicting.load(await _found(model, version, request))
    return ModelReady(name=model, ready=True)


_INFER: dict[str, Any] = {
    "response_model": InferAnswer,
    "responses": {
        200: {"content": {tensors.BINARY: BYTES}, **headers(sometimes=[tensors.JSON_LENGTH])},
        **documented(400, 404, 409, 410, 413, 415, 500, 503),
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": tensors.JSON_LENGTH,
                "in": "header",
                "required": False,
                "description": "How many bytes of the body are its JSON; the raw tensor follows. Left out: all.",
                "schema": {"type": "integer", "minimum": 1, "maximum": MAX_BODY_BYTES},
            }
        ],
        "requestBody": {"content": {tensors.BINARY: {"schema": BYTES["schema"] | {"maxLength": MAX_BODY_BYTES}}}},
    },
}


@router.post("/models/{model}/infer", **_INFER, summary="Predict")
async def infer(model: Name, body: InferRequest, request: Request) -> Response:
    """Probabilities of the ten classes, and the class with the highest, of each image. As JSON, or as raw bytes behind it."""
    return await _inferred(model, None, body, request)


@router.post("/models/{model}/versions/{version}/infer", **_INFER, summary="Predict with this version, or not at all")
async def infer_version(model: Name, version: Version, body: InferRequest, request: Request) -> Response:
    return await _inferred(model, version, body, request)


async def _inferred(name: str, version: str | None, body: InferRequest, request: Request) -> Response:
    began, state, tensor = time.perf_counter(), state_of(request), body.inputs[0]
    assert isinstance(request, tensors.TensorRequest)
    raw = await request.raw()

    async def prepare(stored: StoredModel) -> "Floats":
        _refuse_other(version, stored)
        return await _images(tensor, raw, state)

    stored, probabilities = await state.predicting.of(state.store, name, prepare)
    state.metrics.predicted(len(probabilities), time.perf_counter() - began)
    facts = {
        "model_name": name,
        "model_version": _version_of(stored),
        "parameters": {"job_id": stored.job_id, "dataset": stored.dataset},
    }
    return tensors.answered(facts | ({"id": body.id} if body.id else {}), _outputs(body, probabilities))


async def _images(tensor: InputTensor, raw: memoryview, state: State) -> "Floats":
    """Float32 [N, 28, 28]. Raises InvalidRequest, and Unavailable when too many long lists wait."""
    place, shape = "/inputs/0", (tensor.shape[0], 28, 28)
    if tensor.parameters.binary_data_size is not None:
        if tensor.parameters.binary_data_size != len(raw):
            raise InvalidRequest(
                FieldProblem(f"{place}/parameters/binary_data_size", "this is not how many bytes stand behind the JSON")
            )
        return tensors.from_bytes(raw, shape, pointer=place)
    if raw:
        raise InvalidRequest(FieldProblem("", "there are bytes behind the JSON that belong to no tensor"))
    data = tensor.data or []
    if tensor.shape[0] <= _AT_ONCE:
        return tensors.from_json(data, tensor.shape, pointer=place).reshape(shape)
    images = await drawn(state, lambda: tensors.from_json(data, tensor.shape, pointer=place))
    return images.reshape(shape)


def _outputs(body: InferRequest, probabilities: "Floats") -> Iterator[tensors.Output]:
    """Those that are asked for, in that order."""
    values = {"probabilities": probabilities, "label": probabilities.argmax(axis=1)}
    datatypes = {output["name"]: output["datatype"] for output in OUTPUTS}
    for output in body.outputs or [RequestedOutput(name=name) for name in ("probabilities", "label")]:
        own, usual = output.parameters.binary_data, body.parameters.binary_data_output
        yield tensors.Output(
            output.name, datatypes[output.name], values[output.name], is_binary=usual if own is None else own
        )


async def _found(name: str, version: str | None, request: Request) -> StoredModel:
    """Raises NotFound also when there is the model, but not of this version."""
    stored = await state_of(request).store.model(name)
    _refuse_other(version, stored)
    return stored


async def _metadata(name: str, version: str | None, request: Request) -> ModelMetadata:
    return ModelMetadata(
        name=name,
        versions=[_version_of(await _found(name, version, request))],
        platform="descent_safetensors",
        inputs=[TensorMetadata(**INPUT)],
        outputs=[TensorMetadata(**output) for output in OUTPUTS],
    )


def _refuse_other(version: str | None, stored: StoredModel) -> None:
    if version not in (None, _version_of(stored)):
        raise NotFound(f"this model has no such version; it has {_version_of(stored)}")


def _version_of(stored: StoredModel) -> str:
    return str(stored.files["safetensors"]["sha256"][:_VERSION_DIGITS])
