"""From marks to stages: one generate() is cut into contiguous pieces, each of which belongs to one stage.

Standard library only. The cutting is a pure function of the marks' order and times, so that it can be checked with
planted times. Nothing is computed by subtracting one run from another, and nothing is clamped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from vlmbench.errors import MeasurementError


class Kind(IntEnum):
    """What a mark says."""

    START = 0  # generate() is about to be entered
    END = 1  # generate() returned
    ENTER_VISION = 2
    EXIT_VISION = 3
    ENTER_PROJECTOR = 4
    EXIT_PROJECTOR = 5
    ENTER_LANGUAGE = 6
    EXIT_LANGUAGE = 7
    ENTER_FORWARD = 8  # the top-level model's forward
    EXIT_FORWARD = 9
    TOKEN = 10  # a token was chosen
    ENTER_METHOD = 11  # an intervention's own work begins, inside whatever stage
    EXIT_METHOD = 12


_ENTER = {Kind.ENTER_VISION: "vision_encoder", Kind.ENTER_PROJECTOR: "projector"}
_EXIT = {Kind.EXIT_VISION, Kind.EXIT_PROJECTOR}
_FORWARD_ENTER = {Kind.ENTER_LANGUAGE, Kind.ENTER_FORWARD}
_FORWARD_EXIT = {Kind.EXIT_LANGUAGE, Kind.EXIT_FORWARD}

Mark = tuple[Kind, float]

RESIDUAL = "residual"


@dataclass(frozen=True, slots=True)
class Segment:
    """A contiguous piece of one stage; the segments of a run are in order and leave no gap.

    Args:
        stage: its name (:data:`vlmbench.schema.TOTAL_STAGES`), or ``residual`` after the last token.
        begin, end: on the clock of the marks.
    """

    stage: str
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Times in ms; a stage that the model or the request does not have is None, never 0. ``T_setup`` is None where
    nothing marks its end (text only, and no marks on forwards: a compiled run); ``T_LLM_prefill`` holds it then. A run
    without a prefill, over a cache that was filled before the clock, has neither ``T_LLM_prefill`` nor ``TTFT_model``:
    ``T_setup`` lasts until its first token, which takes one step.

    ``undone`` is the time of decode steps after the last token that came out, whose results were thrown away (a stop
    flag that is read one step late); None where there was none. It is no part of ``tail``.

    ``tail`` is the time between the last token and the return of ``generate()``: part of ``T_residual``, or
    ``T_answer_out`` of an engine that hands tokens out.
    """

    T_setup: float | None
    T_vision_encoder: float | None
    T_projector: float | None
    T_LLM_prefill: float | None
    T_LLM_decode: float
    T_decode_forward: float | None
    T_decode_loop: float | None
    TTFT_model: float | None
    ITL: tuple[float, ...]
    tail: float
    undone: float | None = None

    @property
    def named(self) -> float:
        """The sum of the named stages, ms."""
        return (
            (self.T_setup or 0.0)
            + (self.T_vision_encoder or 0.0)
            + (self.T_projector or 0.0)
            + (self.T_LLM_prefill or 0.0)
            + self.T_LLM_decode
        )

    def negative(self) -> list[str]:
        """Names of stages with a negative time (device clocks can disagree; that is reported, not repaired)."""
        names = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode")
        return [n for n in names if (value := getattr(self, n)) is not None and value < 0]


def cut(marks: Sequence[Mark], *, num_output_tokens: int, prefill: bool = True) -> Stages:
    """Cut one ``generate()`` at its marks: the sums of its segments.

    * ``T_setup`` ends where the vision encoder (or projector) starts; without vision, where the first forward starts.
    * Time inside a projector that lies inside a tower is the projector's. Between two pieces of vision work (tiles,
      two towers) the gap belongs to the piece that follows.
    * ``T_LLM_prefill`` lasts from the end of the vision work to the first token.
    * Vision marks after the language model was first entered do not count, unless there are none before it.

    Args:
        marks: in the order in which they were set, START first and END last, times in ms on one clock.
        num_output_tokens: tokens that came out; marks of further tokens (a discarded speculative step) are ignored.
        prefill: whether the run had one.

    Raises:
        MeasurementError: START, END or a token mark is missing.
    """
    pieces = segments(marks, num_output_tokens=num_output_tokens, prefill=prefill)
    times: dict[str, float] = {}
    for piece in pieces:
        times[piece.stage] = times.get(piece.stage, 0.0) + (piece.end - piece.begin)
    first, last = _token_positions(marks, num_output_tokens)
    tokens = [t for kind, t in marks[: last + 1] if kind is Kind.TOKEN]
    forward, loop = _cut_decode(marks[first : last + 1])
    undone_end = _end_of_undone(marks[last + 1 :])
    undone = None if undone_end is None else undone_end - tokens[-1]
    return Stages(
        T_setup=times.get("setup"),
        T_vision_encoder=times.get("vision_encoder"),
        T_projector=times.get("projector"),
        T_LLM_prefill=times["LLM_prefill"] if prefill else None,
        T_LLM_decode=times["LLM_decode"],
        T_decode_forward=forward,
        T_decode_loop=loop,
        TTFT_model=tokens[0] - marks[0][1] if prefill else None,
        ITL=tuple(b - a for a, b in itertools.pairwise(tokens)),
        tail=times[RESIDUAL] - (undone or 0.0),
        undone=undone,
    )


