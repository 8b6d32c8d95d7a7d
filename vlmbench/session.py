"""One session in one run directory: lock, load, measure, report. What was measured is kept, whatever happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.errors import DeviceError
from vlmbench.job_costs import annotator, job_costs
from vlmbench.job_series import make_series
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.progress import ProgressBar
from vlmbench.records import gpu, provenance
from vlmbench.records.environment import device_facts
from vlmbench.records.lock import RunLock
from vlmbench.records.outcome import State
from vlmbench.records.store import RecordStore
from vlmbench.records.whole import write_json, write_whole
from vlmbench.runner import Runner
from vlmbench.series_state import SeriesState
from vlmbench.stop_signals import stop_on_signal
from vlmbench.warmup import Warmup
from vlmbench.workload import Series

if TYPE_CHECKING:
    from vlmbench.cost.costs import Costs
    from vlmbench.job import Job


INTERRUPTED = 130
"""Exit status of a run that the same command continues."""


def profile(job: Job, model: VisionLanguageModel | None = None) -> int:
    """Measure what the configuration asks for, then report; returns the exit status.

    Args:
        job: the job.
        model: loaded before (one load for several parts of a study); None loads it.
    """
    with RunLock(job.directory, break_lock=job.settings.break_lock):
        if provenance.check_directory(job.directory, job.config) and model is None:
            _check_alike(job, _expected(job))
        _check_alone(job)
        dataset = job.build("dataset")
        samples = dataset.open()
        model = model or load_model(job)
        _check_alike(job, {"device": device_facts(str(model.device)), "model": model.facts})
        series = make_series(job, samples, model)
        with RecordStore(job.directory) as store, stop_on_signal() as stop:
            if store.repair:
                _say(f"records repaired: {store.repair}")
            if len(store):
                _say(f"continuing: {len(store)} rows are measured already")
            _write_hydra(job)
            device = str(model.device)
            costs = job_costs(job, model) if job.settings.measurement.costs else None
            here = provenance.collect(job.config, model_facts=model.facts, device=device, seed=job.settings.seed)
            here["dataset"] = {"name": dataset.name, "samples": len(samples)}
            if costs is not None and costs.peaks.peaks is not None:
                here["device_peaks"] = asdict(costs.peaks.peaks)
            _, warnings = provenance.begin_session(job.directory, here, allow_unlike=job.settings.allow_unlike)
            for warning in warnings:
                _say(f"unlike the sessions before: {warning}")
            job.outcome.begin(points_total=len(series))
            states = _measure(job, model, series, store=store, stop=stop, costs=costs)
        points = [state.report() for state in states]
        write_json(job.directory / "points.json", {"points": points})
        provenance.end_session(job.directory, device=device)
        if not stop:  # a job that was told to stop has little time: the report is written when it continues
            _report(job)
    if stop:
        return _interrupted(job, "interrupted; run the same command again to continue")
    return _conclude(job, states)


def _check_alike(job: Job, session: Mapping[str, Any]) -> None:
    """Refuse to continue what unlike hardware or another runtime began, unless ``allow_unlike`` is set."""
    provenance.check_alike(job.directory, session, allow_unlike=job.settings.allow_unlike)


def _expected(job: Job) -> dict[str, Any]:
    """What can be said of a session before its model is loaded: the device and the dtype."""
    from vlmbench.models.placement import resolve_device, resolve_dtype

    device = resolve_device(job.settings.runtime.device)
    facts = {name: value for name, value in device_facts(str(device)).items() if name != "threads"}  # not set yet
    return {"device": facts, "model": {"dtype": str(resolve_dtype(job.settings.runtime.dtype, device))}}


def _check_alone(job: Job) -> None:
    """Say, or with ``runtime.strict_device`` refuse, when somebody else uses the GPU."""
    device = job.settings.runtime.device
    if device in ("cpu", "mps"):
        return
    others = gpu.busy_with("cuda:0" if device in ("auto", "cuda") else device)
    if others is None:
        return
    if job.settings.runtime.strict_device:
        raise DeviceError(f"{others}; wait, choose another with runtime.device=cuda:N, or runtime.strict_device=false")
    _say(f"latencies may be somebody else's, too: {others}")


def load_model(job: Job) -> VisionLanguageModel:
    """The configured model on the configured device, with a word on how long it took."""
    runtime = job.settings.runtime
    began = time.monotonic()
    if runtime.threads is not None:
        import torch

        torch.set_num_threads(runtime.threads)
    model: VisionLanguageModel = job.build("model").load(
        device=runtime.device,
        dtype=runtime.dtype,
        attn_implementation=runtime.attn_implementation,
        experts_implementation=runtime.experts_implementation,
        cache_implementation=runtime.cache_implementation,
        compile=runtime.compile,
        device_map=runtime.device_map,
        tp_plan=runtime.tp_plan,
        seed=job.settings.seed,
    )
    facts = model.facts
    took = f"{time.monotonic() - began:.1f} s, weights in {facts['build_s']:.2f} s"
    _say(f"{facts['name']} ({facts['weights']} weights) on {model.device} in {took}")
    return model


def _measure(
    job: Job,
    model: VisionLanguageModel,
    series: list[Series],
    *,
    store: RecordStore,
    stop: list[str],
    costs: Costs | None,
) -> list[SeriesState]:
    measurement = job.settings.measurement
    limit = measurement.time_limit_s
    note = partial(_note, job, store)
    with ProgressBar(show=job.settings.progress, note=note) as progress:
        runner = Runner(
            model=model,
            probes=[p for p in (job.build(f"probe.{name}") for name in job.settings.probe) if p.applies(model)],
            store=store,
            warmup=_warmup(job),
            seed=job.settings.seed,
            progress=progress,
            stop_requested=lambda: bool(stop),
            trace_requests=measurement.trace_requests,
            stamp=_stamp(model),
            annotate=annotator(costs) if costs else None,
            max_errors_in_a_row=measurement.max_errors_in_a_row,
            deadline_s=None if limit is None else time.monotonic() + limit,
        )
        return runner.run(series)


def _stamp(model: VisionLanguageModel) -> dict[str, Any]:
    """Which GPUs ran it: a resumed run, or a grid's collected table, may hold rows of several."""
    uuids = [gpu.gpu_uuid(str(device)) for device in model.devices if device.type == "cuda"]
    uuids += model.facts.get("other_gpus", [])
    return {"gpu_uuid": ",".join(map(str, uuids))} if uuids else {}


