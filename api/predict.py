"""Predictions from saved weights."""

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from api.problems import documented
from api.state import read_model, state_of
from api.strict import StrictRoute
from core.errors import FieldProblem, InvalidRequest, NotFound
from core.jobs import artifacts
from core.jobs.store import StoredModel
from core.settings import Settings

if TYPE_CHECKING:  # NumPy and what stands on it are loaded with the first prediction, not with the API
    from core.training.predictor import Predictor

router = APIRouter(tags=["predict"], route_class=StrictRoute)

MAX_IMAGES = 256
_MODELS_KEPT = 8


class PredictRequest(BaseModel):
    """One `image` or up to 256 `images`: 28x28 lists, flat lists of 784, or base64 PNG or JPEG pictures."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"model": "best", "image": [[0.0] * 28] * 28}]}
    )

    model: str = Field("best", max_length=100, description="`best`, `latest` or a job's id.")
    image: list[Any] | str | None = None
    images: Annotated[list[Any], Field(min_length=1, max_length=MAX_IMAGES)] | None = None
    range: Literal[1, 255] = Field(1, description="The brightest value of a list: 1, or 255 for bytes.")
    top_k: int = Field(3, ge=1, le=10)


class UsedModel(BaseModel):
    job_id: str
    sha256: str
    test_accuracy: float | None


class Ranked(BaseModel):
    digit: int
    probability: float


class Prediction(BaseModel):
    digit: int
    confidence: float
    probabilities: list[float] = Field(description="Of the digits 0 to 9.")
    top_k: list[Ranked]


class PredictAnswer(BaseModel):
    model: UsedModel
    predictions: list[Prediction]
    latency_ms: float


@router.post("/predict", responses=documented(400, 404, 409, 413, 415, 422, 500, 503), summary="Predict digits")
async def predict(body: PredictRequest, request: Request) -> PredictAnswer:
    """The digits in one or more images, from the weights of a job that has succeeded."""
    began = time.perf_counter()
    state = state_of(request)
    if body.model not in ("best", "latest") and not artifacts.JOB_ID.fullmatch(body.model):
        raise NotFound("a model is best, latest or a job's id")
    stored, predictions = await read_model(state, body.model, lambda it: _predictions(body, it, state.settings))
    used = UsedModel(
        job_id=stored.job_id, sha256=stored.files["safetensors"]["sha256"], test_accuracy=stored.test_accuracy
    )
    seconds = time.perf_counter() - began
    state.metrics.predicted(len(predictions), seconds)
    return PredictAnswer(model=used, predictions=predictions, latency_ms=round(seconds * 1000, 2))


def _predictions(body: PredictRequest, stored: StoredModel, settings: Settings) -> list[Prediction]:
    import numpy as np

    from core.training import predictor

    images = np.stack([predictor.prepare(i, pointer=p, brightest=body.range) for p, i in _images(body)])
    probabilities = _predictor(settings, stored).probabilities(images)
    return [_prediction(row.tolist(), body.top_k) for row in probabilities]


def _images(body: PredictRequest) -> list[tuple[str, Any]]:
    """The images with their places in the request."""
    if (body.image is None) == (body.images is None):
        raise InvalidRequest(FieldProblem("", "give either image or images"))
    if body.images is None:
        return [("/image", body.image)]
    return [(f"/images/{n}", image) for n, image in enumerate(body.images)]


def _prediction(probabilities: list[float], top_k: int) -> Prediction:
    order = sorted(range(10), key=lambda digit: -probabilities[digit])
    ranked = [Ranked(digit=digit, probability=probabilities[digit]) for digit in order[:top_k]]
    return Prediction(digit=order[0], confidence=probabilities[order[0]], probabilities=probabilities, top_k=ranked)


_loaded: OrderedDict[str, "Predictor"] = OrderedDict()
_loading = threading.Lock()


def _predictor(settings: Settings, stored: StoredModel) -> "Predictor":
    """The model's predictor, loaded once and kept by its digest; the one unused for longest makes room."""
    from core.training.predictor import Predictor

    file = stored.files["safetensors"]
    with _loading:
        if file["sha256"] not in _loaded:
            _loaded[file["sha256"]] = Predictor.from_safetensors(artifacts.read_verified(settings.jobs_dir, file))
        _loaded.move_to_end(file["sha256"])
        while len(_loaded) > _MODELS_KEPT:
            _loaded.popitem(last=False)
        return _loaded[file["sha256"]]
