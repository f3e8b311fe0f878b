"""The settings: every knob of the server in one place, read from `DESCENT_...` variables; and the logging set-up."""

import hashlib
import ipaddress
import logging.config
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.errors import StackError
from core.redis_address import RedisAddress
from core.spec import Device

# The shortest limit of the systems we run on (macOS 104, Linux 108), the closing NUL counted.
_SOCKET_PATH_LIMIT = 104

_ABOUT_REDIS = ("redis_password_file", "redis_ca", "redis_cert", "redis_key")  # that DESCENT_REDIS_URL names
_GPU_ID = r"([0-9]+|(GPU|MIG)-[A-Za-z0-9/-]+)"  # as NVIDIA's driver numbers it, or its UUID
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9._-]+)*")


def _checked_location(text: str) -> str:
    """A folder's absolute path, or an address."""
    if "://" not in text or text.startswith("file:///"):
        return str(Path(text.removeprefix("file://")).expanduser().absolute())
    if not _BUCKET.fullmatch(text.rstrip("/")):
        raise ValueError(
            "must be a folder or s3://bucket/prefix, of letters, digits and ._-/; credentials belong into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, another server than Amazon's into AWS_ENDPOINT_URL"
        )
    return text.rstrip("/")


Location = Annotated[str, AfterValidator(_checked_location)]
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class Settings(BaseSettings):
    """All settings. The field `home` is the variable `DESCENT_HOME`, and so on; the README lists them from here."""

    model_config = SettingsConfigDict(
        env_prefix="DESCENT_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on; 0 takes a free one.")
    api_processes: int = Field(
        1, ge=1, le=64, description="API processes that share the port, each with rates of its own."
    )
    insecure: bool = Field(False, description="Ask for no key, also where others may reach the port.")
    require_keys: bool = Field(
        False, description="Ask for keys on a loopback address as well: for a server behind a reverse proxy."
    )
    allowed_hosts: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9*._:, -]+$",
        description="Further names in `Host` headers, with commas: `descent.example.org,*.lab.example`; `*` is any.",
    )
    submit_rate: float = Field(
        10, ge=0, description="Changes (`POST /jobs`, cancel, ...) a second for each key; 0: no limit."
    )
    poll_rate: float = Field(200, ge=0, description="Reads a second for each key; 0: no limit.")
    predict_rate: float = Field(50, ge=0, description="Predictions a second for each key; 0: no limit.")
    most_live: int = Field(1000, ge=1, description="Jobs of one owner that have not ended; more are refused.")
    most_kept: int = Field(10_000, ge=1, description="Jobs of one owner, ended ones as well; more are refused.")
    most_queued: int = Field(20_000, ge=1, description="Jobs in the queue, of all together; more are refused.")
    home: AbsolutePath = Field(
        Path(".descent"), validate_default=True, description="Everything the server keeps: database, jobs, cache, logs."
    )
    cache: AbsolutePath | None = Field(None, description="Fetched data sets; default `cache` in the home.")
    datasets: AbsolutePath | None = Field(None, description="A folder of data sets of your own, looked at first.")
    data_mirror: Location | None = Field(
        None, description="A mirror of the data sets, asked before other sources: `s3://bucket/prefix` or a folder."
    )
    artifacts: Location | None = Field(
        None,
        description="Where the jobs' files are: `s3://bucket/prefix` (extra `s3`) or a folder; default `jobs` in the home.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="A Redis or Valkey to use instead of the embedded server: `redis://`, `rediss://` or `unix://`.",
    )
    redis_password_file: AbsolutePath | None = Field(
        None, description="A file with the password for `DESCENT_REDIS_URL`, which then has none."
    )
    redis_ca: AbsolutePath | None = Field(
        None, description="Certificates (PEM) to trust in a `rediss://` server, besides the system's."
    )
    redis_cert: AbsolutePath | None = Field(
        None, description="Our own certificate (PEM), for a `rediss://` server that asks for one."
    )
    redis_key: AbsolutePath | None = Field(None, description="Its private key; default in the same file.")
    redis_memory_mb: int = Field(512, ge=16, description="Memory limit of the embedded server, in MiB.")
    durability: Literal["everysec", "always"] = Field(
        "always",
        description="When the embedded server syncs its writes: before it answers, or every second, which a crash can cost.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Workers that a machine runs, each of which trains one job at a time; default one for each GPU, or 1.",
    )
    device: Device = Field("auto", description="Where jobs that say `auto` train: `auto`, `cpu`, `gpu`, `gpu:N`.")
    gpus: str | None = Field(
        None,
        pattern=rf"^(none|{_GPU_ID}(,{_GPU_ID}){{0,15}})$",
        description="GPUs that workers share out, one each, as `CUDA_VISIBLE_DEVICES` names them: `0,1`; or `none`. Default "
        "those that `nvidia-smi` shows.",
    )
    threads: int | None = Field(
        None, ge=1, le=256, description="CPU threads of one trainer; default the cores divided by the workers."
    )
    kernel: Literal["fused", "plain"] = Field(
        "fused",
        description="What computes on a CPU: our `fused` layer, or `plain` operators (Paddle's, and NumPy's in predictions).",
    )
    kernels: AbsolutePath | None = Field(
        None, description="A folder of kernels built ahead of time, for machines without a compiler."
    )
    task_events: bool = Field(False, description="Workers tell Celery's monitors, such as flower, what they do.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    lease_s: float = Field(30, gt=0, description="A worker that is silent for so long has lost its job.")
    beat_s: float = Field(5, gt=0, description="How often a worker renews its lease and asks whether to stop.")
    report_s: float = Field(
        0.2,
        gt=0,
        description="How often the losses of a running job are written, at most; more workers want it longer.",
    )
    scan_s: float = Field(10, gt=0, description="How often lost jobs and lost messages are looked for.")
    stop_s: float = Field(30, gt=0, description="How long a trainer may take to stop before it is killed.")
    checkpoint_s: float = Field(30, gt=0, description="How often a trainer saves what it needs to go on, at least.")
    trainer_memory_mb: int | None = Field(
        None, ge=256, description="Memory one trainer may take (Linux); default an equal share of the machine's."
    )

    @model_validator(mode="after")
    def _beats_fit_into_a_lease(self) -> "Settings":
        if self.lease_s < 3 * self.beat_s:
            raise ValueError("DESCENT_LEASE_S must be at least three times DESCENT_BEAT_S")
        return self

    @model_validator(mode="after")
    def _is_secure_or_not(self) -> "Settings":
        if self.insecure and self.require_keys:
            raise ValueError("DESCENT_INSECURE and DESCENT_REQUIRE_KEYS contradict each other")
        return self

    @model_validator(mode="after")
    def _says_how_to_reach_redis(self) -> "Settings":
        if address := self._redis_address:
            address.check()
            return self
        for name in _ABOUT_REDIS:
            if getattr(self, name):
                raise ValueError(f"DESCENT_{name.upper()} is about a server that DESCENT_REDIS_URL is to name")
        return self

    @property
    def keys_required(self) -> bool:
        """Whether a request needs a key: where others than this machine may reach the port, unless told otherwise."""
        return not self.insecure and (self.require_keys or not is_loopback(self.host))

    @property
    def cache_dir(self) -> Path:
        return self.cache or self.home / "cache"

    @property
    def logs_dir(self) -> Path:
        return self.home / "logs"

    @property
    def jobs_dir(self) -> Path:
        return self.home / "jobs"

    @property
    def artifacts_at(self) -> str:
        """Where the jobs' files are: a folder's path, or an address."""
        return self.artifacts or str(self.jobs_dir)

    @property
    def socket(self) -> Path:
        """Socket of the embedded server: in the home, or, where that path is too long, in a private short folder."""
        direct = self.home / "redis" / "redis.sock"
        if len(os.fsencode(direct)) < _SOCKET_PATH_LIMIT:
            return direct
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"descent-{os.getuid()}-{digest}" / "redis.sock"

    @property
    def store_url(self) -> str:
        """The Redis to talk to, as redis-py spells it: all that is set about it in one URL, the password too."""
        return self._redis_address.url if self._redis_address else f"unix://{self.socket}"

    @property
    def store_name(self) -> str:
        """The Redis to talk to, for people: without the password."""
        return self._redis_address.name if self._redis_address else str(self.socket)

    @property
    def _redis_address(self) -> RedisAddress | None:
        if self.redis_url is None:
            return None
        return RedisAddress(
            text=self.redis_url.get_secret_value(),
            password_file=self.redis_password_file,
            ca=self.redis_ca,
            cert=self.redis_cert,
            key=self.redis_key,
        )

    def variables(self) -> dict[str, str]:
        """These settings as variables, for a child process. A password is among them."""
        values = self.model_dump(mode="json") | {"redis_url": self.redis_url and self.redis_url.get_secret_value()}
        if self.redis_url is None:
            values |= dict.fromkeys(_ABOUT_REDIS)
        # An empty variable is an unset one: what the user's shell says must not come back where we say nothing.
        return {f"DESCENT_{field.upper()}": "" if value is None else str(value) for field, value in values.items()}

    @property
    def leave_s(self) -> float:
        """How long a worker may take to leave: its trainer stops, and the job is given back."""
        return max(40.0, self.stop_s + 10)

    @property
    def threads_per_trainer(self) -> int:
        """Ours if it is set, else what `OMP_NUM_THREADS` says to all programs, else this worker's share of the cores."""
        usual = os.environ.get("OMP_NUM_THREADS", "")
        share = max(1, available_cores() // (self.workers or 1))
        return self.threads or (int(usual) if usual.isdecimal() else 0) or share

    @property
    def memory_per_trainer(self) -> int:
        """Bytes one trainer may take."""
        if self.trainer_memory_mb:
            return self.trainer_memory_mb << 20
        return available_memory() // (self.workers or 1)


def read_settings(**overrides: object) -> Settings:
    """The settings of this process. Raises StackError naming the variable that is wrong."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        places = [
            (f"DESCENT_{str(e['loc'][0]).upper()}: " if e["loc"] else "", e) for e in error.errors(include_input=False)
        ]
        lines = [f"{place}{e['msg'].removeprefix('Value error, ')}" for place, e in places]
        raise StackError("; ".join(lines)) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there. A name other than localhost could be any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def available_cores() -> int:
    """Cores this process may use: its affinity, and a container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.exists():
        quota, period = quota_file.read_text().split()[:2]
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def available_memory() -> int:
    """Bytes of memory this process may use: the machine's, and a container's limit where there is one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit_file = Path("/sys/fs/cgroup/memory.max")
    limit = limit_file.read_text().strip() if limit_file.exists() else "max"
    return memory if limit == "max" else min(memory, int(limit))


def configure_logging(level: str) -> None:
    """JSON lines on stderr, one per event, for our loggers and those of the libraries below us; warnings are events too."""
    logging.captureWarnings(True)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": "core.logs.Lines",
                    "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
                    "rename_fields": {"asctime": "at", "levelname": "level", "name": "logger", "message": "event"},
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            "loggers": {
                name: {"level": "WARNING"} for name in ("uvicorn.access", "httpx2", "botocore", "aiobotocore", "s3fs")
            },
        }
    )
