"""What a client of the Open Inference Protocol may ask for: the body of an inference, but for the tensors behind it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from api.predict import MAX_IMAGES
from api.strict import MAX_BODY_BYTES
from core.spec import wrong

INPUT: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}
OUTPUTS: list[dict[str, Any]] = [
    {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
    {"name": "label", "datatype": "INT64", "shape": [-1]},
]
_MOST_PARAMETERS, _LONGEST_NAME, _LONGEST_TEXT, _HIGHEST = 32, 100, 1000, 10**30
_ELSEWHERE = ("classification", "shared_memory_region")  # Triton's: passed over, they would give what was not asked for
_VALUE: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "maxLength": _LONGEST_TEXT},
        {"type": "number", "minimum": -_HIGHEST, "maximum": _HIGHEST},
        {"type": "boolean"},
        {"type": "null"},
    ]
}


class Parameters(BaseModel):
    """What the protocol leaves to servers and their extensions. A parameter that means nothing here is left out of account."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "maxProperties": _MOST_PARAMETERS,
            "propertyNames": {"maxLength": _LONGEST_NAME},
            "additionalProperties": _VALUE,
        },
    )

    @model_validator(mode="before")
    @classmethod
    def _are_parameters(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given  # and is refused as such
        if len(given) > _MOST_PARAMETERS or any(len(name) > _LONGEST_NAME for name in given):
            raise wrong("", f"at most {_MOST_PARAMETERS} parameters, with names of at most {_LONGEST_NAME} characters")
        if not all(map(_is_value, given.values())):
            raise wrong(
                "", f"a parameter is a number, true, false, null or a text of at most {_LONGEST_TEXT} characters"
            )
        if not given.keys().isdisjoint(_ELSEWHERE):
            raise wrong("", f"this server has no extension with {' or '.join(_ELSEWHERE)}")
        return given


def _is_value(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT
    return value is None or (isinstance(value, int | float) and abs(value) <= _HIGHEST)


class InputParameters(Parameters):
    binary_data_size: int | None = Field(
        None, ge=0, le=MAX_BODY_BYTES, description="Bytes of this tensor behind the JSON, instead of `data`."
    )


class OutputParameters(Parameters):
    binary_data: bool | None = Field(None, description="Whether to answer with raw bytes; else as the request says.")


class RequestParameters(Parameters):
    binary_data_output: bool = Field(
        False, description="Whether to answer with raw bytes where an output says nothing."
    )


def _list(items: dict[str, Any], least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "minItems": least, "maxItems": most, "items": items}


_NUMBER = {"type": "number", "minimum": 0, "maximum": 1}
_PIXELS = _list(_list(_list(_NUMBER, 28, 28), 28, 28), 1, 1)
# What `data` is, for the document; and a shape. They are checked by hand: pydantic would name each number that is none.
_DATA = WithJsonSchema({"anyOf": [_list(_NUMBER, 784, MAX_IMAGES * 784), _list(_PIXELS, 1, MAX_IMAGES)]})
_SHAPE = WithJsonSchema(_list({"type": "integer", "minimum": 1, "maximum": MAX_IMAGES}, 4, 4))


class InputTensor(BaseModel):
    """The images, 0 to 1 as the network sees them: as `data`, or as bytes behind the JSON (`binary_data_size`)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Literal["image"]
    shape: Annotated[list[Any], _SHAPE] = Field(description=f"`[N, 1, 28, 28]`, N from 1 to {MAX_IMAGES}.")
    datatype: Literal["FP32"]
    parameters: InputParameters = InputParameters()
    data: Annotated[list[Any], _DATA] | None = Field(None, description="Row-major: flat, or nested as the shape is.")

    @model_validator(mode="after")
    def _is_one(self) -> "InputTensor":
        if [type(length) for length in self.shape] != [int] * 4 or self.shape[1:] != [1, 28, 28]:
            raise wrong("/shape", "the shape is [N, 1, 28, 28]")
        if not 1 <= self.shape[0] <= MAX_IMAGES:
            raise wrong("/shape", f"a request has 1 to {MAX_IMAGES} images")
        if (self.data is None) == (self.parameters.binary_data_size is None):
            raise wrong("", "give either data, or binary_data_size and that many bytes behind the JSON")
        return self


class RequestedOutput(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Literal["probabilities", "label"]
    parameters: OutputParameters = OutputParameters()


class InferRequest(BaseModel):
    """One tensor of images."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"inputs": [INPUT | {"shape": [1, 1, 28, 28], "data": [0.0] * 784}]}]},
    )

    id: str = Field("", max_length=_LONGEST_TEXT, description="Comes back in the answer.")
    parameters: RequestParameters = RequestParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] = Field([], max_length=len(OUTPUTS), description="Left out: all.")

    @model_validator(mode="after")
    def _asks_once(self) -> "InferRequest":
        if len({output.name for output in self.outputs}) < len(self.outputs):
            raise wrong("/outputs", "the same value stands here twice")
        return self
