"""What every answer says to browsers: take it for what it is, show it in no frame, keep it in no cache, load nothing for it."""

from collections.abc import MutableSequence

Raw = tuple[bytes, bytes]

_ALWAYS: list[Raw] = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]
_NOTHING = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# Swagger's page has an inline script and inline styles, and draws its icons from data: addresses. It shows no input of users.
_DOCS = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_DOCS_PATHS = ("/docs", "/docs/oauth2-redirect")


def complete(headers: MutableSequence[Raw], path: str) -> None:
    """Add what an answer does not say itself."""
    said = {name for name, _ in headers}
    headers.extend(_ALWAYS)
    if b"content-security-policy" not in said:
        headers.append((b"content-security-policy", _DOCS if path in _DOCS_PATHS else _NOTHING))
    if b"cache-control" not in said:  # what has a name may be kept, but is to be asked for again
        headers.append((b"cache-control", b"no-cache" if b"etag" in said else b"no-store"))
