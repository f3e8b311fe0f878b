"""Every problem that an answer can name has its page."""

import json
from collections.abc import Iterator

import httpx2
import pytest

from api.problem_pages import ABOUT
from api.problems import problem_text
from core import errors
from tests.conftest import Server


def kinds(cls: type[errors.DescentError] = errors.DescentError) -> Iterator[type[errors.DescentError]]:
    yield cls
    for below in cls.__subclasses__():
        if not issubclass(below, errors.TrainingError | errors.StackError):  # no request is answered with these
            yield from kinds(below)


def test_every_error_of_ours_has_a_page_with_its_status() -> None:
    assert {kind.code: kind.status for kind in kinds()}.items() <= {
        c: about.status for c, about in ABOUT.items()
    }.items()


@pytest.mark.parametrize(
    "method_path", ["GET /nowhere", "DELETE /healthz", "POST /jobs", "GET /jobs?limit=0", "GET /jobs/job_0"]
)
def test_an_answers_type_is_a_page(server: Server, method_path: str) -> None:
    method, path = method_path.split()
    problem = httpx2.request(method, server.url + path, content=b"x").json()
    page = httpx2.get(server.url + problem["type"])
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert problem["code"] in page.text
    assert 'lang="zh"' in page.text


def test_an_unknown_kind_has_none(server: Server) -> None:
    assert httpx2.get(f"{server.url}/problems/<script>").status_code == 404


@pytest.mark.parametrize("text", ['"' * 200, "\U0001f600" * 200, "x" * 200], ids=["quotes", "emoji", "letters"])
def test_the_errors_that_do_not_fit_into_4_kb_are_left_out_from_the_end(text: str) -> None:
    problems = [errors.FieldProblem(f"/{n}{text}", text, (f"word{n}" * 9,)) for n in range(10)]
    rendered = problem_text(422, "c", "t", text * 5, problems, instance=f"/{text}", request_id="r")
    assert len(rendered.encode()) < 4096
    kept = [error["pointer"][1] for error in json.loads(rendered)["errors"]]
    assert kept == [str(n) for n in range(len(kept))] != []
