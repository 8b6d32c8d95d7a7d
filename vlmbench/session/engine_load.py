"""Load on the engine of this process: the loads and rows of a server, without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmbench.engines.endpoint.dialects import IN_PROCESS, definitions
from vlmbench.engines.vllm.load import EngineDriver, InVllm, Ready
from vlmbench.errors import ConfigError, InputError, SampleError, UnreachablePointError
from vlmbench.runner.execution import collector_at_rest, in_memory, prepare
from vlmbench.session.serving import check_load_axes, check_trace, cut_by_time, load_of, write_loads
from vlmbench.session.serving_loads import Loads

if TYPE_CHECKING:
    from vlmbench.engines.endpoint.driver import LoadFacts
    from vlmbench.engines.vllm.model import VllmModel
    from vlmbench.records.store import RecordStore
    from vlmbench.request import Request
    from vlmbench.runner.loop import Progress
    from vlmbench.runner.plan import Series, SeriesState
    from vlmbench.session.job import Job

_TRIES = 20  # samples that are looked at for one that can be asked
_REHEARSALS = 2  # of one request, so that nothing is built within a load


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """The engine that answers; see :class:`vlmbench.session.serving_loads.Answerer`.

    Args:
        model: loaded.
        stamp: values of every row.
    """

    model: VllmModel
    stamp: Mapping[str, Any]

    def order(self, request: Request, repeat: int, name: str) -> Ready:  # noqa: ARG002 – every image is new to it
        """Make a request's inputs, ahead of the load and timed apart, as a server makes them in another process.

        Raises:
            SampleError: an image cannot be decoded.
            UnreachablePointError: the request is too long, or the model cannot make it.
        """
        run = prepare(self.model, in_memory(self.model.resolve(request)))
        return Ready(
            sample_id=request.sample.sample_id,
            repeat=repeat,
            body=b"",
            asked_tokens=request.output.max_new_tokens,
            forced=request.output.forced,
            values={"T_preprocess_ahead": run.T_preprocess, **run.prepared.counts.as_dict(), **self.stamp},
            prepared=run.prepared,
        )

    def send(self, **sending: Any) -> tuple[LoadFacts, None]:
        """Send a load; the engine keeps no counters that the rows do not hold."""
        return EngineDriver(engine=InVllm(model=self.model), **sending).run(), None


def measure_load(
    job: Job,
    model: Any,
    series: Sequence[Series],
    *,
    store: RecordStore,
    progress: Progress,
    stop_requested: Callable[[], bool],
    stamp: Mapping[str, Any],
) -> list[SeriesState]:
    """Measure series under load; returns how each ended.

    Args:
        model: of ``runtime=vllm``.

    Raises:
        ConfigError: an axis that does not go with a load.
        InputError: the trace is too short, or no sample can be asked.
    """
    load, measurement = load_of(job.settings), job.settings.measurement
    axes = {name for one in series for name in one.axes}
    check_load_axes(axes, load.kind)
    if "batch_size" in axes:
        raise ConfigError(
            f"axis 'batch_size' is none of a load: the engine makes its own batches (got load={load.kind})\n"
            "sweep.axes.load.concurrency=[1,4,16] with load=closed"
        )
    check_trace(load, sum(one.expected for one in series if one.stopping is None))
    deadline = None if measurement.time_limit_s is None else time.monotonic() + measurement.time_limit_s
    answerer = InProcess(model=model, stamp=stamp)
    _rehearse(answerer, series[0])
    loads = Loads(
        answerer=answerer,
        load=load,
        store=store,
        seed=job.settings.seed,
        progress=progress,
        stop_requested=lambda: stop_requested() or (deadline is not None and time.monotonic() > deadline),
        max_errors_in_a_row=measurement.max_errors_in_a_row,
    )
    with collector_at_rest():
        states = loads.run(series)
    cut_by_time(states, stopped=stop_requested())
    write_loads(job.directory, loads, definitions(IN_PROCESS))
    return states


def _rehearse(answerer: InProcess, series: Series) -> None:
    """Run one request alone, before any load."""
    reason = ""
    for index in range(min(series.size, _TRIES)):
        try:
            prepared = answerer.order(series.request(index), 0, "").prepared
        except (SampleError, UnreachablePointError) as error:
            reason = str(error)
            continue
        for _ in range(_REHEARSALS):
            answerer.model.generate(prepared)
        return
    raise InputError(f"none of the first {min(series.size, _TRIES)} samples can be asked: {reason}")
