"""What can be chosen: optimizers, schedules, clips and data sets, as forms and clients want them."""

import functools
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.strict import StrictRoute
from core.catalogue import (
    CLIP_CLASSES,
    DATASETS,
    LESSON_OPTIMIZERS,
    OPTIMIZER_CLASSES,
    SCHEDULE_CLASSES,
    Described,
)

router = APIRouter(tags=["catalogue"], route_class=StrictRoute)


class Text(BaseModel):
    """One line in both languages."""

    en: str
    zh: str


class Parameter(BaseModel):
    name: str
    required: bool
    default: Any = Field(None, description="What it is when it is left out.")
    schema_: dict[str, Any] = Field(alias="schema", description="Its JSON Schema: type and bounds.")


class Choice(BaseModel):
    """One of the things that can be chosen, by `name`, and its own parameters."""

    name: str
    summary: Text
    parameters: list[Parameter]


class OptimizerChoice(Choice):
    lesson: bool = Field(description="Whether the lesson has it.")


class Optimizers(BaseModel):
    optimizers: list[OptimizerChoice]
    schedules: list[Choice] = Field(description="What `learning_rate` may be beside a number.")
    clips: list[Choice] = Field(description="What `grad_clip` may be.")


class DatasetChoice(BaseModel):
    name: str
    summary: Text
    train_images: int
    classes: list[str] = Field(description="The names of the classes, in the order of the network's outputs.")
    classes_zh: list[str] = Field(description="The same in Chinese.")


class Datasets(BaseModel):
    datasets: list[DatasetChoice]


@router.get("/optimizers", summary="Optimizers, schedules and gradient clips, with their parameters")
async def optimizers() -> Optimizers:
    return choices()


@functools.cache
def choices() -> Optimizers:
    """All that can be chosen."""
    return Optimizers(
        optimizers=[
            OptimizerChoice(**dict(_choice(name, cls, "name")), lesson=name in LESSON_OPTIMIZERS)
            for name, cls in OPTIMIZER_CLASSES.items()
        ],
        schedules=[_choice(name, cls, "schedule") for name, cls in SCHEDULE_CLASSES.items()],
        clips=[_choice(name, cls, "type") for name, cls in CLIP_CLASSES.items()],
    )


@router.get("/datasets", summary="Data sets")
async def datasets() -> Datasets:
    return Datasets(
        datasets=[
            DatasetChoice(
                name=name,
                summary=Text(en=facts.en, zh=facts.zh),
                train_images=facts.train_images,
                classes=list(facts.classes),
                classes_zh=list(facts.classes_zh),
            )
            for name, facts in DATASETS.items()
        ]
    )


def _choice(name: str, cls: type[Described], tag: str) -> Choice:
    """A choice as its class describes it; `tag` is the field that only says which it is."""
    schema = cls.model_json_schema()
    required = schema.get("required", [])
    parameters = [
        Parameter(name=field, required=field in required, default=about.get("default"), schema=_resolved(about, schema))
        for field, about in schema["properties"].items()
        if field != tag
    ]
    english = (cls.__doc__ or "").partition("\n")[0]
    return Choice(name=name, summary=Text(en=english, zh=cls.zh), parameters=parameters)


def _resolved(about: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema that stands for itself: what it refers to is put in its place."""
    definitions = schema.get("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict) and "$ref" in value:
            return resolve(definitions[value["$ref"].rpartition("/")[2]])
        if isinstance(value, dict):
            return {name: resolve(part) for name, part in value.items()}
        return [resolve(item) for item in value] if isinstance(value, list) else value

    return {key: value for key, value in resolve(about).items() if key not in ("default", "title")}
