"""One run of one request, from encoded images to text, with the clock around each part."""

from __future__ import annotations

import gc
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vlmbench.errors import MeasurementError
from vlmbench.machine.host_use import HostUse, busy_flags
from vlmbench.machine.wall_clock import unix_s
from vlmbench.models.protocol import Prepared, VisionLanguageModel
from vlmbench.probes.protocol import Probe, RunFacts
from vlmbench.request import ImageSource, Request, Sample
from vlmbench.runner.arms import attached
from vlmbench.runner.batches import batch_columns
from vlmbench.runner.watching import Attached, watching
from vlmbench.schema import COMPARED_TIMES, HOST_PARTS

_IDS = 64  # tokens of an arm's answer that a row keeps, to count where it differs from the baseline's


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run gave.

    Args:
        values: metric name to value (``T_*`` in ms, ``num_*``).
        flags: known causes of an odd value.
        shape_key: what makes two runs alike for warm-up: the shapes of all inputs.
        started_unix_s: wall clock when its inputs were about to be transferred; None where it never began.
    """

    values: dict[str, Any]
    flags: tuple[str, ...]
    shape_key: str
    started_unix_s: float | None = None


@contextmanager
def collector_at_rest() -> Iterator[list[int]]:
    """Garbage collection frozen and off; yields a list to which a collection that runs all the same is appended."""
    collected: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            collected.append(info["generation"])

    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    gc.callbacks.append(note)
    try:
        yield collected
    finally:
        gc.callbacks.remove(note)
        gc.unfreeze()
        if was_on:
            gc.enable()


def in_memory(request: Request) -> Request:
    """The request with its images' bytes read, so that no disk or network is inside T_preprocess.

    Raises:
        SampleError: an image cannot be read.
    """

    def held(image: ImageSource) -> ImageSource:
        data = image.encoded()
        return replace(image, read=lambda: data)

    def read(sample: Sample) -> Sample:
        return replace(sample, images=tuple(held(image) for image in sample.images))

    return replace(request, sample=read(request.sample), companions=tuple(map(read, request.companions)))


def shape_key(prepared: Prepared, request: Request | None = None) -> str:
    """Shapes of every input tensor, how the images are cut, what the cache holds, and the method of the request's arm:
    requests with equal keys take the same path through the model.
    """
    arm = "" if request is None or request.intervention is None else request.intervention.label
    begins = "" if prepared.cached is None else f"cached {prepared.cached.tokens} {prepared.cached.filled_with} "
    return (
        arm
        + begins
        + (f"cut {cut} " if (cut := prepared.cut) else "")
        + str({name: list(value.shape) for name, value in sorted(prepared.inputs.items()) if hasattr(value, "shape")})
    )


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A request whose inputs are ready on the host.

    Args:
        request: what was prepared.
        prepared: its inputs.
        T_preprocess: ms.
        shape_key: the shapes of its inputs.
    """

    request: Request
    prepared: Prepared
    T_preprocess: float
    shape_key: str


def prepare(model: VisionLanguageModel, request: Request) -> PreparedRun:
    """Time the host's part.

    Args:
        request: with images in memory (:func:`in_memory`), and resolved: a search for its settings would be timed.

    Raises:
        SampleError: an image cannot be decoded.
        UnreachablePointError: the model cannot make this request.
    """
    begin = time.perf_counter_ns()
    prepared = model.prepare(request)
    elapsed = (time.perf_counter_ns() - begin) / 1e6 - (prepared.T_video_decode or 0.0)
    _ = prepared.counts  # now, so that what cannot be counted fails before it is run
    return PreparedRun(request=request, prepared=prepared, T_preprocess=elapsed, shape_key=shape_key(prepared, request))


