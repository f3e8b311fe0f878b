"""Predictions from saved weights."""

import base64
import time
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic_core import to_json

from api.form import FormRoute
from api.problems import documented
from api.state import drawn, state_of
from core.catalogue import DATASETS
from core.errors import FieldProblem, InvalidRequest
from core.jobs.store import StoredModel

if TYPE_CHECKING:  # a thread loads NumPy beside the first requests (predicting.py)
    from core.training.predictor import Floats

router = APIRouter(tags=["predict"], route_class=FormRoute)

MAX_IMAGES = 256
MAX_PICTURE_CHARACTERS = 2_666_668  # base64 of the 2 MB that a picture may have
_AT_ONCE = 4  # lists that are checked without a thread: 0.2 ms


def _list(length: int, items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": length, "maxItems": length, "items": items}


_PIXEL = {"type": "number", "minimum": 0, "maximum": 255}
_PICTURE = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^(data:image/(png|jpeg);base64,)?[A-Za-z0-9+/]+={0,2}$",
    "maxLength": MAX_PICTURE_CHARACTERS + len("data:image/jpeg;base64,"),
}
# What an image is, for the document. It is checked by hand (pictures.py): a union would name each of its failures.
_SHAPES = WithJsonSchema({"anyOf": [_list(28, _list(28, _PIXEL)), _list(784, _PIXEL), _PICTURE]})
Image = Annotated[Any, _SHAPES]
# Either `image` or `images`; null is as good as left out.
_EITHER: dict[str, Any] = {
    "if": {"required": ["image"], "properties": {"image": {"not": {"type": "null"}}}},
    "then": {"properties": {"images": {"type": "null"}}},
    "else": {"required": ["images"], "properties": {"images": {"type": "array"}}},
}


class PredictRequest(BaseModel):
    """One `image` or up to 256 `images`: 28x28 lists, flat lists of 784, or PNG or JPEG pictures (base64, or a data URL).

    A picture has at most 16 megapixels, all of a request together 32.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"model": "best", "image": [0.0] * 784}], **_EITHER},
    )

    model: str = Field(
        "best",
        max_length=100,
        description="An alias, a job's id, or `best`, `latest` (of mnist), `best:fashion-mnist`, `latest:fashion-mnist`.",
    )
    image: Image | None = None
    images: Annotated[list[Image], Field(min_length=1, max_length=MAX_IMAGES)] | None = None
    range: Literal[1, 255] = Field(1, description="The brightest value of a list: 1, or 255 for bytes.")
    top_k: int = Field(3, ge=1, le=10)


_FILE = {"type": "string", "format": "binary", "maxLength": 2_000_000}
_FORM = {  # the same as files, for the document: form.py reads them into a PredictRequest
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "image": {
            "type": "array",
            "items": _FILE,
            "minItems": 1,
            "maxItems": MAX_IMAGES,
            "description": "PNG or JPEG.",
        },
        "model": {"type": "string", "maxLength": 100, "default": "best"},
        "range": {"enum": [1, 255], "default": 1},
        "top_k": {"type": "integer", "minimum": 1, "maximum": 10, "default": 3},
    },
    "required": ["image"],
}


class PredictQuery(BaseModel):
    debug: bool = Field(False, description="Whether each prediction has `seen`.")


class UsedModel(BaseModel):
    job_id: str
    dataset: str = Field(description="What the model was trained on; GET /datasets tells the classes.")
    sha256: str
    test_accuracy: float | None


class Named(BaseModel):
    """A class of the model's data set."""

    class_: int = Field(alias="class", description="Its number, from 0.")
    label: str = Field(description="Its name: `7`, `Sneaker`.")
    digit: int | None = Field(description="The same number where the classes are digits; null for other data sets.")


class Ranked(Named):
    probability: float


class Prediction(Named):
    confidence: float
    probabilities: list[float] = Field(description="Of the classes, in their order.")
    top_k: list[Ranked]
    seen: str = Field(
        "",
        description="With `debug=true`: base64 of a PNG of 28x28 greys, what the network saw: value x 256, to the nearest.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"},
    )


