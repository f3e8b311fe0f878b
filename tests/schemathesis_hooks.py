"""What Schemathesis is told that an OpenAPI document cannot say: the rules over several fields, and over what a text holds."""

from typing import Any

import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.generation.case import Case
from schemathesis.openapi.checks import RejectedPositiveData

# The details of problems that a request may have although each of its fields is as the document says. Everything else that is
# refused should be refused by the document too.
RULES = (
    "high must be above low",
    "end must be at least ten times start",
    "a range test has",
    "a range test leaves no model to compare",
    "a range test cannot be made longer",
    "the same value stands here twice",
    "jobs, and this one would have",
    "samples belongs to the strategy random",
    "a range of rates needs the strategy random",
    "the strategy random needs to know how many",
    "combinations",
    "give limit or max_points, not both",
    "phase_pct times total_steps must be above 1, or there is no way up",
    "with three_phase, phase_pct must be below 0.5",
    "and one_cycle ends before",
    "milestones must rise",
    "has a weight decay of its own: set it in the optimizer",
    "bf16 and to_static need a GPU, and device says cpu",
    "loss points: raise log_every",
    "the longer job could not be",  # an extension beyond a limit: that depends on the job
    'values lie between 0 and 1 (say "range": 255 for bytes)',
    "not a base64 PNG or JPEG",
    "not a PNG or JPEG",
    "the picture is empty",
    "up to 50 ids, each once",
    "not an id of this stream's events",
    "not a cursor of this history",
    *(  # of tensors behind JSON, whose length a header says
        "this is the length of the body's JSON",
        "how many bytes stand behind the JSON",
        "bytes behind the JSON that belong to no tensor",
    ),
    "the shape is [N, 1, 28, 28]",
    "as many numbers as the shape has",
    "give either data, or binary_data_size",
    "this server has no extension with",
)
OCTETS = (
    "not JSON at line",
    "not valid Unicode",
    "the body is empty",
)  # what begins with JSON is sent as mere bytes, too


@schemathesis.hook
def filter_failure(context: schemathesis.HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """False for a refusal that names one of the rules, and nothing else, or is what `If-Match` asks for."""
    if isinstance(failure, RejectedPositiveData) and response.status_code == 412:
        return "If-Match" not in (case.headers or {})
    if not isinstance(failure, RejectedPositiveData) or response.status_code not in (400, 422):
        return True
    problem = response.json()
    if problem.get("code") == "idempotency-key-reused":  # Schemathesis sent the key with another body before
        return False
    is_inference = case.path.startswith("/v2/")
    details = problem["error"].split("; ") if is_inference else [it["detail"] for it in problem.get("errors", [])]
    rules = RULES + OCTETS if is_inference else RULES
    return not details or not all(any(rule in detail for rule in rules) for detail in details)
