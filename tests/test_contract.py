"""The API and its OpenAPI document say the same: Schemathesis tries all of it, on an API of its own without a worker."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from core.jobs.job import Status
from core.spec import JobSpec
from tests.conftest import ROOT
from tests.staged import Api, blank_weights

# Not validation_mismatch: most cursors that a document allows were never given out, most texts are no picture.
WARNINGS = [
    "missing_test_data", "missing_auth", "missing_deserializer", "unsupported_regex", "method_not_allowed",
    "unmatched_filter", "unresolvable_reference",
]  # fmt: skip
# A stream of jobs that have ended ends by itself, any other is held open as long as the job lasts: so it is of one that nothing
# starts again. And one job has a model.
CONFIG = """
seed = 1
request-timeout = 30
hooks = "tests.schemathesis_hooks"

[warnings]
display = {warnings}
fail-on = {warnings}

[generation]
deterministic = true
max-examples = 10

[[operations]]
include-path = "/events"
parameters = {{ jobs = "{over}" }}

[[operations]]
include-path = "/compare"
parameters = {{ jobs = "{ended}" }}

[[operations]]
include-path = "/jobs/{{job_id}}/model"
parameters = {{ job_id = "{succeeded}" }}

[[operations]]
include-path-regex = "^/v2/models/"
parameters = {{ model = "{succeeded}", version = "{version}" }}
"""

RANGE_TEST = JobSpec.model_validate({"optimizer": "adam", "learning_rate": {"schedule": "range_test"}, "epochs": 1})


def test_no_request_is_answered_otherwise_than_the_document_says(api: Api, tmp_path: Path) -> None:
    """All checks, all phases: examples, each bound and each breach of it, random requests, and walks along the links."""
    ended = ",".join(api.jobs[status] for status in Status if status.terminal)
    config = tmp_path / "schemathesis.toml"
    succeeded, version = api.jobs[Status.SUCCEEDED], hashlib.sha256(blank_weights()).hexdigest()[:12]
    over = api.finished_job(weights=blank_weights(), spec=RANGE_TEST)
    given = {"ended": ended, "over": over, "succeeded": succeeded, "version": version}
    config.write_text(CONFIG.format(**given, warnings=json.dumps(WARNINGS)))
    command = ["-m", "schemathesis.cli", "--config-file", str(config), "run", f"{api.url}/openapi.json", "--no-color"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
