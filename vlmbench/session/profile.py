"""One session in one run directory: lock, load, measure, report. What was measured is kept, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.data.opening import opened
from vlmbench.engines.choice import engine
from vlmbench.errors import DeviceError
from vlmbench.machine import gpu
from vlmbench.machine.host import device_facts, device_state
from vlmbench.machine.load import Load, choose_threads, look
from vlmbench.machine.processors import Processors
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.records import provenance
from vlmbench.records.attempts import Attempts
from vlmbench.records.files import write_json
from vlmbench.records.run_directory import RunDirectory
from vlmbench.records.store import RecordStore
from vlmbench.runner.costs import annotator, costs_of
from vlmbench.runner.guards import much_larger
from vlmbench.runner.loop import Runner
from vlmbench.runner.plan import Series, SeriesState, no_slope
from vlmbench.runner.warmup import Warmup
from vlmbench.schema import Mode
from vlmbench.session.ending import report_and_conclude, report_to_come, stopped, to_continue
from vlmbench.session.progress import ProgressBar
from vlmbench.session.series import make_series
from vlmbench.session.signals import stop_on_signal
from vlmbench.text import count, note, parse_json, say, shown

if TYPE_CHECKING:
    from vlmbench.cost.run_costs import Costs
    from vlmbench.session.job import Job


def profile(
    job: Job,
    model: VisionLanguageModel | None = None,
    *,
    again: str | None = None,
    points: Collection[str] | None = None,
) -> int:
    """Measure what the configuration asks for, then report; returns the exit status.

    Args:
        model: loaded before (one load for several parts of a study); None loads it.
        again: how the job is continued when it is cut short; None where it is no part of another.
        points: ids of the points of its sweep that are measured; None for all.
    """
    again = again or to_continue(job.directory, job.settings.output_dir)
    run = job.run_directory()
    with run:
        if run.known and model is None:
            run.check_alike(_expected(job))
        _check_alone(job)
        dataset = job.build("dataset")
        samples = opened(dataset)
        load = look()
        if (busy := load.warning()) and not job.turns.others():  # they load, and will wait while this one measures
            say(f"warning: {busy}")
        model = model or load_model(job, load)
        job.turns.uses(_stamp(model).get("gpu_uuid", "").split(","))  # all of them, now that it is known
        run.check_alike({"device": device_facts(str(model.device)), "model": model.facts})
        job.turns.waits = run.outcome.waits
        with run.rows() as store:
            if len(store):
                note(f"continuing: {len(store)} rows are measured already")
            series = make_series(job, samples, model, run.attempts)
            if points is not None:
                series = [one for one in series if one.point_id in points]
            _foresee(job, model, series, run.attempts)
            with stop_on_signal() as stop:
                costs = costs_of(model, job.settings.device_peaks) if job.settings.measurement.costs else None
                here = _session(job, model, load, costs, {"name": dataset.name, "samples": len(samples)})
                for warning in run.begin(here, points_total=len(series)):
                    say(f"unlike the sessions before: {warning}")
                states, untraced, far = _measure(job, model, series, run=run, store=store, stop=stop, costs=costs)
        run.end([state.report() for state in states], device=str(model.device), extra=model.closing_facts)
        if stop:
            return stopped(job, far, again=again)
        status = report_and_conclude(job, states, untraced=untraced, again=again, far=far)
    say(f"results are in {shown(job.directory)}")
    return status


def _foresee(job: Job, model: VisionLanguageModel, series: Sequence[Series], attempts: Attempts) -> None:
    """Warn of a sweep that will make no slope, and of a point that will eat the night."""
    if job.settings.workload == "controlled" and (why := no_slope(model, series, attempts)):
        say(f"warning: {why}")
    if large := much_larger(model, series, attempts):
        say(f"warning: {large}")


def _session(
    job: Job, model: VisionLanguageModel, load: Load, costs: Costs | None, dataset: Mapping[str, Any]
) -> dict[str, Any]:
    """This process as the first session of a provenance, with how busy the host was before it began."""
    device = str(model.device)
    state = {**device_state(device), "host_load": load.facts()}
    here = provenance.collect(
        job.config, model_facts=model.facts, device=device, seed=job.settings.seed, state_before=state
    )
    here["dataset"] = dict(dataset)
    if (turns := job.turns.facts()) is not None:
        here["turns"] = here["sessions"][-1]["turns"] = turns
    if costs is not None and costs.peaks.peaks is not None:
        here["device_peaks"] = asdict(costs.peaks.peaks)
    return here


def _expected(job: Job) -> dict[str, Any]:
    """What can be said of a session before its model is loaded: the device and the dtype."""
    from vlmbench.models.placement import resolve_device, resolve_dtype

    device = resolve_device(job.settings.runtime.device)
    facts = {name: value for name, value in device_facts(str(device)).items() if name != "threads"}  # not set yet
    return {"device": facts, "model": {"dtype": str(resolve_dtype(job.settings.runtime.dtype, device))}}


def _check_alone(job: Job) -> None:
    """Say, or with ``runtime.strict_device`` refuse, when somebody else uses the GPU."""
    device = job.settings.runtime.device
    if members := job.turns.others():
        note(f"{count(members, 'other member')} of its turns on this machine")
    if device in ("cpu", "mps"):
        job.turns.uses([])
        return
    device = "cuda:0" if device in ("auto", "cuda") else device
    others = gpu.busy_with(device, known=_members_on(job, device))
    if others is None:
        return
    if job.settings.runtime.strict_device:
        raise DeviceError(f"{others}; wait, choose another with runtime.device=cuda:N, or runtime.strict_device=false")
    say(f"latencies may be somebody else's, too: {others}")


def _members_on(job: Job, device: str) -> int:
    """How many other members of its turns may use a GPU; lets them know that this one will."""
    if job.turns.directory is None:
        return 0
    import torch

    uuid = gpu.gpu_uuid(device) if torch.cuda.is_available() else ""
    if uuid is not None:
        job.turns.uses([uuid])
    return job.turns.others(uuid)


def load_model(job: Job, host: Load | None = None) -> VisionLanguageModel:
    """The configured model on the configured device, with a word on how long it took.

    Args:
        host: how busy the host is; looked at now if None.
    """
    chosen = job.settings.runtime
    runtime = chosen.options()
    began = time.monotonic()
    _set_threads(job, runtime.threads, host or look())
    settings = {**asdict(chosen), "under_load": job.settings.load.name != "none"}
    model = engine(chosen.engine)(job.build("model"), runtime, settings, job.settings.seed)
    facts = model.facts
    took = f"{time.monotonic() - began:.1f} s, weights in {facts['build_s']:.2f} s"
    note(f"{facts['name']} ({facts['weights']} weights) on {model.device} in {took}")
    return model


def _set_threads(job: Job, wanted: int | None, host: Load) -> None:
    """Give torch as many threads as were asked for, or no more than there are free processors; says so."""
    import torch

    if job.turns.directory is not None:
        host = replace(host, busy=0.0)  # the other members, which wait while this one measures
    earlier = (provenance.read_provenance(job.directory) or {}).get("device", {}).get("threads")
    threads, why = choose_threads(wanted, default=torch.get_num_threads(), load=host, earlier=earlier)
    if why:
        note(f"torch uses {why}")
    torch.set_num_threads(threads)


def _measure(
    job: Job,
    model: VisionLanguageModel,
    series: list[Series],
    *,
    run: RunDirectory,
    store: RecordStore,
    stop: list[str],
    costs: Costs | None,
) -> tuple[list[SeriesState], set[str], str]:
    """The series as they ended, the points whose trace the time limit left out, and how far the run is in words."""
    measurement = job.settings.measurement
    limit = measurement.time_limit_s
    probes = [p for p in (job.build(f"probe.{name}") for name in job.settings.probe) if p.applies(model)]
    with ProgressBar(
        show=job.settings.progress,
        told=lambda points, done, total: run.note(points_done=points, rows=len(store), runs=(done, total)),
        about=job.settings.workload == "controlled",
        after=report_to_come(job),
    ) as progress:
        stamp = {"runtime": job.settings.runtime.name, **_stamp(model)}
        if job.settings.load.name != "none":
            from vlmbench.session.engine_load import measure_load

            states = measure_load(
                job,
                model,
                series,
                store=store,
                progress=progress,
                stop_requested=lambda: bool(stop),
                stamp=stamp,
            )
            return states, set(), progress.words()
        runner = Runner(
            model=model,
            probes=probes,
            store=store,
            attempts=run.attempts,
            warmup=_warmup(job),
            seed=job.settings.seed,
            progress=progress,
            does=progress.does,
            stop_requested=lambda: bool(stop),
            trace_requests=measurement.trace_requests,
            yardstick=measurement.yardstick,
            processors=Processors(on=measurement.change_processor, seed=job.settings.seed),
            turns=job.turns,
            stamp=stamp,
            annotate=annotator(costs, model) if costs else None,
            max_errors_in_a_row=measurement.max_errors_in_a_row,
            deadline_s=None if limit is None else time.monotonic() + limit,
        )
        states = runner.run(series)
    if job.turns.number is not None:  # the report, too, is made in its turn
        job.turns.take(lambda: bool(stop))
    if runner.arms.proofs:
        _keep_proofs(job.directory / "proofs.json", runner.arms.proofs)
    traces = measurement.trace_requests and any(probe.own_run for probe in probes)
    if limit is None or not traces:
        return states, set(), progress.words()
    traced = {point for point, mode, _ in store.counts if mode == Mode.TRACE}  # failures, too, have rows
    return states, {s.series.point_id for s in states if s.measured} - traced, progress.words()


def _keep_proofs(path: Path, proofs: Mapping[str, Any]) -> None:
    """Write how methods proved themselves, beside what earlier sessions wrote."""
    held: Any = {}
    if path.is_file():
        try:
            held = parse_json(path.read_bytes())
        except ValueError:
            held = None
        if not isinstance(held, dict):
            say(f"'{path.name}' of the sessions before could not be read; it begins anew")
            held = {}
    write_json(path, {**held, **proofs})


def _stamp(model: VisionLanguageModel) -> dict[str, Any]:
    """Which GPUs ran it: a resumed run, or a grid's collected table, may hold rows of several."""
    uuids = [gpu.gpu_uuid(str(device)) for device in model.devices if device.type == "cuda"]
    uuids += model.facts.get("other_gpus", [])
    return {"gpu_uuid": ",".join(map(str, uuids))} if uuids else {}


def _warmup(job: Job) -> Warmup:
    """As configured; what depends on the length of the cache is warmed to the full length, the longest first."""
    warmup: Warmup = job.build("measurement.warmup")
    runtime = job.settings.runtime
    if runtime.engine == "transformers" and not runtime.compile and runtime.cache_implementation != "static":
        return warmup
    return replace(warmup, output_tokens=None, longest_first=True)
