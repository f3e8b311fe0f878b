"""What watches the server: Prometheus and Grafana's dashboard over the real /metrics, flower over the real queue."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import promql_parser as promql
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from core.settings import Settings
from core.training.datasets import Dataset
from tests.conftest import ROOT, eventually
from tests.containers import Containers, await_nothing_left, service

DEPLOY = ROOT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/descent.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
LONG = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1000, "log_every": 100}
SCALER = yaml.safe_load((DEPLOY / "kubernetes/autoscaling/worker.yaml").read_text())
WANTED: str = SCALER["spec"]["triggers"][0]["metadata"]["query"]  # how many workers there should be

# Every panel's queries, with a value for Grafana's own variable; and every expression, by where it stands.
TARGETS = [
    target | {"title": panel["title"], "expr": target["expr"].replace("$__rate_interval", "1m")}
    for panel in PANELS
    for target in panel["targets"]
]
EXPRESSIONS: dict[str, str] = {
    **{f"{target['title']} {target['refId']}": target["expr"] for target in TARGETS},
    **{note["name"]: note["expr"] for note in DASHBOARD["annotations"]["list"]},
    **{rule["alert"]: rule["expr"] for rule in RULES},
    "workers wanted": WANTED,
}

# Series that Prometheus itself makes, and labels that it puts on those it scrapes.
OF_PROMETHEUS = {"up": set[str](), "ALERTS": {"alertname", "alertstate"}}
ON_ALL = {"job", "instance"}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not on the PATH (Debian's package has it)"
)


def read(text: str) -> tuple[dict[str, set[str]], set[str]]:
    """The metrics that an expression reads, with the labels it selects by, and those it groups by. Raises for no PromQL."""
    metrics: dict[str, set[str]] = {}
    groups: set[str] = set()

    def visit(node: promql.Expr) -> None:
        match node:
            case promql.MatrixSelector():
                visit(node.vector_selector)
            case promql.VectorSelector():
                metrics.setdefault(node.name or "", set()).update(each.name for each in node.matchers.matchers)
            case promql.AggregateExpr():
                groups.update(node.modifier.labels if node.modifier else ())

    promql.walk(promql.parse(text), visit)
    return metrics, groups


@pytest.fixture
def there(redis_settings: Settings) -> dict[str, set[str]]:
    """The labels of each series of the real /metrics, by its name."""
    with TestClient(create_app(redis_settings), base_url="http://127.0.0.1") as http:
        http.get("/healthz")
        text = http.get("/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


# --- the dashboard as a text ------------------------------------------------------------------------------------------


def test_the_dashboard_and_the_alerts_read_only_what_the_server_tells(there: dict[str, set[str]]) -> None:
    known = {name: labels | ON_ALL for name, labels in (there | OF_PROMETHEUS).items()}
    for place, text in EXPRESSIONS.items():
        metrics, groups = read(text)
        assert metrics
        assert set(metrics) <= set(known), place
        for name, labels in metrics.items():
            assert labels <= known[name], (place, name)
            assert groups <= known[name], (place, name)


def test_the_dashboard_shows_everything_the_server_tells(there: dict[str, set[str]]) -> None:
    shown = {re.sub("_bucket$", "", name) for target in TARGETS for name in read(target["expr"])[0]}
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in there if name.startswith("descent_")}

    assert ours - shown == {"descent_build_info"}


def test_what_an_expression_reads_is_found() -> None:
    assert read('sum by (le) (rate(descent_gone_bucket{a="b"}[5m])) > 1') == ({"descent_gone_bucket": {"a"}}, {"le"})
    with pytest.raises(ValueError):
        read("max(descent_jobs")


def test_a_legend_names_labels_that_its_expression_keeps() -> None:
    for target in TARGETS:
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= read(target["expr"])[1] - {"le"}


def test_panels_stand_beside_each_other_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    grafana = service("grafana")
    mounted = {place: ROOT / source for source, place, *_ in (volume.split(":") for volume in grafana["volumes"])}
    provisioning = mounted["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/descent.yml").read_text())["providers"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])

    assert source["url"] == "http://prometheus:9090"
    (variable,) = DASHBOARD["templating"]["list"]
    assert variable["current"] == {"text": source["name"], "value": source["uid"]}
    assert str(home.parent) == provider["options"]["path"]
    assert json.loads((mounted[str(home.parent)] / home.name).read_text()) == DASHBOARD


def test_nobody_logs_into_grafana() -> None:
    environment = service("grafana")["environment"]

    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert (
        environment["GF_AUTH_DISABLE_LOGIN_FORM"] == environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    )
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"


def test_both_ways_of_running_prometheus_differ_in_where_the_server_is() -> None:
    files = [DEPLOY / "prometheus" / name for name in ("prometheus.yml", "prometheus.compose.yml")]
    alone, beside = (yaml.safe_load(file.read_text()) for file in files)
    targets = [one.pop("scrape_configs")[0]["static_configs"][0]["targets"] for one in (alone, beside)]

    assert targets == [["127.0.0.1:8000"], ["api:8000"]]
    assert alone == beside


# --- Prometheus over a real server ------------------------------------------------------------------------------------


@contextmanager
def running(containers: Containers, *names: str) -> Iterator[dict[str, "subprocess.Popen[bytes]"]]:
    """Those services, each healthy before the next is started; what is still there at the end is killed."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:
        for name in names:
            processes[name] = stack.enter_context(containers.running(name))
            containers.await_healthy(name, processes[name])
        yield processes