def complete(model: VisionLanguageModel, run: PreparedRun, probes: Sequence[Probe], collected: list[int]) -> Outcome:
    """Transfer, generate, detokenise, and read the probes.

    The device is synchronised once before and once after ``generate()``, never inside it.

    Raises:
        MeasurementError: the marks contradict the output.
    """
    from vlmbench.machine.clock import synchronize

    collections_before = len(collected)
    host = HostUse.begin()
    started = unix_s()
    t0 = time.perf_counter_ns()
    prepared = model.transfer(run.prepared)
    synchronize(model.devices)
    t1 = time.perf_counter_ns()
    with ExitStack() as stack:
        method = stack.enter_context(attached(model, run.request, run.prepared))  # first: its code is inside the marks
        captured = model.ready(run.prepared)  # with the method, before hooks and clocks
        watches = stack.enter_context(watching(model, probes))
        model.announce(run.prepared)
        tokens, T_total = _timed_generate(model, prepared, watches, host)
        observed = {} if method is None else method.values(int(tokens.shape[1]))
    t2 = time.perf_counter_ns()
    on_host = tokens.cpu()
    model.detokenize(on_host)
    t3 = time.perf_counter_ns()
    facts = RunFacts(
        T_total=T_total,
        num_output_tokens=int(on_host.shape[1]),
        batch_size=int(on_host.shape[0]),
        prefill=run.prepared.prefill,
        num_forwards=observed.get("num_forwards"),
    )
    values: dict[str, Any] = {
        "T_preprocess": run.T_preprocess,
        "T_transfer": (t1 - t0) / 1e6,
        "T_total": T_total,
        "T_detokenize": (t3 - t2) / 1e6,
        **run.prepared.counts.as_dict(),
        "num_output_tokens": facts.num_output_tokens,
        "max_new_tokens": run.request.output.max_new_tokens,
        "output_forced": run.request.output.forced,
        "batch_size": facts.batch_size,
        "gc": "frozen",
        **batch_columns(run.request, run.prepared, on_host, model),
    }
    _refuse_taken(observed, {*values, *COMPARED_TIMES})
    values |= {
        **observed,
        **captured,
        **({} if run.prepared.cached is None else run.prepared.cached.columns),
    }
    if run.request.intervention is not None:
        values["output_ids"] = " ".join(map(str, on_host[0, :_IDS].tolist()))
    values |= model.own_columns()
    if run.prepared.T_video_decode is not None:
        values.update(T_video_decode=run.prepared.T_video_decode, num_frames=run.prepared.num_frames)
    values["T_request"] = sum(values[name] for name in _host_parts(values)) + T_total
    used = host.columns()
    values.update(used)
    flags = [*(["gc_pause"] if len(collected) > collections_before else []), *busy_flags(used, T_total)]
    if run.request.output.forced and facts.num_output_tokens < run.request.output.max_new_tokens:
        flags.append("short_output")
    for watch in watches:
        watch.read(facts)
        flags += watch.values.pop("flags", [])
        values.update(watch.values)
    if run.request.turns > 1:
        values["num_turns"] = run.request.turns
        if "T_setup" in values:  # the timeline was watched
            values["vision_encoded"] = "T_vision_encoder" in values
    if "TTFT_model" in values:
        before = sum(values[name] for name in _host_parts(values) if name != "T_detokenize")
        values["TTFT"] = before + values["TTFT_model"]
    return Outcome(values=values, flags=tuple(flags), shape_key=run.shape_key, started_unix_s=started)


def _refuse_taken(observed: Mapping[str, Any], taken: Collection[str]) -> None:
    """What a method says of itself goes under names of its own, or it would replace what was measured."""
    if both := sorted(set(taken).intersection(observed)):
        raise MeasurementError(
            f"values() of the method gives {', '.join(both)}, which is measured here; it needs a name of its own"
        )


def _timed_generate(
    model: VisionLanguageModel, prepared: Prepared, watches: Sequence[Attached], host: HostUse
) -> tuple[Any, float]:
    """(new tokens, T_total in ms): the clock stops when the device is idle again.

    A watch that sets the timeline's marks is started last and stopped first, and the clock starts with its first mark:
    stages and whole begin together, and what other watches do at the start lies outside both.
    """
    from vlmbench.machine.clock import synchronize

    criteria = [criterion for watch in watches for criterion in watch.stopping_criteria]
    ordered = sorted(watches, key=lambda watch: watch.sets_marks)
    synchronize(model.devices)
    host.enter()
    for watch in ordered:
        watch.start()
    begin = ordered[-1].began_ns if ordered else None
    if begin is None:
        begin = time.perf_counter_ns()
    tokens = model.generate(prepared, criteria or None)
    for watch in reversed(ordered):
        watch.stop()
    synchronize(model.devices)
    end = time.perf_counter_ns()
    host.leave()
    return tokens, (end - begin) / 1e6


def _host_parts(values: Mapping[str, Any]) -> list[str]:
    """The parts of a request around ``generate()``: no decoding of a clip where there is none, nothing that an
    engine does inside (None).
    """
    own = [name for name in HOST_PARTS if name != "T_video_decode" or name in values]
    return [name for name in own if values[name] is not None]
