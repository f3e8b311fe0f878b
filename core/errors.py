"""Every error Descent raises on purpose.

    DescentError
    ├── InvalidRequest        422  the request is well-formed and wrong; `problems` says where
    │   ├── MalformedJson     400  the body is not one strict JSON value
    │   └── MalformedForm     400  the body is not one whole multipart form
    ├── KeyReused             422  an Idempotency-Key came with another body than before
    ├── NotFound              404  no such job or model
    ├── ModelNotReady         409  the job has no model (yet)
    ├── ModelUnsupported      409  its weights are of another network than ours
    ├── ModelDeleted          410  its job was deleted
    ├── JobNotTerminal        409  the job has not ended, and what was asked needs that
    ├── Unauthorized          401  no key, or not a valid one
    ├── CrossSite             403  a page of another site asked for a change
    ├── ForeignHost           421  the Host header names another server
    ├── HeadersTooLarge       431  too many headers, or too long ones
    ├── RateLimited           429  a key asks too often
    ├── JobDeleted            410  what an Idempotency-Key made was deleted since
    ├── QueueFull             429  as many jobs wait, or has an owner, as may be
    ├── JobInUse              409  an alias names the job's model
    ├── AliasReserved         409  the server keeps that alias itself
    ├── Unavailable           503  Redis cannot be reached or does not take writes
    │   └── StorageAway       503  the storage of files cannot be reached (an OSError, too, as a disk's would be)
    │       └── StorageRefused     it answers, and a person must see to it: bucket, credentials
    ├── ArtifactCorrupt       500  a stored file does not match its digest
    ├── StackError            500  the server cannot be started or stopped (command line only)
    └── TrainingError         500  a training run ended without a model; `code` goes into the job's `error`
        ├── Diverged
        ├── DatasetUnavailable
        └── DeviceUnavailable

`code` is the machine-readable name (the last part of the problem's `type`), `status` the HTTP status, `title` a fixed
sentence; the message is the part that changes from case to case and is safe to show.
"""

from dataclasses import dataclass
from typing import ClassVar


class DescentError(Exception):
    """The base: carries what the one HTTP handler needs to render it."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong inside the server"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s or self.retry_after_s


@dataclass(frozen=True)
class FieldProblem:
    """One thing wrong with a request.

    `pointer` is a JSON Pointer (RFC 6901) into the body, `?name` for a query parameter, `path name` for a part of the path;
    `detail` never repeats the input itself, except a short word that looks like a mistyped name.
    """

    pointer: str
    detail: str
    allowed: tuple[str, ...] = ()
    did_you_mean: str | None = None


class InvalidRequest(DescentError):
    code = "validation-error"
    status = 422
    title = "The request is not valid"

    def __init__(self, *problems: FieldProblem, detail: str = "") -> None:
        super().__init__(detail or "; ".join(f"{p.pointer or 'body'}: {p.detail}" for p in problems[:3]))
        self.problems = problems


class MalformedJson(InvalidRequest):
    code = "malformed-json"
    status = 400
    title = "The body is not a strict JSON value"


class MalformedForm(InvalidRequest):
    code = "malformed-form"
    status = 400
    title = "The body is not a whole multipart form"


class NotFound(DescentError):
    code = "not-found"
    status = 404
    title = "Not found"


class ModelNotReady(DescentError):
    code = "model-not-ready"
    status = 409
    title = "The job has no model to give"


class ModelUnsupported(DescentError):
    code = "model-unsupported"
    status = 409
    title = "The model is of another network"


class ModelDeleted(DescentError):
    code = "model-deleted"
    status = 410
    title = "The model was deleted with its job"


class KeyReused(DescentError):
    code = "idempotency-key-reused"
    status = 422
    title = "The Idempotency-Key belongs to another request"


class JobNotTerminal(DescentError):
    code = "job-not-terminal"
    status = 409
    title = "The job has not ended"


class Unauthorized(DescentError):
    code = "unauthorized"
    status = 401
    title = "A key is needed"


class CrossSite(DescentError):
    code = "cross-site"
    status = 403
    title = "The request comes from another site"


class ForeignHost(DescentError):
    code = "foreign-host"
    status = 421
    title = "The Host header names another server"


class HeadersTooLarge(DescentError):
    code = "headers-too-large"
    status = 431
    title = "The headers are too many or too long"


class RateLimited(DescentError):
    code = "rate-limited"
    status = 429
    title = "Too many requests"
    retry_after_s = 1


class JobDeleted(DescentError):
    code = "job-deleted"
    status = 410
    title = "What this key made was deleted"


class QueueFull(DescentError):
    code = "queue-full"
    status = 429
    title = "There are too many jobs"
    retry_after_s = 30


class JobInUse(DescentError):
    code = "job-in-use"
    status = 409
    title = "The job's model is in use"


class AliasReserved(DescentError):
    code = "alias-reserved"
    status = 409
    title = "The server keeps this alias"


class Unavailable(DescentError):
    code = "unavailable"
    status = 503
    title = "The server cannot take this now"
    retry_after_s = 5


class StorageAway(Unavailable, OSError):
    """Whoever can go on without a file catches it as OSError. `reason` is for who runs the server: it names addresses."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StorageRefused(StorageAway):
    pass


class ArtifactCorrupt(DescentError):
    code = "artifact-corrupt"
    title = "A stored file is damaged"


class StackError(DescentError):
    code = "stack"
    title = "The server cannot run here"


class TrainingError(DescentError):
    """`step` is the step at which the run ended, when it had begun."""

    code = "internal"
    title = "The training ended without a model"

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class Diverged(TrainingError):
    code = "diverged"


class DatasetUnavailable(TrainingError):
    code = "dataset_unavailable"


class DeviceUnavailable(TrainingError):
    code = "device_unavailable"
