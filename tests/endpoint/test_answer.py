"""What a stream means: tokens, gaps, lengths, and the server's own figures. Planted moments, exact values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.engines.endpoint.answer import Answer, gaps_ms, row_values, spread_tokens
from vlmbench.engines.endpoint.client import Times
from vlmbench.engines.endpoint.dialects import definitions, dialect, server_values

MS = 1_000_000


def _answer(*events: tuple[float, dict[str, Any] | str]) -> Answer:
    answer = Answer()
    for at, data in events:
        text = data if isinstance(data, str) else json.dumps(data)
        answer.feed(round(at * MS), f"data: {text}\n\n".encode())
    return answer


def _text(content: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}}], **more}


def _values(answer: Answer, *, asked: int = 3, forced: bool = False, end: float = 500) -> tuple[dict[str, Any], Any]:
    times = Times(start_ns=2 * MS, sent_ns=3 * MS, head_ns=5 * MS, end_ns=round(end * MS), reads=9)
    return row_values(answer, times, due_ns=MS, asked_tokens=asked, forced=forced)


_ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
_STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
_USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def test_role_and_usage_chunks_are_never_tokens() -> None:
    answer = _answer(
        (20, _ROLE),
        (101, _text("a")),
        (121, _text("b")),
        (151, _text("c")),
        (400, _STOP),
        (450, _USAGE),
        (450, "[DONE]"),
    )
    values, flags = _values(answer)
    assert values["T_first_event"] == 19
    assert values["TTFT"] == 100, "from the intended send time"
    assert values["ITL"] == [20, 30]
    assert values["TPOT"] == 25
    assert values["T_request"] == 150, "to the last token, not to the end of the stream"
    assert values["T_end"] == 499
    assert values["T_late"] == 1
    assert values["T_send"] == 1
    assert (values["num_input_tokens"], values["num_output_tokens"], values["num_chunks"]) == (7, 3, 3)
    assert values["tokens_source"] == "one_each"
    assert (values["chunks_role"], values["chunks_usage"]) == (1, 1)
    assert flags == ()


def test_a_reasoning_chunk_is_a_token() -> None:
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}
    values, _ = _values(_answer((11, thought), (21, _text("b")), (31, _text("c")), (31, _STOP), (31, _USAGE)))
    assert values["TTFT"] == 10
    assert values["ITL"] == [10, 10]
    assert values["chunks_reasoning"] == 1


def test_chunks_of_several_tokens_are_spread_by_the_servers_count() -> None:
    def counted(n: int) -> dict[str, Any]:
        return _text("x", usage={"completion_tokens": n})

    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 6}}
    values, flags = _values(
        _answer((1, counted(1)), (31, counted(4)), (41, counted(5)), (51, counted(6)), (51, _STOP), (51, usage)),
        asked=6,
        forced=True,
    )
    assert values["chunk_tokens"] == [1, 3, 1, 1]
    assert values["ITL"] == [10, 10, 10, 10, 10]
    assert values["tokens_source"] == "server"
    assert flags == ("tokens_merged",)


def test_the_time_per_token_leaves_the_first_chunk_out() -> None:
    """Two tokens a chunk, 20 ms a token: (last - first) / (n - 1) would be 6.7 % too low."""
    events = [(40.0 * i, _text("ab", usage={"completion_tokens": 2 * (i + 1)})) for i in range(8)]
    values, _ = _values(_answer(*events, (280, _STOP)), asked=16)
    assert values["TPOT"] == pytest.approx(20)
    assert values["ITL"] == pytest.approx([20] * 14)


def test_a_token_without_text_belongs_to_the_next_chunk() -> None:
    def counted(n: int, text: str = "x") -> dict[str, Any]:
        return _text(text, usage={"completion_tokens": n})

    values, _ = _values(_answer((10, counted(1)), (20, counted(2, "")), (30, counted(3)), (30, _STOP)))
    assert values["chunk_tokens"] == [1, 2]
    assert values["ITL"] == [10, 10]


def test_only_a_total_is_known() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 6}}
    values, flags = _values(
        _answer((10, _text("a")), (30, _text("b")), (50, _text("c")), (50, _STOP), (50, usage)), asked=6
    )
    assert values["tokens_source"] == "spread"
    assert values["chunk_tokens"] == [2, 2, 2]
    assert flags == ("tokens_per_chunk_unknown",)
    values, flags = _values(_answer((10, _text("a")), (30, _text("b")), (30, _STOP)))
    assert "ITL" not in values
    assert values["num_output_tokens"] is None
    assert flags == ("tokens_per_chunk_unknown",)


def test_an_end_token_has_no_chunk() -> None:
    stop = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}
    values, flags = _values(_answer((10, _text("a")), (20, _text("b")), (30, stop), (30, usage)), asked=9)
    assert values["tokens_source"] == "one_each"
    assert values["ITL"] == [10]
    assert flags == ()


def test_lengths_and_counts_that_do_not_agree_are_flagged() -> None:
    def answer(counted: int, total: int) -> Answer:
        usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": total}}
        return _answer((10, _text("a", usage={"completion_tokens": counted})), (20, _STOP), (20, usage))

    assert set(_values(answer(1, 8), asked=3, forced=True)[1]) == {"tokens_without_text", "output_length_differs"}
    assert "token_counts_differ" in _values(answer(9, 8), asked=8)[1]
    assert _values(answer(7, 8), asked=8)[1] == ("tokens_merged",), "an end-of-sequence token has no text"
    _, flags = _values(_answer((10, _text("a")), (20, _text("b"))))
    assert "stream_without_end" in flags


def test_reads_that_come_together_are_counted() -> None:
    values, _ = _values(_answer((10, _text("a")), (10.05, _text("b")), (20, _text("c")), (20, _STOP), (20, _USAGE)))
    assert values["coalesced_share"] == 0.5


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.lists(st.integers(1, 10**8), min_size=30, max_size=30))
def test_gaps_add_up_to_the_time_after_the_first_chunk(tokens: list[int], steps: list[int]) -> None:
    stamps = [sum(steps[: i + 1]) for i in range(len(tokens))]
    gaps = gaps_ms(stamps, tuple(tokens))
    assert len(gaps) == sum(tokens) - tokens[0]
    assert sum(gaps) == pytest.approx((stamps[-1] - stamps[0]) / 1e6)


@given(st.integers(1, 40), st.integers(1, 80))
def test_spreading_keeps_the_total(chunks: int, total: int) -> None:
    found = spread_tokens([None] * chunks, total, ended_by_itself=False)
    assert sum(found.per_chunk) == total
    assert len(found.per_chunk) == chunks


def test_figures_of_the_servers_keep_their_names_and_meaning() -> None:
    metrics = {"time_to_first_token_ms": 30.0, "queue_time_ms": 5.0, "generation_time_ms": 60.0, "mean_itl_ms": 20.0}
    details = {"cached_tokens": 3, "multimodal_tokens": {"image": 100}}
    vllm = server_values(
        dialect("vllm"), Answer(usage={"metrics": metrics, "prompt_tokens_details": details}), ttft_ms=50.0
    )
    assert vllm["server_time_to_first_token_ms"] == 30
    assert vllm["num_vision_tokens"] == 100
    assert vllm["num_cached_tokens"] == 3
    assert vllm["T_unattributed"] == 15
    assert "scheduled (not arrived)" in definitions("vllm")["server_time_to_first_token_ms"]
    llama = server_values(dialect("llamacpp"), Answer(timings={"prompt_ms": 60.0, "cache_n": 0}), ttft_ms=50.0)
    assert llama["T_unattributed"] == -10, "two clocks: signed, never clamped"
    assert server_values(dialect("vllm"), Answer(), ttft_ms=50.0) == {}, "what a server does not say is absent"
    assert "T_unattributed" not in server_values(dialect("vllm"), Answer(usage={"metrics": {"queue_time_ms": 1}}), 9.0)
