"""A Redis server that speaks TLS, for the tests: the embedded one cannot.

It is one on the PATH (or in DESCENT_REDIS_SERVER), or Debian's: `python -m tests.tls_redis` fetches its packages and unpacks
them in the virtual environment. Nothing is installed, so nothing starts on this machine, and it needs no root. `make test` does
so.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trustme
from redis import Redis

from client.stack import free_port
from core.jobs.access import USERS
from core.processes import Child
from tests.conftest import eventually

HOW = (
    "the tests of TLS need a Redis 7.0 or newer, or a Valkey, that speaks it: `apt-get install redis-server`, "
    "or name one in DESCENT_REDIS_SERVER"
)
NAMES = ("redis-server", "valkey-server")
_UNPACKED = Path(sys.prefix) / "redis-server"
_FETCH_LIMIT_S = 300
PASSWORDS = {  # what a person, or a generator of passwords, may come up with
    "descent-api": "a p@ss/word#1?&%41:+=",
    "descent-worker": "größe\"'\\$HOME`x`",
    "descent": "descent",
    "admin": "admin",
}


def server() -> str | None:
    """A server's path, or None."""
    named = os.environ.get("DESCENT_REDIS_SERVER")
    path = f"{os.environ.get('PATH', '')}{os.pathsep}{_UNPACKED / 'usr' / 'bin'}"
    found = (shutil.which(name, path=path) for name in ([named] if named else NAMES))
    return next((each for each in found if each and _speaks_tls(each)), None)


def _speaks_tls(path: str) -> bool:
    return b"tls-cert-file" in Path(path).read_bytes()


def fetch() -> None:
    """Unpack Debian's server, with the libraries that are missing here, where there is an apt-get."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        sys.stderr.write(f"{HOW}\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "partial").mkdir()
        options = ("Debug::NoLocking=1", f"Dir::Cache::archives={folder}", "APT::Sandbox::User=", "Acquire::Retries=3")
        apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
        packages = ["--yes", "--no-install-recommends", "redis-server", "redis-tools"]
        if os.geteuid() == 0:
            _run([*apt, "update"])
        if _run([*apt, "--download-only", "--reinstall", "install", *packages]):
            for package in Path(folder).glob("*.deb"):
                _run(["dpkg", "--extract", str(package), str(_UNPACKED)])


def _run(command: list[str]) -> bool:
    try:
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=_FETCH_LIMIT_S, check=True)
    except subprocess.SubprocessError as error:
        sys.stderr.write(f"{error}\n{HOW}\n")
        return False
    return True


class Authority:
    """A certificate authority, and certificates of its making, as PEM files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self._ca = folder, trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *, until: datetime | None = None) -> Path:
        """A certificate for a host name, with its key in the same file."""
        file = self._folder / f"{name}.pem"
        made = self._ca.issue_cert(name, not_after=until)
        made.private_key_and_cert_chain_pem.write_to_path(str(file))
        return file


EXPIRED = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class TlsRedis:
    """A server that runs: where, and how its users reach it."""

    port: int
    authority: Authority
    folder: Path

    def variables(self, user: str, **more: object) -> dict[str, str]:
        """What a process of ours is told, to be this user: the settings' variables."""
        password_file = self.folder / f"{user}.password"
        password_file.write_text(f"{PASSWORDS[user]}\n")
        values = {
            "url": f"rediss://{user}@localhost:{self.port}/0",
            "password_file": password_file,
            "ca": self.authority.file,
        }
        return {f"DESCENT_REDIS_{name.upper()}": str(value) for name, value in (values | more).items() if value}

    @contextmanager
    def admin(self) -> Iterator[Redis]:
        """A connection that may do everything."""
        with Redis(
            port=self.port, ssl=True, ssl_ca_certs=str(self.authority.file), ssl_certfile=str(self.authority.issue("admin")),
            username="admin", password=PASSWORDS["admin"], decode_responses=True, socket_timeout=None,
        ) as redis:  # fmt: skip
            yield redis


@contextmanager
def tls_redis(
    folder: Path,
    *,
    users: str = USERS,
    name: str = "localhost",
    until: datetime | None = None,
    asks_for_ours: bool = False,
) -> Iterator[TlsRedis]:
    """A server with these users, a certificate for this name, and no plain port; stopped afterwards."""
    binary = server()
    assert binary is not None
    folder.mkdir()
    running = TlsRedis(free_port("127.0.0.1"), Authority(folder / "certificates"), folder)
    certificate = running.authority.issue(name, until=until)
    options = {
        "port": "0", "tls-port": str(running.port), "bind": "127.0.0.1", "dir": str(folder), "save": "",
        "tls-cert-file": str(certificate), "tls-key-file": str(certificate), "tls-ca-cert-file": str(running.authority.file),
        "tls-auth-clients": "yes" if asks_for_ours else "no", "aclfile": str(_acl_file(folder, users)),
    }  # fmt: skip
    command = [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
    libraries = sorted({str(file.parent) for file in _UNPACKED.glob("usr/lib/**/*.so*")})
    child = Child("redis", command, log_file=folder / "log", env={"LD_LIBRARY_PATH": os.pathsep.join(libraries)})
    try:
        eventually(lambda: _listens(running.port) or child.exit_code is not None, what="the server")
        assert child.exit_code is None, (folder / "log").read_text()
        yield running
    finally:
        child.stop(10)


def _acl_file(folder: Path, users: str) -> Path:
    """The users as an operator sets them up: what is in the repository, with the digests of passwords."""
    for place, user in (("THE_API", "descent-api"), ("THE_WORKER", "descent-worker"), ("THE", "descent")):
        digest = hashlib.sha256(PASSWORDS[user].encode()).hexdigest()
        users = users.replace(f"#SHA256_OF_{place}_PASSWORD", f"#{digest}")
    file = folder / "users.acl"
    file.write_text(f"{users}user admin on >{PASSWORDS['admin']} ~* &* +@all\n")
    return file


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    if server() is None:
        fetch()
