import json
import logging
import re
from pathlib import Path

import pytest

from core.errors import StackError
from core.settings import Settings, available_cores, configure_logging, read_settings

ROOT = Path(__file__).parent.parent


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESCENT_PORT", "eighty")
    with pytest.raises(StackError, match="DESCENT_PORT"):
        read_settings()


def test_a_lease_too_short_for_its_beats_is_refused() -> None:
    with pytest.raises(StackError, match="DESCENT_LEASE_S must be"):
        read_settings(lease_s=3)


def test_the_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings().home == tmp_path / ".descent"


def test_the_socket_of_a_long_home_is_short_and_its_own(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    one, other = Settings(home=deep / "one"), Settings(home=deep / "other")
    assert len(str(one.socket)) < 100
    assert one.socket != other.socket
    assert one.socket == Settings(home=deep / "one").socket


def test_cores_are_shared_among_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "DESCENT_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert Settings(workers=1).threads_per_trainer == available_cores()
    assert Settings(workers=64).threads_per_trainer == 1
    assert Settings(threads=3).threads_per_trainer == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert Settings(workers=64).threads_per_trainer == 7
    assert Settings(threads=3).threads_per_trainer == 3


def test_every_setting_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"`DESCENT_{name.upper()}`" in readme
        assert field.description
        assert field.description in readme


def test_the_readme_names_no_setting_that_is_gone() -> None:
    named = set(re.findall(r"DESCENT_([A-Z_]+)", (ROOT / "README.md").read_text()))
    of_clients = {"url", "api_key"}  # of the Python client and the command line
    assert {name.lower() for name in named} <= set(Settings.model_fields) | of_clients


def test_a_log_line_is_json_with_the_job_id(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("info")
        logging.getLogger("descent.test").info("job claimed", extra={"job_id": "job_1"})
    finally:
        root.handlers, root.level = handlers, level
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["event"], line["job_id"], line["level"]) == ("job claimed", "job_1", "INFO")