class PredictAnswer(BaseModel):
    model: UsedModel
    predictions: list[Prediction]
    latency_ms: float


@router.post(
    "/predict",
    response_model=PredictAnswer,
    responses=documented(400, 404, 409, 410, 413, 415, 422, 500, 503),
    summary="Predict digits or clothes",
    openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def predict(body: PredictRequest, query: Annotated[PredictQuery, Query()], request: Request) -> Response:
    """What one or more images show, from the weights of a job that has succeeded, in the classes of its data set."""
    began = time.perf_counter()
    state = state_of(request)
    images = _images(body)
    seen: list[Floats] = []

    async def prepare(stored: StoredModel) -> "Floats":
        seen[:] = [await prepared(stored)]
        return seen[0]

    async def prepared(stored: StoredModel) -> "Floats":
        if len(images) <= _AT_ONCE and not _has_pictures(images):
            return _prepared(images, body.range, stored.dataset)
        return await drawn(state, _prepared, images, body.range, stored.dataset)

    stored, probabilities = await state.predicting.of(state.store, body.model, prepare)
    named = _named(stored.dataset)
    predictions = [_prediction(row, body.top_k, named) for row in probabilities.tolist()]
    if query.debug:
        pictures = await drawn(state, _seen, seen[0])
        predictions = [each | {"seen": picture} for each, picture in zip(predictions, pictures, strict=True)]
    seconds = time.perf_counter() - began
    state.metrics.predicted(len(predictions), seconds)
    answer = {"model": _used(stored), "predictions": predictions, "latency_ms": round(seconds * 1000, 2)}
    return Response(to_json(answer), media_type="application/json")


def _images(body: PredictRequest) -> list[tuple[str, Any]]:
    """The images with their places in the request."""
    if (body.image is None) == (body.images is None):
        raise InvalidRequest(FieldProblem("", "give either image or images"))
    if body.images is None:
        return [("/image", body.image)]
    return [(f"/images/{n}", image) for n, image in enumerate(body.images)]


def _prepared(images: list[tuple[str, Any]], brightest: int, dataset: str) -> "Floats":
    import numpy as np

    from core.training import pictures

    if not _has_pictures(images):
        return pictures.from_lists(images, brightest)
    fit, budget = pictures.FITS[dataset], pictures.Budget()
    prepared = np.empty((len(images), pictures.SIZE, pictures.SIZE), np.float32)
    for number, (place, image) in enumerate(images):
        prepared[number] = pictures.prepare(image, pointer=place, brightest=brightest, fit=fit, budget=budget)
    return prepared


def _has_pictures(images: list[tuple[str, Any]]) -> bool:
    return any(isinstance(image, str | bytes) for _, image in images)


def _seen(images: "Floats") -> list[str]:
    from core.training import pictures

    return [base64.b64encode(pictures.seen(image)).decode() for image in images]


def _used(stored: StoredModel) -> dict[str, Any]:
    """`UsedModel`, as it is written."""
    return {
        "job_id": stored.job_id,
        "dataset": stored.dataset,
        "sha256": stored.files["safetensors"]["sha256"],
        "test_accuracy": stored.test_accuracy,
    }


@cache
def _named(dataset: str) -> list[dict[str, Any]]:
    """`Named`, as it is written, of each class."""
    facts = DATASETS[dataset]
    return [
        {"class": number, "label": label, "digit": number if facts.are_digits else None}
        for number, label in enumerate(facts.classes)
    ]


def _prediction(probabilities: list[float], top_k: int, named: list[dict[str, Any]]) -> dict[str, Any]:
    """`Prediction`, as it is written."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)
    return {
        **named[order[0]],
        "confidence": probabilities[order[0]],
        "probabilities": probabilities,
        "top_k": [{**named[number], "probability": probabilities[number]} for number in order[:top_k]],
    }
