"""A Chrome trace of one request for https://ui.perfetto.dev or chrome://tracing, with the stages as named tracks.

On top stand the stages as the host went through them, one slice a token, and for each device the stretch in which it
ran each stage's kernels; below are the profiler's own tracks: host operators, launch calls, streams. Every kernel
carries its stage in ``args.stage``.

Not ``record_function`` spans: whether the profiler draws their device tracks as well has not been looked at on a GPU.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlmbench.probes.attribution import stage_at
from vlmbench.probes.stages import Kind, Segment
from vlmbench.probes.trace import MARK, Trace
from vlmbench.records.files import write_whole

_PROCESS = 1_000_000_000  # above any process id or device number, so that it collides with none
_HOST, _TOKENS, _DEVICE = 1, 2, 10
_US = 1e3


def perfetto_trace(trace: Trace, pieces: Sequence[Segment]) -> dict[str, Any]:
    """The trace as a JSON-able mapping; times in µs since the first mark.

    Args:
        pieces: its stages on the host's clock, ms.
    """
    origin = pieces[0].begin
    events = [*_tracks(pieces, trace, origin), *_profiler_events(trace, pieces, origin)]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def write_trace(path: Path, trace: Trace, pieces: Sequence[Segment]) -> Path:
    """Write :func:`perfetto_trace` as gzipped JSON; a reader never sees half a file.

    Raises:
        MeasurementError: the disk is full or the folder may not be written.
    """
    text = json.dumps(perfetto_trace(trace, pieces), separators=(",", ":"), allow_nan=False)
    return write_whole(path, gzip.compress(text.encode(), compresslevel=6, mtime=0))


def _name(kind: str, text: str, thread: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": _PROCESS, "tid": thread, "args": {"name": text}}


def _slice(name: str, thread: int, begin_ms: float, end_ms: float, origin: float) -> dict[str, Any]:
    return {
        "ph": "X", "cat": "stage", "name": name, "pid": _PROCESS, "tid": thread,
        "ts": round((begin_ms - origin) * _US, 3), "dur": round((end_ms - begin_ms) * _US, 3),
    }  # fmt: skip


def _tracks(pieces: Sequence[Segment], trace: Trace, origin: float) -> Iterator[dict[str, Any]]:
    yield _name("process_name", "stages", 0)
    yield {"ph": "M", "name": "process_sort_index", "pid": _PROCESS, "tid": 0, "args": {"sort_index": -1}}
    yield _name("thread_name", "stages (host)", _HOST)
    for piece in pieces:
        yield _slice(piece.stage, _HOST, piece.begin, piece.end, origin)
    yield _name("thread_name", "tokens (host)", _TOKENS)
    tokens = [time for kind, time in trace.marks if kind is Kind.TOKEN]
    for number, (begin, end) in enumerate(pairwise([pieces[0].begin, *tokens]), 1):
        yield _slice(f"token {number}", _TOKENS, begin, end, origin)
    for thread, (device, spans) in enumerate(sorted(_device_spans(trace, pieces).items()), _DEVICE):
        yield _name("thread_name", f"stages (GPU {device})", thread)
        for stage, begin, end in spans:
            yield _slice(stage, thread, begin, end, origin)


def _device_spans(trace: Trace, pieces: Sequence[Segment]) -> dict[int, list[tuple[str, float, float]]]:
    """For each device, (stage, begin of its first kernel, end of its last) of each stretch of one stage's kernels."""
    found: dict[int, list[tuple[str, float, float]]] = {}
    pairs = zip(trace.device_events, trace.device_work, strict=True)
    for event, work in sorted(pairs, key=lambda pair: pair[1].begin):
        stage = stage_at(work.launched, pieces)
        if stage is None:
            continue
        spans = found.setdefault(int(event.get("args", {}).get("device", 0)), [])
        if spans and spans[-1][0] == stage:
            spans[-1] = (stage, spans[-1][1], max(spans[-1][2], work.end))
        else:
            spans.append((stage, work.begin, work.end))
    return found


def _profiler_events(trace: Trace, pieces: Sequence[Segment], origin: float) -> Iterator[dict[str, Any]]:
    """The profiler's events on our origin; its own bookkeeping and our marks are left out."""
    pairs = zip(trace.device_events, trace.device_work, strict=True)
    stages = {id(event): stage_at(work.launched, pieces) for event, work in pairs}
    for event in trace.events:
        name = str(event.get("name", ""))
        if name.startswith(MARK) or event.get("cat") == "Trace" or not isinstance(event.get("pid"), int):
            continue
        kept = dict(event)
        if "ts" in kept:
            kept["ts"] = 0 if kept["ph"] == "M" else round(float(kept["ts"]) - origin * _US, 3)
        if id(event) in stages:
            kept["args"] = {**kept.get("args", {}), "stage": stages[id(event)]}
        yield kept
