"""Who gets in: every request passes here before any route, and what is refused is answered with a problem.

In this order: its headers are few enough, its Host is ours (no DNS rebinding), it comes from no foreign page, it has a key
where keys are required, and that key does not ask too often.
"""

import ipaddress
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import answer_to, documented
from api.state import state_of
from core.errors import CrossSite, DescentError, ForeignHost, HeadersTooLarge, RateLimited, Unauthorized, Unavailable
from core.jobs.keys import REMEMBERED_S, Key, KeyStore
from core.settings import Settings, is_loopback

MOST_HEADERS = 100
MOST_HEADER_BYTES = 32 << 10
OPEN = {
    "/",
    *("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"),
    *("/version", "/docs", "/docs/oauth2-redirect", "/openapi.json"),
}
OPEN_BELOW = ("/page/", "/problems/", "/static-offline-docs/")
_SAFE = ("GET", "HEAD", "OPTIONS")
_BURST_S = 10  # a key that was quiet for so long may make up for it at once
_BEARER = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
_HOSTS_KEPT = 1000

Found = Mapping[bytes, list[bytes]]


class Guard:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = Hosts(settings)
        self._needs_key = settings.keys_required
        self._pace = Pace(
            {"submit": settings.submit_rate, "poll": settings.poll_rate, "predict": settings.predict_rate}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = self._read(scope)
            if self._needs_key and not is_open(scope["path"]):
                receive, send = await self._admit(scope, headers, receive, send)
        except DescentError as refused:
            await answer_to(Request(scope), refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _read(self, scope: Scope) -> Found:
        """The headers that matter here. Raises for too many, a foreign Host, or a wish that a foreign page sends."""
        raw = scope["headers"]
        if len(raw) > MOST_HEADERS or sum(len(name) + len(value) for name, value in raw) > MOST_HEADER_BYTES:
            raise HeadersTooLarge(f"send at most {MOST_HEADERS} headers, {MOST_HEADER_BYTES >> 10} KiB in all")
        found: dict[bytes, list[bytes]] = {b"host": [], b"authorization": [], b"origin": [], b"sec-fetch-site": []}
        for name, value in raw:
            if name in found:
                found[name].append(value)
        hosts = found[b"host"]
        if len(hosts) > 1 or (hosts and not self._hosts.has(hosts[0])):
            raise ForeignHost("this server is not the host that the request names; DESCENT_ALLOWED_HOSTS adds names")
        if scope["method"] not in _SAFE and is_cross_site(found):
            raise CrossSite("a page of another site may not change anything here")
        return found

    async def _admit(self, scope: Scope, headers: Found, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Let the owner of a key in. Raises Unauthorized, RateLimited, or Unavailable when keys cannot be looked up."""
        keys = state_of(Request(scope)).keys
        text = bearer(headers[b"authorization"])
        key = await keys.find(text)
        if key is None:
            raise Unauthorized("there is no such key, or it was revoked")
        wait_s = self._pace.wait(key.id, kind_of(scope["method"], scope["path"]), time.monotonic())
        if wait_s:
            raise RateLimited("this key asks too often", retry_after_s=math.ceil(wait_s))
        scope["state"]["caller"] = key.caller
        return while_valid(scope, keys, key, text, receive, send)


def is_open(path: str) -> bool:
    """Whether it is for everybody. What is not named needs a key."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def bearer(values: list[bytes]) -> str:
    """The key in the Authorization header. Raises Unauthorized."""
    if not values:
        raise Unauthorized("send a key: `Authorization: Bearer dsc_...`")
    match = _BEARER.fullmatch(values[0])
    if len(values) > 1 or match is None:
        raise Unauthorized("send one Authorization header, of the form `Bearer dsc_...`")
    return match[1].decode("ascii")


def kind_of(method: str, path: str) -> str:
    if method in _SAFE:
        return "poll"
    return "predict" if path == "/predict" or path.startswith("/v2/") else "submit"


def is_cross_site(headers: Found) -> bool:
    """Whether a browser says that another site's page asks. Programs say nothing of the kind."""
    if headers[b"sec-fetch-site"]:
        return headers[b"sec-fetch-site"][-1] not in (b"same-origin", b"none")
    host = headers[b"host"][0].lower() if headers[b"host"] else b""
    return any(origin.lower() not in (b"http://" + host, b"https://" + host) for origin in headers[b"origin"])


class Hosts:
    """The names this server goes by. Rebinding needs a name, so where others may reach the server any address is one."""

    def __init__(self, settings: Settings) -> None:
        added = (settings.allowed_hosts or "").lower().replace(" ", "").split(",")
        self._names = {"localhost", settings.host.lower(), *(name for name in added if name)}
        self._endings = tuple(name[1:] for name in self._names if name.startswith("*."))
        self._any_address = not is_loopback(settings.host)
        self._known: dict[bytes, bool] = {}

    def has(self, header: bytes) -> bool:
        """Whether a Host header names us."""
        if header not in self._known:
            if len(self._known) >= _HOSTS_KEPT:
                self._known.clear()
            self._known[header] = self._has(header.decode("latin-1").lower())
        return self._known[header]

    def _has(self, text: str) -> bool:
        match = _HOST.fullmatch(text)
        if match is None:
            return False
        name = match[1].strip("[]").removesuffix(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names or name.endswith(self._endings) or "*" in self._names
        return address.is_loopback or self._any_address or name in self._names


class Pace:
    """Token buckets, one for each key and kind of request. They are this process's own: N processes allow N times as much."""

    def __init__(self, rates: Mapping[str, float]) -> None:
        self._rates = rates
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}  # -> tokens, at that time

    def wait(self, key_id: str, kind: str, now: float) -> float:
        """0 when it may go on; it has taken a token then. Else in how many seconds there will be one."""
        rate = self._rates[kind]
        if not rate:
            return 0.0
        most = max(1.0, rate * _BURST_S)
        tokens, at = self._buckets.get((key_id, kind), (most, now))
        tokens = min(most, tokens + (now - at) * rate)
        is_let = tokens >= 1
        self._buckets[key_id, kind] = (tokens - is_let, now)
        return 0.0 if is_let else (1 - tokens) / rate


def while_valid(
    scope: Scope, keys: KeyStore, key: Key, text: str, receive: Receive, send: Send, *, late_s: float = REMEMBERED_S
) -> tuple[Receive, Send]:
    """An answer that comes late, or goes on for long, is for a key that is still valid; it is a 401, or ends, otherwise."""
    is_over, admitted = False, time.monotonic()

    async def is_revoked() -> bool:
        try:
            return await keys.find(text) != key
        except Unavailable:
            return False  # no more will be read from Redis either

    async def send_while(message: Message) -> None:
        nonlocal is_over
        if is_over:
            return
        begins = message["type"] == "http.response.start"
        asks = time.monotonic() - admitted > late_s if begins else bool(message.get("more_body"))
        is_over = asks and await is_revoked()
        if is_over and begins:
            await answer_to(Request(scope), Unauthorized("the key was revoked meanwhile"))(scope, receive, send)
        else:
            await send({"type": "http.response.body", "body": b""} if is_over else message)

    async def receive_while() -> Message:
        return {"type": "http.disconnect"} if is_over else await receive()

    return receive_while, send_while


def document(document: dict[str, Any], *, needs_key: bool) -> None:
    """Say in the OpenAPI document where a key is needed, and what is answered without one."""
    about = "A key that `descent keys create` made. Not needed while the server listens on this machine alone."
    schemes = document["components"].setdefault("securitySchemes", {})
    schemes["key"] = {"type": "http", "scheme": "bearer", "bearerFormat": "dsc_<id>_<secret>", "description": about}
    document["security"] = [{"key": []}] if needs_key else [{"key": []}, {}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if is_open(path):
                operation["security"] = []
                continue
            statuses = (401, 429, 503) if method.upper() in _SAFE else (401, 403, 429, 503)
            for status, answer in documented(*statuses).items():
                operation["responses"].setdefault(str(status), answer)