def _warmup(job: Job) -> Warmup:
    """As configured; what depends on the length of the cache is warmed to the full length, the longest first."""
    warmup: Warmup = job.build("measurement.warmup")
    runtime = job.settings.runtime
    if not runtime.compile and runtime.cache_implementation != "static":
        return warmup
    return replace(warmup, output_tokens=None, longest_first=True)


def _note(job: Job, store: RecordStore, points: int) -> None:
    job.outcome.progress(points_done=points, rows=len(store))


def _write_hydra(job: Job) -> None:
    """``.hydra/`` as Hydra itself would write it, but only once the directory is known to be ours."""
    from omegaconf import OmegaConf

    folder = job.directory / ".hydra"
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(job.config))))
    write_whole(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(job.overrides)))


def _report(job: Job) -> None:
    """Figures, summary and phase file; a failure here loses no measurement and is said aloud."""
    from vlmbench.report import write_report

    sys.stdout.write(write_report(job.settings.report, job.directory) + "\n")


def _conclude(job: Job, states: Sequence[SeriesState]) -> int:
    """Write down how the run ended, and say so; returns the exit status."""
    if cut := [state for state in states if state.ended == "time_limit" and _is_short(state)]:
        return _interrupted(job, _cut_words(cut))
    failed = [s for s in states if s.failed and s.ended != "skipped"]
    reason: str | None = None
    if failed:
        reason = "; ".join(f"{s.series.point_id}: {s.failed} failed ({s.reason})" for s in failed[:10])
    elif not any(state.measured for state in states):
        reason = "nothing could be measured: " + "; ".join(f"{s.series.point_id}: {s.reason}" for s in states[:10])
    if reason is not None:
        _say(reason)
    status = 0 if reason is None else 1
    job.outcome.end(State.DONE if status == 0 else State.FAILED, exit_status=status, reason=reason)
    _say(f"results are in {_shown(job.directory)}")
    return status


def _interrupted(job: Job, reason: str) -> int:
    job.outcome.end(State.INTERRUPTED, exit_status=INTERRUPTED, reason=reason)
    _say(reason)
    return INTERRUPTED


def _is_short(state: SeriesState) -> bool:
    """Whether a series that met the time limit lacks runs: its stopping rule is unmet, or not each request was run."""
    return state.series.stopping is not None or state.measured + state.failed < state.series.expected


def _cut_words(cut: Sequence[SeriesState]) -> str:
    """Which series the time limit cut short, and how far they are."""
    named = [
        f"{s.series.point_id} ({s.measured} measured{'' if s.series.stopping else f' of {s.series.expected}'})"
        for s in cut[:10]
    ]
    more = f" and {len(cut) - 10} more" if len(cut) > 10 else ""
    return (
        f"measurement.time_limit_s is over, not finished: {', '.join(named)}{more}; "
        "what was measured is reported, run the same command again to continue"
    )


def _shown(directory: Path) -> str:
    try:
        return str(directory.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(directory)


def _say(message: str) -> None:
    sys.stderr.write(f"vlmbench: {message}\n")
