"""Where Redis is and how it is reached: the settings about it, checked, and put together into one URL."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

_ENCODE = (
    "the special characters of a password in DESCENT_REDIS_URL are percent-encoded (`#` is %23, `/` is %2F, `@` is %40); "
    "or put it into a file and name that in DESCENT_REDIS_PASSWORD_FILE"
)
_VERIFIED = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}  # kombu checks nothing unless it is told to


@dataclass(frozen=True, kw_only=True)
class RedisAddress:
    """DESCENT_REDIS_URL and what belongs to it. What is wrong raises ValueError, which repeats no password."""

    text: str
    password_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def check(self) -> None:
        """Read all that a connection will read. Raises ValueError saying which variable is wrong."""
        tls = {"CA": self.ca, "CERT": self.cert, "KEY": self.key}
        if self._parts.scheme != "rediss" and any(tls.values()):
            name = next(name for name, file in tls.items() if file)
            raise ValueError(f"DESCENT_REDIS_{name} is for TLS, and DESCENT_REDIS_URL is not `rediss://...`")
        if self._parts.password and self.password_file:
            raise ValueError(
                "DESCENT_REDIS_URL has a password, and there is DESCENT_REDIS_PASSWORD_FILE: leave one out"
            )
        if self.password_file:
            _password_in(self.password_file)
        _try_certificates(self.ca, self.cert, self.key)

    @property
    def url(self) -> str:
        """All in one, as redis-py spells it: password, files, and that the server's certificate is verified."""
        who, at, place = self._parts.netloc.rpartition("@")
        if self.password_file:
            who, at = f"{who.removesuffix(':')}:{quote(_password_in(self.password_file), safe='')}", "@"
        options = dict(parse_qsl(self._parts.query))
        if self._parts.scheme == "rediss":
            files = {"ssl_ca_certs": self.ca, "ssl_certfile": self.cert, "ssl_keyfile": self.key}
            options = _VERIFIED | {name: str(path) for name, path in files.items() if path} | options
        query = f"?{urlencode(options)}" if options else ""
        return f"{self._parts.scheme}://{who}{at}{place}{self._parts.path}{query}"

    @property
    def name(self) -> str:
        """The address for people: without password and options."""
        user = f"{self._parts.username}@" if self._parts.username else ""
        return f"{self._parts.scheme}://{user}{self._parts.netloc.rpartition('@')[2]}{self._parts.path}"

    @property
    def _parts(self) -> SplitResult:
        if not self.text.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("DESCENT_REDIS_URL must begin with `redis://`, `rediss://` or `unix://`")
        try:
            url = urlsplit(self.text)
            port = url.port
        except ValueError:
            raise ValueError(_ENCODE) from None
        if url.fragment or "@" in url.path + url.query:
            raise ValueError(_ENCODE)
        if not (url.path.strip("/") if url.scheme == "unix" else url.hostname) or port == 0:
            raise ValueError("DESCENT_REDIS_URL must be like `rediss://user@host:6379/0` or `unix:///path/of/the.sock`")
        if url.scheme != "unix" and not (url.path.strip("/") or "0").isdecimal():
            raise ValueError("DESCENT_REDIS_URL ends with the number of a database, as in `rediss://user@host:6379/0`")
        return url


def _password_in(file: Path) -> str:
    """What the file says, without the newline at its end. Raises ValueError."""
    try:
        password = file.read_text().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"DESCENT_REDIS_PASSWORD_FILE: {file} cannot be read ({_reason(error)})") from None
    if not password or "\n" in password:
        raise ValueError(f"DESCENT_REDIS_PASSWORD_FILE: {file} must be one line, the password")
    return password


def _try_certificates(ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """Read the files as every connection will. Raises ValueError naming the variable whose file is of no use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca:
        try:
            context.load_verify_locations(ca)
        except OSError as error:  # of which ssl's own errors are
            raise ValueError(f"DESCENT_REDIS_CA: {ca} holds no certificates to trust ({_reason(error)})") from None
    if key and not cert:
        raise ValueError("DESCENT_REDIS_KEY is the key of the certificate in DESCENT_REDIS_CERT, which is not set")
    if cert:
        try:
            context.load_cert_chain(cert, key, password="")  # else a key that is encrypted would ask at the terminal
        except OSError as error:
            what = (
                f"{cert} and {key} are no certificate and its key" if key else f"{cert} is no certificate with its key"
            )
            raise ValueError(f"DESCENT_REDIS_CERT: {what}, or the key is encrypted ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
