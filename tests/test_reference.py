"""docs/reference.md says what the code says."""

from tests import reference


def test_the_reference_is_that_of_the_code() -> None:
    assert reference.TARGET.read_text("utf-8") == reference.reference(), "write it anew: make docs"


def test_it_has_what_one_looks_up() -> None:
    text = reference.reference()
    for line in (
        "| `DESCENT_PORT` | `8000` | whole number ≥ 0, ≤ 65535 |",
        "| `POST /jobs` |",
        "| `queue-full` | 429 |",
        "### `descent submit`",
        "| `--set` | A parameter of the optimizer; may be repeated. |",
        "### `adam`",
        "| `beta1` | `0.9` | number ≥ 0, < 1 |",
        "| `descent_jobs_finished_total` | counter |",
    ):
        assert line in text
