"""How good a job's model is, in detail: its confusions on the test images, and images that it tells right and wrong."""

import base64
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from pydantic_core import to_json

from api.conditional import CONDITIONAL, etag_of, is_known, refuse_another
from api.problems import documented, headers
from api.state import JobId, drawn, known, state_of
from api.strict import StrictRoute
from core.catalogue import DATASETS
from core.jobs.store import StoredModel

if TYPE_CHECKING:  # NumPy is imported when somebody asks
    from core.training.datasets import Split
    from core.training.evaluation import Counts, Evaluation

router = APIRouter(prefix="/jobs", tags=["predict"], route_class=StrictRoute)


class EvaluationQuery(BaseModel):
    examples: int = Field(20, ge=0, le=100, description="How many images of each kind, at most.")
    label: int | None = Field(None, ge=0, le=9, description="Only examples of this class.")
    predicted: int | None = Field(None, ge=0, le=9, description="Only examples that were taken for this class.")


class ClassScore(BaseModel):
    """How well one class is told from the others."""

    class_: int = Field(alias="class", description="Its number, from 0.")
    label: str
    label_zh: str
    images: int = Field(description="Test images of it.")
    precision: float | None = Field(description="The share of what was taken for it that is it; null if nothing was.")
    recall: float = Field(description="The share of it that was taken for it.")


class Example(BaseModel):
    index: int = Field(description="Its place among the test images, from 0.")
    label: int = Field(description="The class it is of.")
    predicted: int = Field(description="The class it was taken for.")
    confidence: float = Field(description="The probability of that class.")
    seen: str = Field(
        description="The image: base64 of a PNG of 28x28 greys.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"},
    )


class Examples(BaseModel):
    wrong: list[Example] = Field(description="The surest first.")
    right: list[Example] = Field(
        description="The first of each class in their order, then the second of each, and so on."
    )


class EvaluationAnswer(BaseModel):
    job_id: str
    dataset: str
    sha256: str = Field(description="Of the weights (the safetensors file).")
    partial: bool = Field(description="Whether these are the weights of a job that was stopped on its way.")
    images: int = Field(description="Test images there are.")
    right: int
    accuracy: float
    confusion: list[list[int]] = Field(description="How many of each class (row) were taken for each class (column).")
    classes: list[ClassScore]
    examples: Examples


@router.get(
    "/{job_id}/evaluation",
    response_model=EvaluationAnswer,
    responses={200: headers("ETag"), **CONDITIONAL, **documented(404, 409, 410, 422, 500, 503)},
    summary="What the model makes of the test images",
)
async def evaluation(job_id: JobId, query: Annotated[EvaluationQuery, Query()], request: Request) -> Response:
    """The confusion matrix, each class's precision and recall, and images that the model tells wrong and right.

    For a job that was stopped on its way its last weights are taken, and `partial` says so. The test images have to be on this
    machine already: they are never fetched for this (503).
    """
    state = state_of(request)
    stored = await state.store.model(known(job_id))
    if refused := _unchanged(request, _etag(stored, query)):
        return refused
    stored, split, found = await state.evaluating.of(state.store, stored)
    text = await drawn(state, _rendered, stored, split, found, query)
    about = {"ETag": _etag(stored, query), "Cache-Control": "no-cache"}
    return Response(text, media_type="application/json", headers=about)


def _etag(stored: StoredModel, query: EvaluationQuery) -> str:
    """The weights, the question and what this version makes of them decide the answer."""
    return etag_of(
        f"{version('descent')} {stored.files['safetensors']['sha256']} {stored.dataset} {stored.partial} {query!r}"
    )


def _unchanged(request: Request, etag: str) -> Response | None:
    refuse_another(request, etag)
    if is_known(etag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers={"ETag": etag, "Cache-Control": "no-cache"})
    return None


def _rendered(stored: StoredModel, split: "Split", found: "Evaluation", query: EvaluationQuery) -> bytes:
    """`EvaluationAnswer`, as it is written."""
    among = found.chosen(label=query.label, predicted=query.predicted)
    confusion, right = found.confusion(), int(found.is_right.sum())
    chosen = {"wrong": found.wrong(query.examples, among), "right": found.right(query.examples, among)}
    return to_json(
        {
            "job_id": stored.job_id,
            "dataset": stored.dataset,
            "sha256": stored.files["safetensors"]["sha256"],
            "partial": stored.partial,
            "images": len(split),
            "right": right,
            "accuracy": right / len(split),
            "confusion": confusion.tolist(),
            "classes": _scores(stored.dataset, confusion),
            "examples": {kind: [_example(split, found, at) for at in indexes] for kind, indexes in chosen.items()},
        }
    )


def _scores(dataset: str, confusion: "Counts") -> list[dict[str, Any]]:
    facts = DATASETS[dataset]
    scores = []
    for number, (label, label_zh) in enumerate(zip(facts.classes, facts.classes_zh, strict=True)):
        right, images, taken = confusion[number, number], confusion[number].sum(), confusion[:, number].sum()
        scores.append(
            {
                "class": number,
                "label": label,
                "label_zh": label_zh,
                "images": int(images),
                "precision": float(right / taken) if taken else None,
                "recall": float(right / images),
            }
        )
    return scores


def _example(split: "Split", found: "Evaluation", index: int) -> dict[str, Any]:
    from core.training import pictures
    from core.training.datasets import scaled

    return {
        "index": index,
        "label": int(found.labels[index]),
        "predicted": int(found.predicted[index]),
        "confidence": float(found.confidence[index]),
        "seen": base64.b64encode(pictures.seen(scaled(split.images[index : index + 1])[0, 0])).decode(),
    }
