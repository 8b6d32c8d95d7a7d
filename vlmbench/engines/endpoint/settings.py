"""What is configured of a server and of the load on it. Standard library only; constructors do no I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmbench.engines.endpoint.address import Address
from vlmbench.engines.endpoint.dialects import DIALECTS
from vlmbench.errors import ConfigError

CONNECTIONS = ("fresh", "reuse")
PROXIES = ("environment", "none")
CACHES = ("defeat", "keep")
LOADS = ("none", "closed", "open")
ARRIVALS = ("poisson", "constant", "trace")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible chat server.

    Args:
        base_url: up to and with ``/v1``.
        model: as the server calls it.
        dialect: which fields it understands besides the common ones; ``auto`` asks it.
        connection: ``fresh`` opens one for every request (before its clock starts), ``reuse`` keeps them.
        timeout_s: for a whole request.
        silence_s: for a stream that sends nothing.
        api_key_env: name of the environment variable that holds the key; None for none. The key is never stored.
        proxy: ``environment`` or ``none``.
        ca_file: PEM file of the authority that signed its certificate; None for the system's own.
        cache: ``defeat`` makes every image new to the server, ``keep`` sends the data set's own bytes.
        metrics_path: of its Prometheus page; None for the dialect's own.
        extra_body: fields added to every request.
    """

    base_url: str
    model: str
    dialect: str = "auto"
    connection: str = "fresh"
    timeout_s: float = 600.0
    silence_s: float = 60.0
    api_key_env: str | None = None
    proxy: str = "environment"
    ca_file: str | None = None
    cache: str = "defeat"
    metrics_path: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("dialect", DIALECTS),
            ("connection", CONNECTIONS),
            ("proxy", PROXIES),
            ("cache", CACHES),
        ):
            _one_of(f"runtime.{name}", getattr(self, name), allowed)
        for name in ("timeout_s", "silence_s"):
            _positive(f"runtime.{name}", getattr(self, name))
        if not self.model:
            raise ValueError("'runtime.model' must be the model's name as the server has it (got '')")

    @property
    def address(self) -> Address:
        """Where it is.

        Raises:
            ConfigError: ``base_url`` is no URL of a server.
        """
        return Address.parse(self.base_url)

    def headers(self, environment: Mapping[str, str] | None = None) -> dict[str, str]:
        """Headers of every request, the key among them where one is named.

        Args:
            environment: where the key is looked up; None for the process's own.

        Raises:
            ConfigError: the variable is not set, or its value cannot stand in a header.
        """
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "vlmbench",
        }
        if self.api_key_env is None:
            return headers
        key = (os.environ if environment is None else environment).get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable '{self.api_key_env}' (runtime.api_key_env) is not set\n"
                f"export {self.api_key_env}=… before the run, or set runtime.api_key_env=null"
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"the value of '{self.api_key_env}' (runtime.api_key_env) cannot stand in a header\n"
                "it must be one line of plain characters: export it again"
            )
        return {**headers, "Authorization": f"Bearer {key}"}


@dataclass(frozen=True, kw_only=True)
class Load:
    """How requests are sent.

    Args:
        kind: ``none`` (one after the other), ``closed`` (``concurrency`` users, each waits for its answer) or ``open``
            (requests arrive whatever the server does).
        concurrency: users of a closed loop.
        rate_per_s: mean arrivals a second of an open loop.
        arrivals: ``poisson``, ``constant`` or ``trace``.
        trace_file: one arrival a line, s from the first; for ``arrivals=trace``.
        warmup_requests: sent first under the same load and kept apart; None for twice the concurrency, at least 2.
        max_outstanding: an open loop sends nothing while so many are unanswered; what is not sent is an error row.
        retries: how often a failed request is sent again; every attempt is a row.
    """

    kind: str = "none"
    concurrency: int = 1
    rate_per_s: float | None = None
    arrivals: str = "poisson"
    trace_file: str | None = None
    warmup_requests: int | None = None
    max_outstanding: int = 1000
    retries: int = 0

    def __post_init__(self) -> None:
        _one_of("load", self.kind, LOADS)
        _one_of("load.arrivals", self.arrivals, ARRIVALS)
        for name, least in (("concurrency", 1), ("max_outstanding", 1), ("retries", 0), ("warmup_requests", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"'load.{name}' must be {least} or more (got {value})")
        if self.rate_per_s is not None:
            _positive("load.rate_per_s", self.rate_per_s)
        if self.kind == "open" and self.arrivals == "trace" and self.trace_file is None:
            raise ValueError("'load.trace_file' must name a file with load.arrivals=trace (got null)")
        if self.kind == "open" and self.arrivals != "trace" and self.rate_per_s is None:
            raise ValueError("'load.rate_per_s' must be set with load=open (got null)")

    @property
    def warmups(self) -> int:
        """Requests to send before the measured ones."""
        if self.warmup_requests is not None:
            return self.warmup_requests
        return max(2, 2 * self.concurrency) if self.kind != "open" or self.arrivals != "trace" else 0


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"'{name}' must be one of {', '.join(allowed)} (got {value!r})")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"'{name}' must be above 0 (got {value:g})")
