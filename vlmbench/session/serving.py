"""One session against a server: the same directory, rows and end as any other run, without a model in this process.

Torch is not imported.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from vlmbench.data.opening import opened
from vlmbench.data.protocol import Samples
from vlmbench.engines.endpoint.address import find_proxy, tls_context
from vlmbench.engines.endpoint.arrivals import read_trace
from vlmbench.engines.endpoint.client import Client
from vlmbench.engines.endpoint.dialects import definitions
from vlmbench.engines.endpoint.loop import run
from vlmbench.engines.endpoint.server import Server, contact, rehearse
from vlmbench.engines.endpoint.settings import Endpoint, Load
from vlmbench.engines.endpoint.sizes import Sizes
from vlmbench.errors import ConfigError, InputError, SampleError, UnreachablePointError
from vlmbench.records import provenance
from vlmbench.records.files import write_json
from vlmbench.records.redact import shareable
from vlmbench.records.run_directory import RunDirectory
from vlmbench.records.store import RecordStore
from vlmbench.request import Output
from vlmbench.runner.execution import collector_at_rest
from vlmbench.runner.plan import Knobs, Series, SeriesState, dataset_series, sweep_series
from vlmbench.session.ending import report_and_conclude, report_to_come, stopped, to_continue
from vlmbench.session.progress import ProgressBar
from vlmbench.session.serving_loads import Loads, OverHttp, exchanger_of, sizes_of
from vlmbench.session.signals import stop_on_signal
from vlmbench.sweep import LOAD_PREFIX
from vlmbench.text import note, parse_json, say, shown

if TYPE_CHECKING:
    from pathlib import Path

    from vlmbench.session.job import Job
    from vlmbench.session.settings import RunConfig

LOADS_FILE = "loads.json"
_DEVICE = "cpu"  # of this process
_TRIES = 20  # samples that are looked at for one that can be sent
# Axes that need the model's processor in this process, and what a server has instead.
_NOT_HERE = {
    "batch_size": "a server makes its own batches: sweep.axes.load.concurrency=[1,4,16] with load=closed",
    "kv_length": "a server fills its own cache: prompt_tokens and output_tokens make it as long",
    "frames": "this client sends images: sweep=images",
    "turns": "this client asks single questions",
    "reuse_cache": "a server decides by itself what it reuses",
    "intervention": "a method is attached to a model: leave runtime=endpoint out",
    "processor": "the server has its own processor: give its options where it is started",
}


def profile_endpoint(job: Job, *, again: str | None = None) -> int:
    """Measure a server as the configuration asks, then report; returns the exit status.

    Args:
        again: how the job is continued when it is cut short; None where it is no part of another.

    Raises:
        ConfigError: a setting does not go with a server.
        EndpointError: the server cannot be used; nothing was measured.
    """
    again = again or to_continue(job.directory, job.settings.output_dir)
    endpoint, load = endpoint_of(job.settings), load_of(job.settings)
    headers = endpoint.headers()
    address = endpoint.address
    client = Client(
        address=address, tls=tls_context(address, endpoint.ca_file), proxy=find_proxy(address, endpoint.proxy)
    )
    directory = job.run_directory()
    with directory:
        dataset = job.build("dataset")
        samples = opened(dataset)
        server = run(contact(endpoint, client, headers))
        run_id = uuid.uuid4().hex
        series, sizes = _series(job, samples, server, load, run_id)
        _said_of_the_way(server)
        with directory.rows() as store, stop_on_signal() as stop:
            if len(store):
                note(f"continuing: {len(store)} rows are measured already")
            limit = job.settings.measurement.time_limit_s
            deadline = None if limit is None else time.monotonic() + limit
            with ProgressBar(
                show=job.settings.progress,
                told=partial(_note, directory, store),
                about=job.settings.workload == "controlled",
                after=report_to_come(job),
            ) as progress:
                http = OverHttp(server=server, run_id=run_id, sizes=sizes)
                loads = Loads(
                    answerer=http,
                    load=load,
                    store=store,
                    seed=job.settings.seed,
                    progress=progress,
                    stop_requested=lambda: bool(stop) or (deadline is not None and time.monotonic() > deadline),
                    max_errors_in_a_row=job.settings.measurement.max_errors_in_a_row,
                )
                _rehearse(http, series)
                here = _session(job, server, {"name": dataset.name, "samples": len(samples)})
                for warning in directory.begin(here, points_total=len(series)):
                    say(f"unlike the sessions before: {warning}")
                with collector_at_rest():
                    states = loads.run(series)
                    _pairs(job, http, loads, series, progress.does)
        cut_by_time(states, stopped=bool(stop))
        write_loads(job.directory, loads, definitions(server.kind.name))
        directory.end([state.report() for state in states], device=_DEVICE)
        if stop:
            return stopped(job, progress.words(), again=again)
        status = report_and_conclude(job, states, again=again, far=progress.words())
    say(f"results are in {shown(job.directory)}")
    return status


def endpoint_of(settings: RunConfig) -> Endpoint:
    """The server that the settings name.

    Raises:
        ConfigError: its address or name is missing or wrong.
    """
    runtime = settings.runtime
    for name, example in (("base_url", "http://HOST:PORT/v1"), ("model", "NAME")):
        if not getattr(runtime, name):
            raise ConfigError(
                f"'runtime.{name}' must be given for runtime=endpoint (got null)\nset runtime.{name}={example}"
            )
    try:
        return Endpoint(**{one.name: getattr(runtime, one.name) for one in fields(Endpoint)})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_of(settings: RunConfig) -> Load:
    """The load that the settings ask for.

    Raises:
        ConfigError: settings that contradict each other.
    """
    load = settings.load
    try:
        return Load(kind=load.name, **{one.name: getattr(load, one.name) for one in fields(Load) if one.name != "kind"})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _series(job: Job, samples: Samples, server: Server, load: Load, run_id: str) -> tuple[list[Series], Sizes | None]:
    """The series that workload, sweep and data set make, as far as a server can be asked them, and what finds the
    images of a number of vision tokens, where one is aimed at.

    Raises:
        ConfigError: an axis or an output length that a server cannot be asked for.
        InputError: the data set has no sample of the configured number, or the trace is too short.
    """
    settings, measurement = job.settings, job.settings.measurement
    sweep = job.build("sweep")
    axes = {"vision_tokens"} if sweep.auto is not None else set()
    axes |= {axis.name for axis in sweep.parsed()} if sweep.auto is None else set()
    _check_axes(axes, load)
    lengths = "output_tokens" in axes or settings.output.policy == "forced"
    if lengths and not (server.kind.forces_length or server.endpoint.extra_body):
        raise ConfigError(
            f"a server of dialect '{server.kind.name}' cannot be asked for an exact number of tokens\n"
            "use output.policy=natural, or name its own field, as in +runtime.extra_body.ignore_eos=true"
        )
    size = measurement.image_size
    knobs = Knobs(
        output=Output(max_new_tokens=settings.output.tokens, forced=settings.output.policy == "forced"),
        prompt_tokens=measurement.prompt_tokens,
        image_size=None if size is None else (size[0], size[1]),
        seed=settings.seed,
    )
    base = measurement.base_sample
    if (settings.workload == "controlled" or "vision_tokens" in axes) and base >= len(samples):
        raise InputError(f"'measurement.base_sample' must be below the data set's {len(samples)} samples (got {base})")
    sizes = sizes_of(server, knobs.request(samples[base]), run_id) if "vision_tokens" in axes else None
    if sizes is not None and sweep.auto is not None:
        sweep = sweep.found(sizes.spread(sweep.auto))
    if settings.workload == "controlled":
        stopping = job.build("measurement.stopping")
        return sweep_series(samples, base, knobs, sweep, stopping=stopping, bare_every=0), sizes
    check_trace(load, len(samples) * measurement.repeats)
    return [
        series
        for point in sweep.points()
        for series in dataset_series(
            samples,
            knobs,
            repeats=measurement.repeats,
            bare_every=0,
            reference=len(samples) // 2 if measurement.reference else None,
            point=point,
        )
    ], sizes


def _check_axes(axes: set[str], load: Load) -> None:
    for axis in sorted(axes):
        if (instead := _NOT_HERE.get(axis.partition(".")[0])) is not None:
            raise ConfigError(
                f"axis '{axis}' needs the model in this process, which runtime=endpoint has not\n{instead}"
            )
    check_load_axes(axes, load.kind)


def check_load_axes(axes: Collection[str], load: str) -> None:
    """Refuse a sweep of what the kind of load has not.

    Args:
        axes: names of the sweep's axes.
        load: none, closed or open.

    Raises:
        ConfigError: users of an open loop, or arrivals of a closed one.
    """
    for axis, kind in (("concurrency", "closed"), ("rate_per_s", "open")):
        if LOAD_PREFIX + axis in axes and load != kind:
            raise ConfigError(
                f"axis 'load.{axis}' is one of load={kind} (got load={load})\nadd load={kind} to the command"
            )


def check_trace(load: Load, requests: int) -> None:
    """Refuse a trace with fewer arrivals than requests.

    Raises:
        InputError: it has.
    """
    if load.kind != "open" or load.arrivals != "trace" or load.trace_file is None:
        return
    from pathlib import Path

    arrivals = len(read_trace(Path(load.trace_file)))
    if arrivals < requests:
        raise InputError(
            f"'load.trace_file' has {arrivals} arrivals for {requests} requests\n"
            f"give a longer trace, or dataset.num_samples={arrivals} measurement.reference=false"
        )


def _said_of_the_way(server: Server) -> None:
    """Say what lies between this client and the server that changes latency."""
    if server.client.proxy is not None:
        say(f"requests go through a proxy, whose time counts ({server.client.proxy!r}; runtime.proxy=none avoids it)")
    note(f"model '{server.endpoint.model}' on a server of dialect {server.kind.name}")


def _rehearse(http: OverHttp, series: Sequence[Series]) -> None:
    """Send one request before anything is measured: what is wrong with all of them is said now.

    Raises:
        EndpointError: it fails.
        InputError: no sample can be sent.
    """
    reason = ""
    asked = [(one, index) for one in series for index in range(one.size)][:_TRIES]
    for one, index in asked:
        try:
            request = one.request(index)
            order = http.order(request, 0, f"rehearsal/{index}")
        except (SampleError, UnreachablePointError) as error:
            reason = str(error)
            continue
        exchanger = exchanger_of(http.server, http.turns)
        run(rehearse(http.server, exchanger, order, images=bool(request.images)), http.turns)
        return
    raise InputError(f"none of the first {len(asked)} requests can be sent: {reason}")


def _session(job: Job, server: Server, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """This process as the first session of a provenance; what stands for the model is what the server says."""
    facts: dict[str, Any] = {
        "name": server.endpoint.model,
        "weights": None,
        "endpoint": dict(server.facts),
        "server_figures": definitions(server.kind.name),
    }
    here = provenance.collect(job.config, model_facts=facts, device=_DEVICE, seed=job.settings.seed)
    return {**here, "dataset": dict(dataset), "load": shareable(_plain(job.config.get("load")))}


def _plain(node: Any) -> dict[str, Any]:
    return dict(node) if isinstance(node, Mapping) else {}


def _pairs(job: Job, http: OverHttp, loads: Loads, series: Sequence[Series], does: Callable[[str], None]) -> None:
    """Ask the paired requests, where some are wanted."""
    wanted = job.settings.runtime.pairs
    if not wanted or loads.stop_requested():
        return
    does("paired requests")
    first = series[0]
    for index in range(min(first.size, _TRIES)):
        try:
            request = first.request(index)
            if not request.images:
                continue
            left_out = http.ask(
                request, wanted, store=loads.store, seed=loads.seed, stop_requested=loads.stop_requested
            )
            if left_out:
                say(f"warning: {left_out}")
            return
        except SampleError:
            continue
    say("warning: no paired requests: none of the first samples has an image that can be read")


def cut_by_time(states: Sequence[SeriesState], *, stopped: bool) -> None:
    """A series that did not end, and was not stopped by the user, met the time limit."""
    for state in states:
        if state.ended == "interrupted" and not stopped:
            state.ended = "time_limit"


def write_loads(directory: Path, loads: Loads, figures: Mapping[str, str]) -> None:
    """``loads.json``: every load of all sessions, and what the server's figures mean."""
    path = directory / LOADS_FILE
    before: list[Any] = []
    if path.is_file():
        try:
            before = list(parse_json(path.read_bytes())["loads"])
        except (ValueError, TypeError, KeyError):
            say(f"{LOADS_FILE} of the sessions before could not be read; it begins anew")
    content = {
        "schema_version": 1,
        "server_figures": dict(figures),
        "loads": [*before, *(episode.as_dict() for episode in loads.episodes)],
    }
    write_json(path, content)


def _note(directory: RunDirectory, store: RecordStore, points: int, done: int, total: int) -> None:
    directory.note(points_done=points, rows=len(store), runs=(done, total))