def segments(marks: Sequence[Mark], *, num_output_tokens: int, prefill: bool = True) -> list[Segment]:
    """Find the pieces that :func:`cut` adds up, in order, with ``residual`` after the last token.

    Where nothing marks the end of setup there is no ``setup``: ``LLM_prefill`` begins at the start.

    Args:
        marks: in the order in which they were set, START first and END last.
        num_output_tokens: tokens that came out; marks of further ones are ignored.
        prefill: whether the run had one; without, ``setup`` lasts until the first token.

    Raises:
        MeasurementError: START, END or a token mark is missing.
    """
    if len(marks) < 2 or marks[0][0] is not Kind.START or marks[-1][0] is not Kind.END:
        raise MeasurementError("the timeline has no start or no end; was generate() interrupted?")
    positions = _token_positions(marks, num_output_tokens)
    first, last = (marks[position][1] for position in positions)
    start, end = marks[0][1], marks[-1][1]
    decode = [Segment("LLM_decode", first, last), Segment(RESIDUAL, last, end)]
    if not prefill:
        return [Segment("setup", start, first), *decode]
    until_first = marks[: positions[0] + 1]
    vision: list[Segment] = []
    for stage, begin, finish in _vision_pieces(_vision_marks(until_first)):
        if vision and vision[-1].stage == stage:
            begin = vision.pop().begin  # noqa: PLW2901 – one piece where a stage goes on
        vision.append(Segment(stage, begin, finish))
    entered = next((t for kind, t in until_first if kind in _FORWARD_ENTER), None)
    setup_end = vision[0].begin if vision else entered
    prefill_begin = vision[-1].end if vision else start if entered is None else entered
    return [
        *([] if setup_end is None else [Segment("setup", start, setup_end)]),
        *vision,
        Segment("LLM_prefill", prefill_begin, first),
        *decode,
    ]


def _end_of_undone(marks: Sequence[Mark]) -> float | None:
    """When the last forward or token after the last token that came out was over; None where there was none."""
    return max((t for kind, t in marks if kind in _FORWARD_EXIT or kind is Kind.TOKEN), default=None)


def _token_positions(marks: Sequence[Mark], count: int) -> tuple[int, int]:
    """Indices of the first and of the count-th token mark."""
    positions = [i for i, (kind, _) in enumerate(marks) if kind is Kind.TOKEN]
    if not 1 <= count <= len(positions):
        raise MeasurementError(
            f"the timeline saw {len(positions)} tokens where {count} came out; "
            "this model's generate() does not call stopping criteria once a token"
        )
    return positions[0], positions[count - 1]


def method_times(marks: Sequence[Mark]) -> dict[str, float]:
    """An intervention's own work by the stage that holds it, ms: an "of which", never taken off the stage.

    Args:
        marks: of one run, in the order in which they were set.

    Returns:
        stage name (``setup``, ``vision_encoder``, ``projector``, ``LLM_prefill``, ``LLM_decode``) to ms; empty where no
        method ran.
    """
    found: dict[str, float] = {}
    stage, inside, token = "setup", [], False  # stages that are entered and not left, innermost last
    entered: float | None = None
    for kind, at in marks:
        if kind in _ENTER:
            inside.append(_ENTER[kind])
        elif kind in _EXIT and inside:
            inside.pop()
            stage = "LLM_prefill"
        elif kind is Kind.ENTER_LANGUAGE and not inside:
            stage = "LLM_prefill"
        token = token or kind is Kind.TOKEN
        if kind is Kind.ENTER_METHOD and entered is None:
            entered = at
        elif kind is Kind.EXIT_METHOD and entered is not None:
            where = inside[-1] if inside else "LLM_decode" if token else stage
            found[where] = found.get(where, 0.0) + at - entered
            entered = None
    return found


def _vision_marks(marks: Sequence[Mark]) -> list[Mark]:
    """Vision and projector marks before the language model is first entered, else all of them."""
    language = next((i for i, (kind, _) in enumerate(marks) if kind is Kind.ENTER_LANGUAGE), len(marks))
    before = [m for m in marks[:language] if m[0] in _ENTER or m[0] in _EXIT]
    return before or [m for m in marks if m[0] in _ENTER or m[0] in _EXIT]


def _vision_pieces(marks: Sequence[Mark]) -> Iterator[tuple[str, float, float]]:
    """(stage, begin, end) of contiguous pieces from the first vision mark to the last."""
    stack: list[str] = []
    for (kind, begin), (following, end) in itertools.pairwise(marks):
        if kind in _ENTER:
            stack.append(_ENTER[kind])
        elif stack:
            stack.pop()
        if stack:
            yield stack[-1], begin, end
        elif following in _ENTER:
            yield _ENTER[following], begin, end


def _cut_decode(marks: Sequence[Mark]) -> tuple[float | None, float | None]:
    """(forward, loop) of first token … last token; (None, None) when no forward was seen."""
    forward, depth, entered, seen = 0.0, 0, 0.0, False
    for kind, t in marks:
        if kind in _FORWARD_ENTER:
            if depth == 0:
                entered, seen = t, True
            depth += 1
        elif kind in _FORWARD_EXIT and depth:
            depth -= 1
            if depth == 0:
                forward += t - entered
    if not seen:
        return None, None
    return forward, (marks[-1][1] - marks[0][1]) - forward
