"""The proxy of the fault tests does to connections what it says."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.proxy import Mode, Proxy


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while chunk := self.request.recv(1 << 16):
            self.request.sendall(chunk)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    path = tmp_path / "echo.sock"
    with _Server(str(path), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Proxy(path) as proxy:
            yield proxy
        server.shutdown()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def said_back(connection: socket.socket, text: bytes) -> bytes:
    """What comes back for `text`; empty when the other side has closed. Raises TimeoutError after the socket's limit."""
    connection.sendall(text)
    answer = b""
    while len(answer) < len(text):
        if not (chunk := connection.recv(1 << 16)):
            return b""
        answer += chunk
    return answer


def is_silent(connection: socket.socket) -> bool:
    """Whether what is said is taken and never answered."""
    connection.settimeout(0.2)
    try:
        said_back(connection, b"is anybody there?")
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)
    return False


def test_it_passes_everything_on(proxy: Proxy) -> None:
    much = b"0123456789" * 200_000
    with connect(proxy) as one, connect(proxy) as other:
        sending = threading.Thread(target=one.sendall, args=(much,))
        sending.start()
        assert said_back(other, b"meanwhile") == b"meanwhile"
        received = b""
        while len(received) < len(much):
            received += one.recv(1 << 16)
        sending.join()
        assert received == much
        assert proxy.open_connections == 2
    eventually(lambda: proxy.open_connections == 0, what="the end of both")


def test_a_tcp_server_can_be_behind_it_too(proxy: Proxy) -> None:
    with Proxy(("127.0.0.1", proxy.port)) as front, connect(front) as connection:
        assert said_back(connection, b"twice") == b"twice"


def test_a_server_that_is_away_refuses(tmp_path: Path) -> None:
    with Proxy(tmp_path / "nobody.sock") as proxy:
        with pytest.raises(ConnectionError), connect(proxy) as connection:  # it may be gone while it is being made
            if said_back(connection, b"hello") == b"":
                raise ConnectionError
        eventually(lambda: proxy.open_connections == 0, what="its end")


def test_reset_cuts_every_connection_once(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        assert said_back(one, b"a") + said_back(other, b"b") == b"ab"
        assert proxy.reset() == 2
        for connection in (one, other):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    with connect(proxy) as later:
        assert said_back(later, b"c") == b"c"


def test_a_blackhole_swallows_and_resets_what_it_touched_when_it_ends(proxy: Proxy) -> None:
    with connect(proxy) as touched, connect(proxy) as untouched:
        assert said_back(touched, b"a") + said_back(untouched, b"b") == b"ab"
        proxy.set_mode(Mode.BLACKHOLE)
        assert is_silent(touched)
        with connect(proxy) as new:
            assert is_silent(new)
            proxy.set_mode(Mode.PASS)
            for lost in (touched, new):
                with pytest.raises(ConnectionResetError):
                    lost.recv(1)
        assert said_back(untouched, b"c") == b"c"


def test_a_blackhole_swallows_answers_and_goodbyes_too(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        assert said_back(connection, b"a") == b"a"
        proxy.set_delay(0.3)
        connection.sendall(b"the answer is under way")
        time.sleep(0.1)
        proxy.set_mode(Mode.BLACKHOLE)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.8)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert proxy.open_connections == 1
        proxy.set_mode(Mode.PASS)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_delay_keeps_what_passes_each_way(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        assert said_back(connection, b"a") == b"a"
        proxy.set_delay(0.2)
        began = time.monotonic()
        assert said_back(connection, b"slow") == b"slow"
        assert time.monotonic() - began >= 0.4
        proxy.set_delay(0)
        began = time.monotonic()
        assert said_back(connection, b"quick") == b"quick"
        assert time.monotonic() - began < 0.2


def test_half_open_connections_are_silent_until_they_are_found_dead(proxy: Proxy) -> None:
    with connect(proxy) as old, connect(proxy) as idle:
        assert said_back(old, b"a") + said_back(idle, b"b") == b"ab"
        proxy.set_mode(Mode.HALF_OPEN)
        with connect(proxy) as new:
            assert is_silent(old)
            assert is_silent(new)
            proxy.set_mode(Mode.PASS)
            for lost in (old, idle, new):
                with pytest.raises(ConnectionResetError):
                    lost.recv(1)
    with connect(proxy) as later:
        assert said_back(later, b"c") == b"c"
