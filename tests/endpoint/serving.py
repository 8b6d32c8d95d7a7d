"""What the tests of the endpoint runtime share: requests without a data set, and one point against a server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from vlmbench.engines.endpoint.address import find_proxy, tls_context
from vlmbench.engines.endpoint.arrivals import due_times
from vlmbench.engines.endpoint.client import Client
from vlmbench.engines.endpoint.dialects import Dialect, dialect
from vlmbench.engines.endpoint.driver import Driver, LoadFacts, Role
from vlmbench.engines.endpoint.exchange import Order, Result
from vlmbench.engines.endpoint.loop import LoopTurns, run
from vlmbench.engines.endpoint.server import Server, contact, rehearse
from vlmbench.engines.endpoint.settings import Endpoint, Load
from vlmbench.request import ImageSource
from vlmbench.session.serving_loads import exchanger_of


def text_orders(model: str, count: int, *, tokens: int = 16, kind: Dialect | None = None) -> list[Order]:
    """Requests of one line of text."""
    kind = kind or dialect("openai")
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "what is this"}],
        "max_tokens": tokens,
        "stream": True,
        **({"stream_options": dict(kind.stream_options)} if kind.stream_options else {}),
        **kind.extra,
    }
    encoded = json.dumps(body).encode()
    return [Order(sample_id=str(i), repeat=0, body=encoded, asked_tokens=tokens, forced=False) for i in range(count)]


@dataclass(kw_only=True)
class Point:
    """What one load gave."""

    results: list[tuple[Role, Result]] = field(default_factory=list)
    facts: LoadFacts | None = None

    @property
    def measured(self) -> list[Result]:
        """Results of measured requests."""
        return [result for role, result in self.results if role is Role.MEASURED]


def client_of(endpoint: Endpoint) -> Client:
    """What opens connections to a server."""
    address = endpoint.address
    return Client(
        address=address, tls=tls_context(address, endpoint.ca_file), proxy=find_proxy(address, endpoint.proxy)
    )


def meet(endpoint: Endpoint, first: Order | None = None) -> Server:
    """Ask a server who it is, and send a first request with an image where one is given."""

    async def ask() -> Server:
        server = await contact(endpoint, client_of(endpoint), endpoint.headers())
        if first is not None:
            await rehearse(server, exchanger_of(server, LoopTurns()), first, images=True)
        return server

    return run(ask())


def image(number: int) -> ImageSource:
    """A small image of one colour, another for another number."""
    buffer = io.BytesIO()
    Image.new("RGB", (90, 70), (number * 11 % 256, 5, 9)).save(buffer, "PNG")
    data = buffer.getvalue()
    return ImageSource(name=f"image {number}", read=lambda: data)


def send(
    endpoint: Endpoint,
    load: Load,
    measured: list[Order],
    *,
    spare: list[Order] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Point:
    """Send a load to a server and collect what comes."""
    point, turns = Point(), LoopTurns()
    kind = dialect("openai" if endpoint.dialect == "auto" else endpoint.dialect)
    server = Server(endpoint=endpoint, client=client_of(endpoint), headers=endpoint.headers(), kind=kind, facts={})
    driver = Driver(
        exchanger=exchanger_of(server, turns),
        load=load,
        measured=measured,
        spare=spare or [],
        arrivals=due_times(load, "0") if load.kind == "open" else iter(()),
        took=lambda result, role: point.results.append((role, result)),
        stop_requested=stop,
    )
    point.facts = run(driver.run(), turns)
    return point
