"""A real server: llama.cpp's, from the ``xllamacpp`` wheel, with a tiny random model that is written here.

Structure and counts only; no time is bounded from above.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endpoint.llama_server import running
from tests.endpoint.serving import Point, image, meet, send
from tests.endpoint.tiny_gguf import VISION_TOKENS
from vlmbench.engines.endpoint.bodies import chat_body
from vlmbench.engines.endpoint.dialects import dialect
from vlmbench.engines.endpoint.driver import Role
from vlmbench.engines.endpoint.exchange import Order
from vlmbench.engines.endpoint.loop import run
from vlmbench.engines.endpoint.prometheus import between
from vlmbench.engines.endpoint.settings import Endpoint, Load
from vlmbench.errors import EndpointError
from vlmbench.request import Output, Request, Sample

_MISSING = [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (extra 'servers')"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("llama")) as address:
        yield address


def _order(number: int, *, tokens: int = 8, images: int = 1, salt: str | None = None, **extra: object) -> Order:
    request = Request(
        sample=Sample(
            sample_id=str(number), question="what is this", images=tuple(image(number) for _ in range(images))
        ),
        output=Output(max_new_tokens=tokens, forced=True),
    )
    body = chat_body(request, model="tiny", kind=dialect("llamacpp"), salt=salt or f"{number}", extra=extra)
    return Order(sample_id=str(number), repeat=0, body=body, asked_tokens=tokens, forced=True)


def _endpoint(url: str, **more: object) -> Endpoint:
    return Endpoint(base_url=url, model="tiny", dialect="llamacpp", proxy="none", **more)  # type: ignore[arg-type]


def _check(point: Point, requests: int, tokens: int = 8) -> None:
    assert len(point.measured) == requests
    for result in point.measured:
        values = result.values
        assert result.ok, result.reason
        assert values["num_output_tokens"] == tokens
        assert values["tokens_source"] == "server"
        assert sum(values["chunk_tokens"]) == tokens
        assert len(values["ITL"]) == tokens - values["chunk_tokens"][0]
        assert values["num_input_tokens"] == values["server_prompt_n"] > VISION_TOKENS
        assert values["num_cached_tokens"] == 0, "the prompt cache is off"
        assert values["TTFT"] >= values["server_prompt_ms"], "the client waits for what the server does, and longer"
        assert values["T_unattributed"] == pytest.approx(values["TTFT"] - values["server_prompt_ms"])
        assert values["TTFT"] <= values["T_request"] <= values["T_end"]


def test_what_the_server_says_of_itself(url: str) -> None:
    server = meet(Endpoint(base_url=url, model="tiny", proxy="none"))
    assert server.facts["dialect"] == "llamacpp"
    assert server.facts["server"] == "llama.cpp"
    with pytest.raises(EndpointError, match="has no model 'tinny'") as caught:
        meet(Endpoint(base_url=url, model="tinny", proxy="none"))
    assert "tiny" in str(caught.value).splitlines()[1]


@pytest.mark.parametrize("connection", ["fresh", "reuse"])
def test_one_after_the_other(url: str, connection: str) -> None:
    point = send(_endpoint(url, connection=connection), Load(retries=2), [_order(i) for i in range(4)])
    good = Point(results=[(role, result) for role, result in point.results if result.ok])
    _check(good, 4)  # this server drops a used connection now and then: an error row, then a retry
    assert all(r.error_class == "disconnected" for r in point.measured if not r.ok)


def test_closed_loop_and_the_servers_counters(url: str) -> None:
    endpoint = _endpoint(url)

    server = meet(endpoint)

    async def counters() -> dict[str, float]:
        found = await server.counters()
        assert found is not None
        return found

    before = run(counters())
    point = send(
        endpoint,
        Load(kind="closed", concurrency=4, warmup_requests=4),
        [_order(i) for i in range(8)],
        spare=[_order(i) for i in range(100, 108)],
    )
    _check(point, 8)
    window = between(before, run(counters()))
    assert window is not None
    assert point.facts is not None
    sent = sum(point.facts.sent.values())
    assert window.deltas["llamacpp:tokens_predicted_total"] == 8 * sent
    ours = sum(result.values["num_input_tokens"] for _, result in point.results)
    assert window.deltas["llamacpp:prompt_tokens_total"] == ours
    assert not window.prefix_hits


def test_open_loop(url: str) -> None:
    load = Load(kind="open", rate_per_s=40, warmup_requests=2)
    point = send(_endpoint(url), load, [_order(i) for i in range(8)], spare=[_order(i) for i in range(100, 120)])
    _check(point, 8)
    assert [role for role, _ in point.results].count(Role.WARMUP) == 2


def test_the_prompt_cache_is_seen_where_it_is_on(url: str) -> None:
    same = [_order(7, salt="same", cache_prompt=True) for _ in range(6)]
    point = send(_endpoint(url), Load(), same)
    hits = [r for r in point.measured if "prefix_cache_hit" in r.flags]
    assert hits
    assert all(r.values["num_cached_tokens"] > 0 for r in hits)


def test_a_server_without_its_projector_takes_no_images(tmp_path: Path) -> None:
    with (
        running(tmp_path, projector=False) as address,
        pytest.raises(EndpointError, match="takes no images") as caught,
    ):
        meet(_endpoint(address), _order(1))
    assert str(caught.value).count("\n") == 1
