"""The first words with a server: is it there, what kind is it, does it have the model, does it take images and stream?

Whatever is wrong here is wrong for every request, so it ends the run before anything is measured.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmbench.engines.endpoint.client import Client, ExchangeError
from vlmbench.engines.endpoint.dialects import Dialect, dialect
from vlmbench.engines.endpoint.exchange import Exchanger, Order, Result, speaks_of_images
from vlmbench.engines.endpoint.prometheus import parse
from vlmbench.engines.endpoint.settings import Endpoint
from vlmbench.engines.endpoint.wire import Head
from vlmbench.errors import EndpointError

_SHOWN_MODELS = 8
_LOOK_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Page:
    """A small answer that is no stream.

    Args:
        head: status and headers.
        text: of the body.
    """

    head: Head
    text: str

    @property
    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers.

    Args:
        endpoint: how it is configured.
        client: opens connections to it.
        headers: of requests, the key among them.
        kind: its dialect.
        facts: what it says of itself, for the provenance; no host, no key.
    """

    endpoint: Endpoint
    client: Client
    headers: Mapping[str, str] = field(repr=False)
    kind: Dialect
    facts: Mapping[str, Any]

    async def counters(self) -> dict[str, float] | None:
        """Its Prometheus page as numbers; None where it has none."""
        target = self.endpoint.metrics_path
        if target is None and not self.kind.has_metrics:
            return None
        path = target or self.client.address.root + "/metrics"
        try:
            page = await get(self.client, path, self.headers)
        except ExchangeError:
            return None
        return (parse(page.text) or None) if page.head.status == 200 else None


async def get(client: Client, target: str, headers: Mapping[str, str]) -> Page:
    """Fetch a small page.

    Raises:
        ExchangeError: the server cannot be reached or breaks off.
    """
    import asyncio

    connection = await client.connect()
    body = bytearray()
    plain = {k: v for k, v in headers.items() if k != "Content-Type"}
    try:
        async with asyncio.timeout(_LOOK_TIMEOUT_S):
            head = await connection.exchange(client.payload("GET", target, plain), lambda _, piece: body.extend(piece))
    except TimeoutError:
        raise ExchangeError("timeout", f"no answer to GET {target} within {_LOOK_TIMEOUT_S:g} s") from None
    finally:
        connection.close()
    return Page(head=head, text=bytes(body).decode("utf-8", "replace"))


async def contact(endpoint: Endpoint, client: Client, headers: Mapping[str, str]) -> Server:
    """Ask a server who it is and whether it has the model.

    Raises:
        EndpointError: it cannot be reached, refuses the key, or has no such model.
    """
    address = client.address
    try:
        models = await get(client, address.target("models"), headers)
    except ExchangeError as error:
        raise unreachable(error, endpoint) from error
    if models.head.status in (401, 403):
        raise _refused(models.head.status, endpoint)
    names = _model_names(models.json)
    if names and endpoint.model not in names:
        more = f" and {len(names) - _SHOWN_MODELS} more" if len(names) > _SHOWN_MODELS else ""
        raise EndpointError(
            f"the server has no model '{endpoint.model}'\n"
            f"give one that it has with runtime.model=NAME: {', '.join(names[:_SHOWN_MODELS])}{more}"
        )
    name, version = await _recognise(client, headers, models)
    kind = dialect(name if endpoint.dialect == "auto" else endpoint.dialect)
    facts = {
        "dialect": kind.name,
        "dialect_found": name,
        "server": models.head.headers.get("server"),
        "version": version,
        "model": endpoint.model,
        "connection": endpoint.connection,
        "cache": endpoint.cache,
        "tls": address.scheme == "https",
        "through_proxy": client.proxy is not None,
    }
    return Server(endpoint=endpoint, client=client, headers=headers, kind=kind, facts=facts)


async def _recognise(client: Client, headers: Mapping[str, str], models: Page) -> tuple[str, str | None]:
    """(dialect, version) from what the server says of itself; ``openai`` where nothing is known."""
    software = models.head.headers.get("server", "").lower()
    found = models.json if isinstance(models.json, Mapping) else {}
    owners = {str(m.get("owned_by", "")).lower() for m in found.get("data") or [] if isinstance(m, Mapping)}
    root = client.address.root
    if "llama.cpp" in software or "llamacpp" in owners:
        props = await _json(client, f"{root}/props", headers)
        return "llamacpp", _text(props, "build_info")
    version = await _json(client, f"{root}/version", headers)
    if "vllm" in owners or (isinstance(version, Mapping) and "version" in version and "sglang" not in owners):
        return "vllm", _text(version, "version")
    props = await _json(client, f"{root}/props", headers)
    if isinstance(props, Mapping) and "default_generation_settings" in props:
        return "llamacpp", _text(props, "build_info")
    document = await _json(client, f"{root}/openapi.json", headers)
    title = str((document.get("info") or {}).get("title", "")) if isinstance(document, Mapping) else ""
    paths = document.get("paths") or {} if isinstance(document, Mapping) else {}
    if "transformers" in title.lower() or "/load_model" in paths:
        return "transformers", None
    return "openai", None


