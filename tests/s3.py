"""A real S3 server of its own (moto's), as a process, with a bucket; and who speaks to it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from client.stack import free_port
from core.processes import Child
from core.remote import Remote
from tests.conftest import eventually

BUCKET = "descent"


@dataclass(frozen=True)
class S3:
    """Where it listens. `env` is what a process needs to speak to it, to use with another port for a proxy's."""

    port: int

    def env(self, *, port: int | None = None, secret: str = "wJalrXUtnFEMI.K7MDENG.EXAMPLEKEY") -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def ask_for_credentials(self, wanted: bool) -> None:
        """From now on it looks at credentials, and knows none."""
        body = b"0" if wanted else b"inf"
        httpx2.post(f"http://127.0.0.1:{self.port}/moto-api/reset-auth", content=body).raise_for_status()


@contextmanager
def s3_running(folder: Path) -> Iterator[S3]:
    server = S3(free_port("127.0.0.1"))
    command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(server.port)]
    child = Child("s3", command, log_file=folder / "s3.log")
    try:
        eventually(lambda: _makes_a_bucket(server), within_s=60, what="the S3 server")
        yield server
    finally:
        child.stop(10)


def _makes_a_bucket(server: S3) -> bool:
    try:
        return httpx2.put(f"http://127.0.0.1:{server.port}/{BUCKET}", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def remote(prefix: str, *, copies: Path | None = None, limit_s: float = 10) -> Remote:
    """Files below a prefix of the bucket, as this process' AWS variables say."""
    return Remote(f"s3://{BUCKET}/{prefix}", setting="DESCENT_ARTIFACTS", copies=copies, limit_s=limit_s)
