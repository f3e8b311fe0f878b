import json
import logging
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from redis.asyncio.connection import parse_url

from core.errors import StackError
from core.jobs.broker import broker_url
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


SECRET = "p@ss/w#rd:%41 ?&+ é"


@pytest.mark.parametrize(
    ("text", "name", "broker"),
    [
        ("redis://ann@localhost:7000/3", "redis://ann@localhost:7000/3", "redis://ann:{}@localhost:7000/3"),
        ("redis://localhost?db=3", "redis://localhost", "redis://:{}@localhost/3"),
        ("unix://ann@/redis.sock?db=3", "unix://ann@/redis.sock", "redis+socket://ann:{}@/redis.sock?virtual_host=3"),
    ],
)
def test_a_password_out_of_a_file_reaches_store_and_broker(text: str, name: str, broker: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\r\n")
    settings = read_settings(redis_url=text, redis_password_file=file)
    asked = parse_url(settings.store_url)
    assert (asked["password"], asked["db"]) == (SECRET, 3)
    assert broker_url(settings.store_url) == broker.format(quote(SECRET, safe=""))
    assert settings.store_name == name
    for said in (repr(settings), str(settings), settings.store_name, settings.model_dump_json()):
        assert SECRET not in said


def test_a_child_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(SECRET)
    inside = read_settings(redis_url="redis://ann:secret@localhost/0", home=tmp_path, threads=3)
    beside = read_settings(redis_url="redis://ann@localhost/0", redis_password_file=tmp_path / "password")
    private = beside.model_copy(update={"redis_url": None})  # as the demo has it
    for settings in (inside, beside, private):
        for name, value in settings.variables().items():
            monkeypatch.setenv(name, value)
        assert read_settings().store_url == settings.store_url
    assert "secret" not in repr(inside)


def test_a_server_is_verified_unless_told_otherwise() -> None:
    asked = parse_url(read_settings(redis_url="rediss://localhost/0").store_url)
    assert (asked["ssl_cert_reqs"], asked["ssl_check_hostname"]) == ("required", True)  # type: ignore[typeddict-item]
    asked = parse_url(read_settings(redis_url="rediss://localhost/0?ssl_cert_reqs=none").store_url)
    assert asked["ssl_cert_reqs"] == "none"  # type: ignore[typeddict-item]
    assert "ssl" not in read_settings(redis_url="redis://localhost/0").store_url


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"redis_url": "http://localhost"}, "must begin with"),
        ({"redis_url": "redis://"}, "must be like"),
        ({"redis_url": "rediss://localhost/zero"}, "number of a database"),
        ({"redis_url": "rediss://ann:top#secret@localhost/0"}, "%23"),
        ({"redis_url": "rediss://ann:top/secret@localhost/0"}, "%2F"),
        ({"redis_url": "rediss://ann:top?secret@localhost/0"}, "DESCENT_REDIS_PASSWORD_FILE"),
        ({"redis_url": "redis://ann:secret@localhost/0", "redis_password_file": "one"}, "leave one out"),
        ({"redis_url": "redis://localhost/0", "redis_password_file": "nowhere"}, "cannot be read"),
        ({"redis_url": "redis://localhost/0", "redis_password_file": "empty"}, "must be one line"),
        ({"redis_url": "redis://localhost/0", "redis_password_file": "two"}, "must be one line"),
        ({"redis_password_file": "one"}, "DESCENT_REDIS_URL is to name"),
        ({"redis_ca": "one"}, "DESCENT_REDIS_URL is to name"),
        ({"redis_url": "redis://localhost/0", "redis_ca": "one"}, "DESCENT_REDIS_CA is for TLS"),
        ({"redis_url": "unix:///redis.sock", "redis_cert": "one"}, "DESCENT_REDIS_CERT is for TLS"),
        ({"redis_url": "rediss://localhost/0", "redis_ca": "one"}, "holds no certificates"),
        ({"redis_url": "rediss://localhost/0", "redis_ca": "nowhere"}, "No such file"),
        ({"redis_url": "rediss://localhost/0", "redis_cert": "one"}, "no certificate with its key"),
        ({"redis_url": "rediss://localhost/0", "redis_cert": "one", "redis_key": "two"}, "no certificate and its key"),
        ({"redis_url": "rediss://localhost/0", "redis_key": "one"}, "DESCENT_REDIS_CERT, which is not set"),
    ],
)
def test_what_does_not_fit_together_is_told_without_the_password(
    given: dict[str, str], said: str, tmp_path: Path
) -> None:
    for name, text in {"one": "secret", "two": "secret\nsecret", "empty": "\n"}.items():
        (tmp_path / name).write_text(text)
    named = {name: value if name == "redis_url" else tmp_path / value for name, value in given.items()}
    with pytest.raises(StackError) as refused:
        read_settings(**named)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)
