"""Rules about the source itself: who may import whom, what may never be called, what the README must name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from api.app import create_app
from core.settings import Settings

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for top in ("api", "client", "core", "worker") for path in (ROOT / top).rglob("*.py"))

HEAVY = {"paddle", "redis", "celery", "fastapi", "uvicorn", "matplotlib", "httpx2", "typer", "s3fs", "fsspec"}
OURS = {"api", "worker", "client"}
CLIENT = {
    f"client.{part}" for part in ("answers", "asynchronous", "calls", "client", "errors", "transfers", "views", "wire")
}  # the Python client
ALLOWED = {  # module -> what of HEAVY and OURS it may load; everything else of them it may not
    "core.errors": set(),
    "core.spec": set(),
    "core.configurations": set(),
    "core.settings": set(),
    "core.redis_address": set(),
    "core.storage": set(),
    "core.remote": set(),
    "core.logs": set(),
    "core.origin": set(),
    "core.tracing": set(),
    "core.processes": set(),
    "core.devices": set(),
    "core.training.datasets": set(),
    "core.training.idx": set(),
    "core.training.sources": set(),
    "core.training.ink": set(),
    "core.training.pictures": set(),
    "core.training.predictor": set(),
    "core.training.evaluation": set(),
    "core.training.runtime": set(),
    "core.training.export": set(),
    "core.training.analysis": set(),
    "core.training.checkpoint": set(),
    "core.training.network": {"paddle"},
    "core.training.optimizers": {"paddle"},
    "core.training.trainer": {"paddle"},
    "core.training.progress": {"paddle"},
    "core.training.fused": set(),
    "core.training.fused.library": set(),
    "core.training.fused.arrays": set(),
    "core.training.fused.kernel": {"paddle"},
    "core.training.rate_range": set(),
    "core.jobs.job": set(),
    "core.jobs.artifacts": set(),
    "core.jobs.spool": set(),
    "core.jobs.database": {"redis"},
    "core.jobs.access": {"redis"},
    "core.jobs.owners": {"redis"},
    "core.jobs.keys": {"redis"},
    "core.jobs.submission": set(),
    "core.jobs.store": {"redis"},
    "core.jobs.work": {"redis"},
    "core.sweep": set(),
    "core.jobs.sweeps": {"redis"},
    "core.jobs.measures": {"redis"},
    "core.jobs.archive": {"redis"},
    "core.jobs.broker": {"celery", "redis"},
    "worker.run": {"redis", "worker"},
    "worker.span": {"redis", "worker"},
    "worker.standby": {"worker"},
    "worker.several": {"worker"},
    "worker.resume": {"worker"},
    "worker.reconcile": {"redis", "celery", "worker"},
    "worker.app": {"redis", "celery", "worker"},
    "worker.trainer_process": {"worker"},
    "worker.monitor": {"redis", "celery", "worker"},
    "api.document": {"redis", "celery", "fastapi", "api"},
    "api.turns": {"api"},
    "api.requests": {"redis", "celery", "fastapi", "api"},
    "api.evaluating": {"redis", "celery", "fastapi", "api"},
    "api.tensors": {"fastapi", "api"},
    "api.infer_request": {"redis", "celery", "fastapi", "api"},
    "api.inference": {"redis", "celery", "fastapi", "api"},
    "api.protocol": {"fastapi", "uvicorn", "api"},
    "api.app": {"redis", "celery", "fastapi", "api"},
    "api.processes": {"redis", "celery", "fastapi", "api"},
    "client.answers": {"client"},
    "client.errors": {"httpx2", "client"},
    "client.wire": {"httpx2", "client"},
    "client.transfers": {"httpx2", "client"},
    "client.views": {"client"},
    "client.calls": {"httpx2", "client"},
    "client.asynchronous": {"httpx2", "client"},
    "client.client": {"httpx2", "client"},
    "client.cli": {"typer", "client"},
    "client.live": {"client"},
    "client.plot": {"client"},
    "client.doctor": {"httpx2", "client"},
    "client.machine": {"httpx2", "client"},
}


@pytest.mark.parametrize("module", ALLOWED)
def test_a_module_loads_only_what_it_may(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    names = set(done.stdout.split())
    loaded = {name.partition(".")[0] for name in names} & (HEAVY | OURS)
    if module.startswith("core.training"):
        assert not {name for name in names if name.startswith(("core.jobs", "core.settings"))}
    if module in CLIENT:
        assert not {name for name in names if name.partition(".")[0] == "core"}
        assert not {name for name in names if name.startswith("client.")} - CLIENT
    assert loaded <= ALLOWED[module]


def test_what_speaks_to_object_stores_has_one_home() -> None:
    spoken = re.compile(r"^\s*(?:from|import) (?:fsspec|s3fs|botocore|aiohttp)", re.MULTILINE)
    assert [path.name for path in SOURCES if spoken.search(path.read_text())] == ["remote.py"]


def test_the_api_starts_without_training_code() -> None:
    code = "import sys; from api.app import create_app; create_app(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"paddle", "numpy", "core.training.trainer", "core.training.network", "s3fs", "fsspec"}


def called(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_stored_is_ever_unpickled_or_evaluated(path: Path) -> None:
    """The one exception reads a package whose digest is pinned, through an unpickler that builds arrays only."""
    tree = ast.parse(path.read_text())
    assert not called(tree) & {"paddle.load", "eval", "exec", "pickle.load", "pickle.loads", "marshal.loads"}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "pickle" not in imported or path.name == "sources.py"


def test_a_broad_except_stands_where_a_job_ends() -> None:
    places = [
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception")
    ]
    assert places == ["app.py", "trainer_process.py"]


def test_every_route_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for path, operations in create_app(Settings()).openapi()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in readme


def test_every_make_target_is_in_make_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for target in re.findall(r"^([a-z-]+):", makefile, re.MULTILINE):
        assert f"make {target}" in shown


def test_the_lock_files_have_hashes_and_no_address() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        for block in re.split(r"\n(?=\S)", text):
            assert block.startswith("#") or "--hash=sha256:" in block


def test_the_tests_that_the_reliability_page_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", (ROOT / "docs" / "reliability.md").read_text()))
    assert len(named) > 8
    assert named <= {path.name for path in (ROOT / "tests").glob("test_*.py")}