@pytest.fixture
def containers(tmp_path: Path, cache: Path, mnist: Dataset) -> Containers:
    """The containers, with the data set in their home."""
    (tmp_path / "cache").symlink_to(cache)
    return Containers(tmp_path)


def asked(containers: Containers, expression: str) -> list[Any]:
    """What Prometheus has for it now."""
    answer = httpx2.get(f"{containers.url('prometheus')}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    found: list[Any] = answer["data"]["result"]
    return found


def is_up(containers: Containers) -> bool:
    return [each["value"][1] for each in asked(containers, 'up{job="descent"}')] == ["1"]


@needs_prometheus
def test_every_panel_shows_something_of_a_server_that_works(containers: Containers) -> None:
    with (
        running(containers, "redis", "api", "worker", "prometheus"),
        httpx2.Client(base_url=containers.url("api"), timeout=60) as http,
    ):
        eventually(lambda: is_up(containers), what="the first scrape")
        jobs = [http.post("/jobs", json=LONG).json()["id"] for _ in range(2)]
        eventually(
            lambda: wanted(containers) == 2, what="a worker wanted for the job that runs and one for that which waits"
        )
        for job in jobs:
            http.post(f"/jobs/{job}/cancel")
        eventually(lambda: wanted(containers) == 0, within_s=60, what="no worker wanted")

        def silent() -> list[str]:
            http.post("/predict", json={"model": jobs[0], "image": [0.0] * 784})
            return [target["title"] for target in TARGETS if not asked(containers, target["expr"])]

        eventually(lambda: silent() == ["Alerts"], within_s=60, what="something in each panel but the alerts")
        (rules,) = httpx2.get(f"{containers.url('prometheus')}/api/v1/rules").json()["data"]["groups"]
        assert {rule["state"] for rule in rules["rules"]} == {"inactive"}


def wanted(containers: Containers) -> float:
    """How many workers an autoscaler would want."""
    (found,) = asked(containers, WANTED)
    return float(found["value"][1])


@needs_prometheus
def test_prometheus_shows_its_key_where_keys_are_asked_for(containers: Containers, tmp_path: Path) -> None:
    containers.variables = {"DESCENT_INSECURE": "0", "METRICS_KEY_FILE": str(tmp_path / "key")}
    with running(containers, "redis"):
        key = containers.run("api", "descent", "keys", "create", "prometheus")
        (tmp_path / "key").write_text(key)
        with running(containers, "api", "prometheus"):
            assert httpx2.get(f"{containers.url('api')}/metrics").status_code == 401
            eventually(lambda: is_up(containers), what="a scrape that is let in")


# --- flower -----------------------------------------------------------------------------------------------------------


def test_flower_shows_the_jobs_of_workers_that_tell(containers: Containers) -> None:
    containers.variables = {"DESCENT_TASK_EVENTS": "1"}
    with running(containers, "redis", "flower", "api", "worker") as processes:
        job = httpx2.post(f"{containers.url('api')}/jobs", json={"optimizer": "sgd", "learning_rate": 0.1}).json()

        def page() -> str:
            answer = httpx2.get(f"{containers.url('flower')}/task/{job['id']}")
            return answer.text if answer.status_code == 200 else ""

        assert "descent.train" in eventually(page, what="the job in flower")
        workers = httpx2.get(f"{containers.url('flower')}/workers?json=1").json()["data"]
        assert [each["hostname"].partition("@")[2] for each in workers] == [socket.gethostname()]
        for name in ("flower", "worker"):
            containers.stop(name, processes[name])
            await_nothing_left(processes[name].pid)


def test_flower_that_is_not_installed_says_so() -> None:
    code = "import sys; sys.modules['flower'] = None; import worker.monitor; worker.monitor.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=30)

    assert done.returncode == 1
    assert "the package `flower` is missing" in done.stderr
