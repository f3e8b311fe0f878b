"""Multipart forms (RFC 7578), read into what the same request in JSON would have been, with the files' bytes as they are.

The whole body is in memory by then, under its limit: nothing is spooled, nothing is waited for.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import BaseModel
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from api.problems import LONGEST_NAME, printable
from api.strict import StrictRequest, StrictRoute
from core.errors import FieldProblem, InvalidRequest, MalformedForm

_MOST_PARTS = 300
_WHOLE = re.compile(r"-?[0-9]{1,9}")
_AS_IT_IS = ("", "binary", "8bit", "7bit")


@dataclass
class _Part:
    headers: dict[str, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)
    name: str = ""
    is_file: bool = False

    def settle(self) -> None:
        """Raises MalformedForm for a part without a name, or one that is encoded."""
        kind, options = parse_options_header(self.headers.get("content-disposition"))
        if kind != b"form-data" or not options.get(b"name"):
            raise MalformedForm(FieldProblem("", "each part needs `Content-Disposition: form-data` and a name"))
        self.name, self.is_file = options[b"name"].decode("utf-8", "replace"), b"filename" in options
        if self.headers.get("content-transfer-encoding", b"").lower().decode("latin-1") not in _AS_IT_IS:
            raise MalformedForm(FieldProblem(self.pointer, "send the part as it is, not encoded"))

    @property
    def pointer(self) -> str:
        return printable("/" + self.name[:LONGEST_NAME].replace("~", "~0").replace("/", "~1"))


class FormRequest(StrictRequest):
    """A request that may be a form in the place of JSON."""

    media = "application/json or multipart/form-data"
    _is_form = False

    def is_readable(self) -> bool:
        if super().is_readable():
            return True
        kind = self.headers.get("content-type", "").partition(";")[0]
        self._is_form = kind.strip().lower() == "multipart/form-data"
        return self._is_form

    def parser(self) -> Callable[[bytes], Any]:
        if not self._is_form:
            return super().parser()
        model = self.scope["route"].body_field.field_info.annotation
        return partial(parse, content_type=self.headers["content-type"], model=model)


class FormRoute(StrictRoute):
    request_class = FormRequest


def parse(body: bytes, *, content_type: str, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of `model`: whole numbers where it wants no text, `image` and `images` as bytes.

    Several files are `images`, whichever of the two names each has. Raises MalformedForm; InvalidRequest for a field that is
    given twice, and for a file in the place of a text.
    """
    images: list[tuple[str, Any]] = []
    fields: dict[str, Any] = {}
    for part in _parts(body, content_type):
        if part.name in ("image", "images"):
            images.append((part.name, bytes(part.content) if part.is_file else _text(part)))
            continue
        if part.is_file:
            raise InvalidRequest(FieldProblem(part.pointer, "a file can be image or images", ("image", "images")))
        if part.name in fields:
            raise InvalidRequest(FieldProblem(part.pointer, "give it once"))
        known = model.model_fields.get(part.name)
        fields[part.name] = _value(_text(part), is_text=known is None or known.annotation is str)
    if len(images) == 1 and images[0][0] == "image":
        return fields | {"image": images[0][1]}
    return fields | ({"images": [image for _, image in images]} if images else {})


def _text(part: _Part) -> str:
    try:
        return part.content.decode("utf-8")
    except UnicodeError:
        raise InvalidRequest(FieldProblem(part.pointer, "the text is not valid Unicode in UTF-8")) from None


def _value(text: str, *, is_text: bool) -> str | int:
    return int(text) if not is_text and _WHOLE.fullmatch(text) else text


def _parts(body: bytes, content_type: str) -> list[_Part]:
    """The parts of a whole form. Raises MalformedForm."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedForm(FieldProblem("", "the Content-Type names no boundary"))
    reading = _Reading()
    try:
        parser = MultipartParser(boundary, reading.callbacks())  # type: ignore[arg-type]  # bound methods, by name
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise MalformedForm(
            FieldProblem("", "this is no multipart form with the boundary of its Content-Type")
        ) from None
    if not reading.is_whole:
        raise MalformedForm(FieldProblem("", "the form is cut: its last boundary is missing"))
    return reading.parts


class _Reading:
    """What the parser has told so far."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.is_whole = False
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> dict[str, Any]:
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        if len(self.parts) >= _MOST_PARTS:
            raise InvalidRequest(FieldProblem("", f"a form has at most {_MOST_PARTS} parts"))
        self.parts.append(_Part())

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self.parts[-1].headers[self._name.decode("latin-1").lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        self.parts[-1].settle()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].content += data[start:end]

    def _end(self) -> None:
        self.is_whole = True
