"""Models and their names: which there are, and which alias names which."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from api.problems import documented
from api.state import known, state_of
from api.strict import StrictRoute
from core.catalogue import DatasetName
from core.errors import AliasReserved, FieldProblem, InvalidRequest
from core.jobs import names
from core.jobs.artifacts import JOB_ID
from core.jobs.job import Moment
from core.jobs.models import ModelEntry

router = APIRouter(prefix="/models", tags=["models"], route_class=StrictRoute)

_SYNTAX = "1 to 64 lower-case letters, digits, dots and hyphens, a letter or a digit first and last"
Alias = Annotated[str, Path(description=f"{_SYNTAX}.", json_schema_extra={"pattern": f"^{names.ALIAS.pattern}$"})]
Name = Annotated[
    str,
    Path(
        description="An alias, `best`, `latest`, `best:fashion-mnist` and so on, or a job's id.",
        json_schema_extra={"maxLength": 100},
    ),
]


class Model(BaseModel):
    """The weights that a job has left, and the names they go by."""

    model_config = ConfigDict(from_attributes=True)

    job_id: str
    dataset: str = Field(description="What it was trained on.")
    test_accuracy: float | None
    sha256: str = Field(description="Digest of the safetensors file.")
    size_bytes: int
    created_at: Moment
    finished_at: Moment | None = Field(description="null while the job is being trained further")
    names: list[str] = Field(description="What it may be called: names that the server keeps first, then aliases.")
    links: dict[str, str]


class ModelPage(BaseModel):
    models: list[Model]
    aliases: dict[str, str] = Field(
        description="All names in use, whatever the page, and the jobs whose models they name."
    )
    next: str | None = Field(description="Pass it as `after` for the next page; null at the end.")


class ModelsQuery(BaseModel):
    after: str | None = Field(None, pattern=f"^{JOB_ID.pattern}$", description="`next` of the page before.")
    limit: int = Field(20, ge=1, le=100)
    dataset: DatasetName | None = Field(None, description="Only those trained on this one.")


class NameRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    job_id: str = Field(pattern=f"^{JOB_ID.pattern}$", description="A job that has succeeded.")


@router.get("", responses=documented(422, 503), summary="Models, and the names they go by")
async def page(query: Annotated[ModelsQuery, Query()], request: Request) -> ModelPage:
    """Those of the newest jobs first."""
    models = state_of(request).models
    entries, cursor = await models.page(after=query.after, limit=query.limit, dataset=query.dataset)
    return ModelPage(models=[_model(entry) for entry in entries], aliases=await models.aliases(), next=cursor)


@router.get("/{alias}", responses=documented(404, 503), summary="The model that an alias, or another name, names")
async def get(alias: Name, request: Request) -> Model:
    return _model(await state_of(request).models.get(alias))


@router.put(
    "/{alias}", responses=documented(400, 404, 409, 413, 415, 422, 503), summary="Have an alias name a job's model"
)
async def name(alias: Alias, body: NameRequest, request: Request) -> Model:
    """Whatever it named before; whoever predicts with it has the new model from the next request on."""
    _refuse_kept(alias)
    if not names.ALIAS.fullmatch(alias):
        raise InvalidRequest(FieldProblem("path alias", f"an alias is {_SYNTAX}"))
    models = state_of(request).models
    await models.name(alias, known(body.job_id))
    return _model(await models.get(body.job_id))


@router.delete("/{alias}", status_code=204, responses=documented(404, 409, 503), summary="Forget an alias")
async def unname(alias: Alias, request: Request) -> None:
    """The model and its job stay."""
    _refuse_kept(alias)
    await state_of(request).models.unname(alias)


def _refuse_kept(alias: str) -> None:
    if alias in names.KEPT:
        raise AliasReserved("the server keeps this name: it always names its data set's best or latest model")


def _model(entry: ModelEntry) -> Model:
    own = f"/jobs/{entry.job_id}"
    return Model(**vars(entry), links={"job": own, "weights": f"{own}/model"})
