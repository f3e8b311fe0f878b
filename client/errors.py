"""Every error that the client raises on purpose.

    ClientError
    ├── Unreachable     no answer: refused, cut off, or too late
    ├── ApiError        an answer that is a problem: `status`, `code`, `detail`, `errors`, `request_id`
    │   ├── NotAllowed  401, 403     a key is needed, or this one may not
    │   ├── NotFound    404, 410     there is no such thing, or no more
    │   ├── Conflict    409, 412     not as things stand
    │   ├── Invalid     400, 413, 415, 422  the request is wrong; `errors` says where
    │   └── Busy        429, 502, 503, 504  not now; `retry_after_s` says when, if the server did
    ├── JobFailed       a job that was waited for has ended without success; it is in `job`
    ├── WaitTimeout     what was waited for did not happen in time (a TimeoutError as well)
    └── Corrupt         a download is not what the server says it is

A message says by itself what is wrong, what is allowed, and what to do.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import httpx2

from client.answers import JobData

_SHOWN = 200  # characters of an answer that is no problem document


class FieldProblem(TypedDict):
    """One thing wrong with a request, and where: a JSON Pointer, `?name` of a query parameter, `header name`, `path name`."""

    pointer: str
    detail: str
    allowed: NotRequired[list[str]]
    did_you_mean: NotRequired[str]


class ClientError(Exception):
    """The base of all of them."""


class Unreachable(ClientError):
    """The server gave no answer, though it was asked again where that is safe. Whether it did what was asked is unknown."""


class WaitTimeout(ClientError, TimeoutError):
    """The time given to wait is over. What was waited for goes on."""


class Corrupt(ClientError):
    """The bytes of a download do not have the digest that the server names."""


class JobFailed(ClientError):
    """A job ended without success. `job` is all that is known of it, `code` that of its error, or `cancelled`."""

    def __init__(self, job: JobData) -> None:
        error = job["error"]
        self.job, self.error = job, error
        self.code = error["code"] if error else job["status"]
        at = f" at step {error['step']}" if error and error["step"] is not None else ""
        why = f"failed{at} ({error['code']}): {error['message']}" if error else f"was {job['status']}"
        super().__init__(f"{job['id']} {why}")


class ApiError(ClientError):
    """The server answered with a problem (RFC 9457). `problem` is the whole of it."""

    def __init__(self, response: httpx2.Response) -> None:
        """`response` has been read."""
        self.problem = _problem_of(response)
        self.status = response.status_code
        self.code = str(self.problem.get("code", "unknown"))
        self.detail = str(self.problem.get("detail", ""))
        self.errors: list[FieldProblem] = self.problem.get("errors", [])
        self.request_id = str(self.problem.get("request_id") or response.headers.get("x-request-id", ""))
        self.retry_after_s: float | None = None
        super().__init__(self._message())

    @property
    def allowed(self) -> list[str]:
        """What is allowed in the first field that is wrong; empty where there is no list of it."""
        return next((error["allowed"] for error in self.errors if error.get("allowed")), [])

    def _message(self) -> str:
        told = "; ".join(map(_told, self.errors)) or self.detail or f"the server answered {self.status}"
        where = f" (request {self.request_id})" if self.status >= 500 and self.request_id else ""
        return f"{told}{self._advice()}{where}"

    def _advice(self) -> str:
        return ""


class NotAllowed(ApiError):
    def _advice(self) -> str:
        return "; a key is given by DESCENT_API_KEY, Client(key=...) or --key-file" if self.status == 401 else ""


class NotFound(ApiError):
    pass


class Conflict(ApiError):
    pass


class Invalid(ApiError):
    pass


class Busy(ApiError):
    pass


_KINDS: Mapping[int, type[ApiError]] = {
    400: Invalid, 401: NotAllowed, 403: NotAllowed, 404: NotFound, 409: Conflict, 410: NotFound, 412: Conflict,
    413: Invalid, 415: Invalid, 422: Invalid, 429: Busy, 502: Busy, 503: Busy, 504: Busy,
}  # fmt: skip


def error_of(response: httpx2.Response) -> ApiError:
    """The error that an answer is."""
    return _KINDS.get(response.status_code, ApiError)(response)


def _problem_of(response: httpx2.Response) -> dict[str, Any]:
    """The problem document, or what stands for one where something else answers: a proxy, another server."""
    if "json" in response.headers.get("content-type", ""):
        try:
            found = response.json()
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
    words = " ".join(response.text.split())[:_SHOWN]
    return {"detail": f"{response.status_code} {response.reason_phrase} from {response.url.host}: {words or 'no text'}"}


def _told(error: FieldProblem) -> str:
    hint = f"; did you mean {error['did_you_mean']}?" if error.get("did_you_mean") else ""
    allowed = f" (allowed: {', '.join(error['allowed'])})" if error.get("allowed") else ""
    return f"{error['pointer'].lstrip('/') or 'the request'}: {error['detail']}{hint}{allowed}"
