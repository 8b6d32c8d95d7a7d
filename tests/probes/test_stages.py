"""The cutting of a timeline, on planted marks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.errors import MeasurementError
from vlmbench.probes.stages import Kind, Mark, cut


def timeline(*steps: tuple[Kind, float]) -> list[Mark]:
    """Marks from (kind, ms since the mark before)."""
    marks, now = [], 0.0
    for kind, delta in steps:
        now += delta
        marks.append((kind, now))
    return marks


STANDARD = timeline(
    (Kind.START, 0),
    (Kind.ENTER_VISION, 1),
    (Kind.EXIT_VISION, 10),
    (Kind.ENTER_PROJECTOR, 0.5),
    (Kind.EXIT_PROJECTOR, 2),
    (Kind.ENTER_FORWARD, 0.25),
    (Kind.ENTER_LANGUAGE, 0.25),
    (Kind.EXIT_FORWARD, 20),
    (Kind.TOKEN, 1),
    (Kind.ENTER_FORWARD, 0.5),
    (Kind.EXIT_FORWARD, 7),
    (Kind.TOKEN, 0.5),
    (Kind.ENTER_FORWARD, 0.5),
    (Kind.EXIT_FORWARD, 7),
    (Kind.TOKEN, 0.5),
    (Kind.END, 0.75),
)


def test_each_stage_gets_its_planted_time() -> None:
    stages = cut(STANDARD, num_output_tokens=3)
    assert stages.T_setup == 1
    assert stages.T_vision_encoder == 10
    assert stages.T_projector == 2.5  # the gap before it belongs to it
    assert stages.T_LLM_prefill == 21.5
    assert stages.T_LLM_decode == 16
    assert stages.T_decode_forward == 14
    assert stages.T_decode_loop == 2
    assert stages.TTFT_model == 35
    assert stages.ITL == (8, 8)
    assert stages.tail == 0.75
    assert stages.named + stages.tail == STANDARD[-1][1]


def test_projector_inside_the_tower_is_the_projectors() -> None:
    marks = timeline(
        (Kind.START, 0),
        (Kind.ENTER_VISION, 1),
        (Kind.ENTER_PROJECTOR, 10),
        (Kind.EXIT_PROJECTOR, 3),
        (Kind.EXIT_VISION, 1),
        (Kind.ENTER_LANGUAGE, 1),
        (Kind.EXIT_LANGUAGE, 5),
        (Kind.TOKEN, 1),
        (Kind.END, 0),
    )
    stages = cut(marks, num_output_tokens=1)
    assert (stages.T_vision_encoder, stages.T_projector, stages.T_LLM_prefill) == (11, 3, 7)
    assert stages.T_LLM_decode == 0
    assert stages.T_decode_forward is None  # one token: no decode step was made
    assert stages.ITL == ()


def test_tiles_are_summed_and_gaps_go_to_what_follows() -> None:
    tile = [(Kind.ENTER_VISION, 1.0), (Kind.EXIT_VISION, 4.0), (Kind.ENTER_PROJECTOR, 0.5), (Kind.EXIT_PROJECTOR, 2.0)]
    marks = timeline((Kind.START, 0), *tile, *tile, (Kind.ENTER_LANGUAGE, 1), (Kind.TOKEN, 5), (Kind.END, 0))
    stages = cut(marks, num_output_tokens=1)
    assert (stages.T_setup, stages.T_vision_encoder, stages.T_projector) == (1, 9, 5)
    assert stages.T_LLM_prefill == 6


def test_vision_inside_the_forward_counts_when_nothing_came_before() -> None:
    marks = timeline(
        (Kind.START, 0),
        (Kind.ENTER_FORWARD, 1),
        (Kind.ENTER_LANGUAGE, 0),
        (Kind.ENTER_VISION, 1),
        (Kind.EXIT_VISION, 6),
        (Kind.EXIT_FORWARD, 8),
        (Kind.TOKEN, 1),
        (Kind.END, 0),
    )
    stages = cut(marks, num_output_tokens=1)
    assert (stages.T_setup, stages.T_vision_encoder, stages.T_LLM_prefill) == (2, 6, 9)


def test_absent_stages_are_none_not_zero() -> None:
    marks = timeline((Kind.START, 0), (Kind.ENTER_FORWARD, 2), (Kind.EXIT_FORWARD, 5), (Kind.TOKEN, 1), (Kind.END, 0))
    stages = cut(marks, num_output_tokens=1)
    assert stages.T_vision_encoder is None
    assert stages.T_projector is None
    assert (stages.T_setup, stages.T_LLM_prefill) == (2, 6)


def test_marks_of_discarded_tokens_are_an_undone_step() -> None:
    marks = [
        *STANDARD[:-1],
        (Kind.ENTER_FORWARD, 52.0),
        (Kind.EXIT_FORWARD, 59.0),
        (Kind.TOKEN, 60.0),
        (Kind.END, 61.0),
    ]
    stages = cut(marks, num_output_tokens=3)
    assert stages.T_LLM_decode == 16
    assert stages.tail == 1
    assert stages.undone == 9


@pytest.mark.parametrize("count", [0, 4])
def test_missing_tokens_are_refused(count: int) -> None:
    with pytest.raises(MeasurementError, match="tokens"):
        cut(STANDARD, num_output_tokens=count)


def test_an_unfinished_timeline_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no start or no end"):
        cut(STANDARD[:-1], num_output_tokens=3)


def test_a_negative_time_is_reported_not_clamped() -> None:
    marks = [(kind, t if kind is not Kind.ENTER_VISION else -0.5) for kind, t in STANDARD]
    stages = cut(marks, num_output_tokens=3)
    assert stages.T_setup == -0.5
    assert stages.negative() == ["T_setup"]


durations = st.floats(0, 1e4, allow_nan=False)


@given(
    setup=durations,
    tiles=st.lists(st.tuples(durations, durations, durations), max_size=5),
    inside=st.booleans(),
    prefill=durations,
    steps=st.lists(st.tuples(durations, durations), max_size=8),
    tail=durations,
)
def test_named_stages_and_tail_add_up_to_the_whole(setup, tiles, inside, prefill, steps, tail) -> None:
    marks: list[tuple[Kind, float]] = [(Kind.START, 0.0)]
    gap = setup
    for vision, projector, between in tiles:
        if inside:
            marks += [(Kind.ENTER_VISION, gap), (Kind.ENTER_PROJECTOR, vision), (Kind.EXIT_PROJECTOR, projector)]
            marks += [(Kind.EXIT_VISION, 0.0)]
        else:
            marks += [(Kind.ENTER_VISION, gap), (Kind.EXIT_VISION, vision)]
            marks += [(Kind.ENTER_PROJECTOR, 0.0), (Kind.EXIT_PROJECTOR, projector)]
        gap = between
    marks += [(Kind.ENTER_FORWARD, gap), (Kind.ENTER_LANGUAGE, 0.0), (Kind.EXIT_FORWARD, prefill), (Kind.TOKEN, 0.0)]
    for loop, forward in steps:
        marks += [(Kind.ENTER_FORWARD, loop), (Kind.EXIT_FORWARD, forward), (Kind.TOKEN, 0.0)]
    marks.append((Kind.END, tail))
    placed = timeline(*marks)
    stages = cut(placed, num_output_tokens=1 + len(steps))
    assert stages.named + stages.tail == pytest.approx(placed[-1][1])
    assert len(stages.ITL) == len(steps)
    assert sum(stages.ITL) == pytest.approx(stages.T_LLM_decode)
    if steps:
        assert stages.T_decode_forward == pytest.approx(sum(f for _, f in steps), abs=1e-6)
        assert stages.T_decode_loop == pytest.approx(sum(lo for lo, _ in steps), abs=1e-6)
    assert (stages.T_vision_encoder is None) == (not tiles)
    assert not stages.negative() or min(0.0, *(t for _, t in marks)) < 0