async def _json(client: Client, target: str, headers: Mapping[str, str]) -> Any:
    try:
        page = await get(client, target, headers)
    except ExchangeError:
        return None
    return page.json if page.head.status == 200 else None


def _text(found: Any, key: str) -> str | None:
    return str(found[key]) if isinstance(found, Mapping) and key in found else None


def _model_names(found: Any) -> list[str]:
    entries = found.get("data") if isinstance(found, Mapping) else None
    if not isinstance(entries, list):
        return []
    return [str(entry["id"]) for entry in entries if isinstance(entry, Mapping) and "id" in entry]


async def rehearse(server: Server, exchanger: Exchanger, order: Order, *, images: bool) -> Result:
    """Send the first request once, before anything is measured.

    Args:
        server: to send it to.
        exchanger: sends it.
        order: a request as the run will send them.
        images: it holds images.

    Raises:
        EndpointError: the server refuses it, takes no images, does not stream, or answers with nothing.
    """
    try:
        connection = await exchanger.connection()
    except ExchangeError as error:
        raise unreachable(error, server.endpoint) from error
    payload = exchanger.payload(order.body)
    result = await exchanger.send(order, payload, connection, time.monotonic_ns())
    if not result.ok:
        raise _said(result, server, images=images)
    return result


def unreachable(error: ExchangeError, endpoint: Endpoint) -> EndpointError:
    """The error for a server that cannot be talked to, and what to do about it."""
    secure = endpoint.base_url.startswith("https://")
    advice = {
        "connection": "start the server, or correct runtime.base_url=http://HOST:PORT/v1",
        "proxy": "set runtime.proxy=none, or add the server to no_proxy",
        "tls": "give the authority's certificate with runtime.ca_file=FILE, or correct the name in runtime.base_url",
    }.get(error.kind, "look at the server's log; is runtime.base_url that of an OpenAI-compatible server?")
    cause = error.__cause__
    if error.kind == "connection" and secure and isinstance(cause, TimeoutError):
        advice = "is the server up, and does it speak TLS there? else runtime.base_url=http://…"
    if error.kind == "tls" and not isinstance(cause, ssl.SSLCertVerificationError):
        advice = "does the server speak plain HTTP there? runtime.base_url=http://…"
    elif error.kind in ("disconnected", "not_http") and not secure:
        advice = "does the server want TLS? runtime.base_url=https://…; else look at its log"
    return EndpointError(f"{error}\n{advice}")


def _refused(status: int, endpoint: Endpoint) -> EndpointError:
    how = (
        f"the key in '{endpoint.api_key_env}' is not accepted: export another"
        if endpoint.api_key_env
        else "put a key into an environment variable and name it: runtime.api_key_env=NAME"
    )
    return EndpointError(f"the server refuses the request: HTTP {status}\n{how}")


def _said(result: Result, server: Server, *, images: bool) -> EndpointError:
    """The error for a rehearsal that failed."""
    endpoint, status, reason = server.endpoint, result.http_status, result.reason or ""
    if status in (401, 403):
        return _refused(status, endpoint)
    if result.error_class in ("connection", "tls", "proxy", "disconnected", "not_http"):
        return unreachable(ExchangeError(result.error_class, reason), endpoint)
    if images and result.error_class in ("http", "server_error") and speaks_of_images(reason):
        return EndpointError(
            f"model '{endpoint.model}' takes no images on this server: {reason}\n"
            "serve a vision-language model (llama.cpp: with --mmproj), or measure text alone: sweep.axes.images=[0]"
        )
    advice = {
        404: "is runtime.model=NAME the name that the server uses, and does runtime.base_url end with /v1?",
        422: f"it does not know a field of dialect '{server.kind.name}': try runtime.dialect=openai or transformers",
        429: "it is busy or out of quota: wait, then run the same command again",
        503: "it is loading or overloaded: wait, then run the same command again",
    }.get(status or 0, "look at the server's log")
    if result.error_class == "not_streaming":
        advice = "time to first token needs a stream: is something in between that collects the answer?"
    elif result.error_class in ("silence", "timeout"):
        advice = "is the server hung? a larger runtime.silence_s or runtime.timeout_s waits longer"
    elif result.error_class in ("bad_stream", "no_tokens", "cut"):
        advice = "is it an OpenAI-compatible chat server? look at its log"
    return EndpointError(f"a first request failed: {reason}\n{advice}")
