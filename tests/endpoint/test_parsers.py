"""HTTP, event streams, Prometheus pages and arrivals: known answers, however the network cuts the bytes."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.engines.endpoint.arrivals import due_times, read_trace
from vlmbench.engines.endpoint.bodies import chat_body
from vlmbench.engines.endpoint.dialects import dialect
from vlmbench.engines.endpoint.prometheus import between, parse
from vlmbench.engines.endpoint.settings import Load
from vlmbench.engines.endpoint.sse import EventParser, Kind, chunk_of
from vlmbench.engines.endpoint.wire import ResponseParser, WireError
from vlmbench.errors import InputError
from vlmbench.request import Output, Request, Sample

_CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
)
_LENGTH = b"HTTP/1.1 404 Not Found\r\nContent-Length: 11\r\nConnection: close\r\n\r\nhello world"


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted({p % (len(data) + 1) for p in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@given(st.sampled_from([_CHUNKED, _LENGTH]), st.lists(st.integers(0, 500), max_size=12))
def test_a_response_is_the_same_however_it_is_cut(data: bytes, places: list[int]) -> None:
    parser = ResponseParser()
    pieces = [piece for i, part in enumerate(_cut(data, places)) for piece in parser.feed(i, part)]
    assert b"".join(text for _, text in pieces) == b"hello world"
    assert parser.complete
    assert parser.head is not None
    assert parser.head.status in (200, 404)
    assert [stamp for stamp, _ in pieces] == sorted(stamp for stamp, _ in pieces)


@given(st.sampled_from([_CHUNKED, _LENGTH]), st.lists(st.integers(0, 500), max_size=12))
def test_the_read_that_ends_a_response_shows_it_before_it_is_parsed(data: bytes, places: list[int]) -> None:
    parser = ResponseParser()
    *earlier, last = filter(None, _cut(data, places))
    for part in earlier:
        if parser.head is None:  # later reads wait to be parsed
            parser.feed(0, part)
    assert last.endswith(parser.ending) or len(last) < 5


def test_a_chunk_in_the_middle_of_an_answer_waits_to_be_parsed() -> None:
    parser = ResponseParser()
    parser.feed(0, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert not b"7\r\ndata:a\n\r\n".endswith(parser.ending)


def test_a_body_without_length_ends_with_the_connection() -> None:
    parser = ResponseParser()
    pieces = parser.feed(7, b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert pieces == [(7, b"abc")]
    assert not parser.complete
    assert parser.at_close()
    half = ResponseParser()
    half.feed(0, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
    assert not half.at_close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x15\x03\x01\x00\x02\x02P",
        b"HTTP/1.1 banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
    ],
)
def test_what_is_no_http_is_said(data: bytes) -> None:
    with pytest.raises(WireError):
        ResponseParser().feed(0, data)


@given(st.lists(st.integers(0, 500), max_size=12), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_are_the_same_however_they_are_cut(places: list[int], end: str) -> None:
    text = (
        f": keep-alive{end}{end}event: x{end}data: one{end}{end}data: two{end}data:  lines{end}{end}data: é{end}{end}"
    )
    parser = EventParser()
    found = [data for part in _cut(text.encode(), places) for data in parser.feed(part)]
    assert found + list(parser.rest()) == ["one", "two\n lines", "é"]


_CHOICE = {"index": 0, "finish_reason": None}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"choices": [{**_CHOICE, "delta": {"role": "assistant", "content": ""}}]}, Kind.ROLE),
        ({"choices": [{**_CHOICE, "delta": {"role": "assistant", "content": "A"}}]}, Kind.CONTENT),
        ({"choices": [{**_CHOICE, "delta": {"content": ""}}]}, Kind.EMPTY),
        ({"choices": [{**_CHOICE, "delta": {}}]}, Kind.EMPTY),
        ({"choices": [{**_CHOICE, "delta": {"reasoning_content": "hm"}}]}, Kind.REASONING),
        ({"choices": [{**_CHOICE, "delta": {"reasoning": "hm"}}]}, Kind.REASONING),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, Kind.FINISH),
        ({"choices": [{"delta": {"content": "z"}, "finish_reason": "stop"}]}, Kind.CONTENT),
        ({"choices": [], "usage": {"completion_tokens": 3}}, Kind.USAGE),
        (
            {
                "choices": [{**_CHOICE, "delta": {"role": "assistant", "content": None}}],
                "prompt_progress": {"total": 9},
            },
            Kind.PROGRESS,
        ),
        ({"error": {"message": "no"}}, Kind.ERROR),
    ],
)
def test_kinds_of_chunk(data: dict[str, object], kind: Kind) -> None:
    assert chunk_of(json.dumps(data)).kind is kind


def test_the_end_and_what_is_no_chunk() -> None:
    assert chunk_of(" [DONE] ").kind is Kind.DONE
    for bad in ("[1]", "{", "null"):
        with pytest.raises(ValueError, match=r".*"):
            chunk_of(bad)


def test_counters_before_and_after_a_point() -> None:
    before = parse(
        '# HELP x\nvllm:ttft_seconds_sum{model="a b"} 1.0\nvllm:ttft_seconds_count 2\nvllm:request_success_total 2\n'
    )
    after = parse(
        'vllm:ttft_seconds_sum{model="a b"} 4\nvllm:ttft_seconds_bucket{le="1"} 9\nvllm:ttft_seconds_count 4\n'
        'vllm:request_success_total{finished_reason="stop"} 2\nvllm:request_success_total{finished_reason="length"} 3\n'
        "vllm:num_requests_running NaN\nvllm:mm_cache_hits_total 1\n"
    )
    window = between(before, after)
    assert window is not None
    assert window.means == {"vllm:ttft_seconds": 1.5}
    assert window.requests == 3
    assert window.flags(3) == ("image_cache_hits",)
    assert window.flags(2) == ("server_shared", "image_cache_hits")
    assert between(after, before) is None, "a counter that falls belongs to a server that was started anew"


def test_arrivals() -> None:
    constant = due_times(Load(kind="open", rate_per_s=4, arrivals="constant"), "0")
    assert list(itertools.islice(constant, 5)) == [0, 0.25, 0.5, 0.75, 1.0]
    poisson = list(itertools.islice(due_times(Load(kind="open", rate_per_s=10), "1"), 4000))
    gaps = [b - a for a, b in itertools.pairwise(poisson)]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.08)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.12), "exponential: deviation equals mean"
    again = list(itertools.islice(due_times(Load(kind="open", rate_per_s=10), "1"), 4000))
    assert again == poisson


WRONG = (("0\n1_0\n", "line 2"), ("1700000000.5\n", "begins at 1700000000.5 s"))


def test_a_trace_file(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("# s\n0\n0.5\n\n0.5\n2\n")
    load = Load(kind="open", arrivals="trace", trace_file=str(path))
    assert list(due_times(load, "")) == [0, 0.5, 0.5, 2]
    assert load.warmups == 0
    path.write_bytes(b"\xef\xbb\xbf0\r\n1.5\r\n")  # as Windows writes it
    assert read_trace(path) == [0, 1.5]
    for text, line in (
        ("1\n0.5\n", "line 2"),
        ("a\n", "line 1"),
        ("# only\n", "no arrivals"),
        ("inf\n", "line 1"),
        *WRONG,
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=line) as caught:
            read_trace(path)
        assert str(caught.value).count("\n") == 1
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "absent")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "both"}, "must be one of none, closed, open"),
        ({"kind": "open"}, "'load.rate_per_s' must be set"),
        ({"kind": "open", "arrivals": "trace"}, "'load.trace_file' must name a file"),
        ({"kind": "closed", "concurrency": 0}, "'load.concurrency' must be 1 or more"),
        ({"kind": "open", "rate_per_s": 0.0}, "must be above 0"),
    ],
)
def test_loads_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Load(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("salt", ["synthetic_vqa/0/17", "a@b\\c\0", "x" * 500])
def test_a_salt_is_one_that_vllm_takes(salt: str) -> None:
    # vLLM 0.32: at most 128 characters, none of @ / \ NUL, else 400 for every request
    sample = Sample(sample_id="1", question="what", images=())
    request = Request(sample=sample, output=Output(max_new_tokens=1, forced=True))
    sent = [
        json.loads(chat_body(request, model="m", kind=dialect("vllm"), salt=one, extra={}))["cache_salt"]
        for one in (salt, f"{salt}.")
    ]
    assert len(set(sent)) == 2
    assert all(0 < len(one) <= 128 and not set(one) & set("@/\\\0") for one in sent)
