"""What the benches say of servers must be right: what their processes take, and that none of them is left behind."""

import re
import subprocess
import sys

import httpx2
import pytest

from bench.servers import serving
from client.stack import free_port
from tests.conftest import ROOT, eventually, is_alive

HELD_MB = 64
# A server whose child outlives it unless somebody ends it, too.
SERVER = f"""
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "x = b'x' * ({HELD_MB} << 20); import time; time.sleep(60)"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d" % child.pid)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="benches read /proc")
def test_a_server_is_measured_with_its_children_and_none_of_them_is_left() -> None:
    port = free_port("127.0.0.1")
    with serving([sys.executable, "-c", SERVER, str(port)], f"http://127.0.0.1:{port}", {}, ready="/") as server:
        child = int(httpx2.get(server.url).text)
        eventually(lambda: server.usage().pss_mb > HELD_MB)
        usage = server.usage()
        assert len(usage.rss_mb) == 2
        assert max(usage.rss_mb) > HELD_MB
        assert 0 < usage.cpu_s < 60
    eventually(lambda: not is_alive(server.pid) and not is_alive(child))


@pytest.mark.skipif(sys.platform != "linux", reason="benches read /proc")
def test_the_simulation_of_many_workers_does_every_job_once() -> None:
    done = subprocess.run(
        [sys.executable, "bench/scale.py", "--quick"], capture_output=True, text=True, cwd=ROOT, timeout=300, check=True
    )
    assert "60 jobs have succeeded" in done.stdout
    moves = set(re.findall(r"^\| ([a-z].*?) \| [\d,]+ \| \d+ \|$", done.stdout, re.MULTILINE))
    assert {"submit", "claim", "beat", "finish"} <= moves
    (one, four) = (row.split(" | ") for row in re.findall(r"^\| [14] \| .*$", done.stdout, re.MULTILINE))
    assert all(float(row[1]) > 0 for row in (one, four))
