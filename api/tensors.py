"""Tensors of the Open Inference Protocol: as JSON, or as raw bytes behind it (its binary tensor data extension)."""

import math
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from fastapi import Response
from pydantic_core import to_json

from api.strict import StrictRequest, StrictRoute
from core.errors import FieldProblem, InvalidRequest

if TYPE_CHECKING:  # a thread loads NumPy beside the first requests (predicting.py)
    import numpy as np
    import numpy.typing as npt

    from core.training.predictor import Floats

JSON_LENGTH = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
DATATYPES = {"FP32": "<f4", "INT64": "<i8"}  # little-endian whatever the machine
_LENGTH = re.compile(r"[0-9]{1,9}")
_PLACE = f"header {JSON_LENGTH}"


class TensorRequest(StrictRequest):
    """A request whose body is JSON, behind which there may be raw tensors: a header says where they begin.

    Clients send either form as octets or as nothing in particular; the protocol names no type that must be.
    """

    media = f"application/json or {BINARY}"

    def is_readable(self) -> bool:
        media_type = self.headers.get("content-type", BINARY).lower().partition(";")[0].strip()
        return media_type in ("", BINARY) or super().is_readable()

    def json_part(self, body: bytes) -> bytes:
        return body[: self._json_length(body)]

    async def raw(self) -> memoryview:
        """What stands behind the JSON."""
        body = await self.body()
        return memoryview(body)[self._json_length(body) :]

    def _json_length(self, body: bytes) -> int:
        """Raises InvalidRequest when the header is none, or says more than there is."""
        match self.headers.getlist(JSON_LENGTH):
            case []:
                return len(body)
            case [text] if _LENGTH.fullmatch(text) and 0 < int(text) <= len(body):
                return int(text)
            case [text] if _LENGTH.fullmatch(text):
                detail = "this is the length of the body's JSON: at least 1, and at most that of the whole body"
            case _:
                detail = "give one whole number, in digits"
        raise InvalidRequest(FieldProblem(_PLACE, detail))


class TensorRoute(StrictRoute):
    request_class = TensorRequest


def from_bytes(raw: memoryview, shape: Sequence[int], *, pointer: str) -> "Floats":
    """FP32 numbers between 0 and 1, row-major, as an array of this shape. Raises InvalidRequest."""
    import numpy as np

    if len(raw) != 4 * math.prod(shape):
        raise InvalidRequest(FieldProblem(pointer, "the raw data are not four bytes for each number of the shape"))
    return _between_0_and_1(np.frombuffer(raw, DATATYPES["FP32"]), pointer).reshape(shape)


def from_json(data: list[Any], shape: Sequence[int], *, pointer: str) -> "Floats":
    """The same from a list of numbers: flat and row-major, or nested as the shape is. Raises InvalidRequest."""
    import numpy as np

    is_nested = bool(data) and isinstance(data[0], list)
    numbers = _flat(data, shape if is_nested else (math.prod(shape),))
    if numbers is None or not {int, float}.issuperset(map(type, numbers)):
        raise InvalidRequest(
            FieldProblem(pointer, "this is a list of as many numbers as the shape has, flat or nested as the shape is")
        )
    try:
        values = np.frombuffer(array("d", numbers))
    except OverflowError:
        raise InvalidRequest(FieldProblem(pointer, "a number is too large")) from None
    return _between_0_and_1(values, pointer).reshape(shape)


def _flat(data: list[Any], shape: Sequence[int]) -> list[Any] | None:
    """The innermost items of lists in lists, row-major. None where they are not nested like this."""
    rows = [data]
    for length in shape:
        if not all(isinstance(row, list) and len(row) == length for row in rows):
            return None
        rows = list(chain.from_iterable(rows))
    return rows


def _between_0_and_1(values: "npt.NDArray[Any]", pointer: str) -> "Floats":
    import numpy as np

    if not (values.min() >= 0 and values.max() <= 1):  # neither holds of NaN
        detail = "values lie between 0 and 1" if np.isfinite(values).all() else "values are finite"
        raise InvalidRequest(FieldProblem(pointer, detail))
    return values.astype(np.float32)


@dataclass(frozen=True)
class Output:
    """A tensor of an answer: one of `DATATYPES`, as raw bytes or as JSON numbers."""

    name: str
    datatype: str
    values: "npt.NDArray[np.generic]"
    is_binary: bool

    def described(self, raw: bytes | None) -> dict[str, Any]:
        """As the answer's JSON has it; raw, its data stand behind that."""
        data = {"data": self.values.ravel().tolist()} if raw is None else {"parameters": {"binary_data_size": len(raw)}}
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.values.shape)} | data


def answered(facts: dict[str, Any], outputs: Iterable[Output]) -> Response:
    """Facts and outputs as JSON; where one is binary, their bytes in the same order behind it."""
    described, raws = [], []
    for output in outputs:
        raw = output.values.astype(DATATYPES[output.datatype]).tobytes() if output.is_binary else None
        described.append(output.described(raw))
        raws += [raw] if raw is not None else []
    text = to_json(facts | {"outputs": described})
    if not raws:
        return Response(text, media_type="application/json")
    return Response(text + b"".join(raws), media_type=BINARY, headers={JSON_LENGTH: str(len(text))})
