"""Where a server is and how it is reached: base URL, TLS, proxy. Standard library only; nothing is connected here."""

from __future__ import annotations

import base64
import re
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlmbench.errors import ConfigError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Address:
    """A base URL in its parts.

    Args:
        scheme: ``http`` or ``https``.
        host: name or IP address.
        port: TCP port.
        path: prefix of all paths, without a slash at its end (``/v1``).
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str, name: str = "runtime.base_url") -> Address:
        """Take a URL apart.

        Args:
            url: such as ``http://127.0.0.1:8000/v1``.
            name: what messages call it.

        Raises:
            ConfigError: it is no http or https URL, or holds a password or a query.
        """
        hint = f"give {name}=http://HOST:PORT/v1"
        given = _without_secret(url)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"'{name}' must be a URL: {error} (got {given!r})\n{hint}") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ConfigError(f"'{name}' must begin with http:// or https:// and a host (got {given!r})\n{hint}")
        if parts.username or parts.password:
            raise ConfigError(
                f"'{name}' must not hold a user name or password: it is stored with the run\n"
                "put the key into an environment variable and name that: runtime.api_key_env=NAME"
            )
        if parts.query or parts.fragment:
            raise ConfigError(f"'{name}' must end with its path, without '?' or '#' (got {given!r})\n{hint}")
        if port == 0 or not re.fullmatch(r"[!-~]*", parts.path):
            raise ConfigError(
                f"'{name}' must have a port of 1 or more and a path of ASCII, no blank (got {given!r})\n{hint}"
            )
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            path=parts.path.rstrip("/"),
        )

    @property
    def authority(self) -> str:
        """``host``, or ``host:port`` where the port is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def root(self) -> str:
        """The path above the version (``/v1`` cut off), where ``/metrics`` and ``/health`` live."""
        return self.path.removesuffix("/v1")

    def target(self, path: str) -> str:
        """The path of a request under the base URL."""
        return f"{self.path}/{path.lstrip('/')}"

    def url(self, target: str) -> str:
        """The absolute URL of a target."""
        return f"{self.scheme}://{self.authority}{target}"


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """An HTTP proxy between the client and the server.

    Args:
        host: name or IP address.
        port: TCP port.
        authorization: value of ``Proxy-Authorization``; None for none. Never stored with a run.
    """

    host: str
    port: int
    authorization: str | None = None

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


def find_proxy(address: Address, setting: str) -> Proxy | None:
    """The proxy that requests must take.

    Args:
        address: of the server.
        setting: ``environment`` (``http_proxy``, ``https_proxy``, ``no_proxy``) or ``none``.

    Raises:
        ConfigError: the environment names a proxy of a kind that is not supported.
    """
    if setting == "none" or urllib.request.proxy_bypass(address.host):
        return None
    found = urllib.request.getproxies()
    url = found.get(address.scheme) or found.get("all")
    if not url:
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(
            f"the environment sends {address.scheme} requests through a {parts.scheme} proxy; only http:// ones work\n"
            "add the server to no_proxy, or set runtime.proxy=none to go straight to it"
        )
    authorization = None
    if parts.username:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(secret.encode()).decode("ascii")
    return Proxy(host=parts.hostname, port=parts.port or 80, authorization=authorization)


def tls_context(address: Address, ca_file: str | None) -> ssl.SSLContext | None:
    """What checks the server's certificate; None for plain HTTP.

    Args:
        address: of the server.
        ca_file: PEM file of the authority to trust; None for the system's own.

    Raises:
        ConfigError: the file is missing or holds no certificate.
    """
    if address.scheme != "https":
        if ca_file is not None:
            raise ConfigError(
                f"'runtime.ca_file' goes with https:// (got {address.scheme}://)\n"
                "begin runtime.base_url with https://, or leave runtime.ca_file out"
            )
        return None
    if ca_file is not None and not Path(ca_file).is_file():
        raise ConfigError(f"'runtime.ca_file' must be a file (got {ca_file!r})\ngive the PEM file of the authority")
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"'runtime.ca_file' holds no certificate that can be read (got {ca_file!r}: {error})\n"
            "give the PEM file of the authority that signed the server's certificate"
        ) from error


def _without_secret(url: str) -> str:
    """A URL as messages may show it, which are stored: without user, password, query and fragment."""
    plain = re.sub(r"[?#].*", "?…", url, flags=re.DOTALL)
    before, at, after = plain.rpartition("@")
    scheme, is_url, _ = before.partition("://")
    return f"{f'{scheme}://' if is_url else ''}…@{after}" if at else plain
