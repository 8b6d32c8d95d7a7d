"""``experiment=budget``: which settings answer in time, and whether they still do when they are measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.analysis.budget import (
    Budget,
    Promise,
    Setting,
    checked,
    refuse_if_nothing_fits,
    refuse_machines,
    settings_of,
    solve,
)
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.quantiles import needed
from vlmbench.analysis.results import ResultSet, read_results
from vlmbench.errors import BAD_INPUT, FAILED, INTERRUPTED, OK, ConfigError, InputError
from vlmbench.models.vision.candidates import seen_tokens
from vlmbench.records.lock import RunLock
from vlmbench.records.outcome import State
from vlmbench.records.run_directory import overrides_of
from vlmbench.report.budget import headline, text, write
from vlmbench.session.dry_run import predict
from vlmbench.session.ending import to_continue
from vlmbench.session.profile import load_model, profile
from vlmbench.text import count, note, plain, say, show, shown

if TYPE_CHECKING:
    from vlmbench.models.protocol import VisionLanguageModel
    from vlmbench.session.job import Job

SWEEP, CHECK = "sweep", "check"
_MOST_CHECKED = 4
# Of the command that measured a run, what says where it was put or how it was started.
_OF_THE_RUN = ("output_dir", "runs", "objective", "progress", "detach", "break_lock", "task")


class _InterruptedError(Exception):
    """A part was cut short; the budget is to be continued."""


def budget(job: Job) -> int:
    """Find which settings fit, measure the chosen ones again, and say what became of the promises.

    Returns:
        0: something fits and no promise is broken; 1: a promise is broken, or points failed; 2: it cannot be told
        whether they are kept; 130: interrupted, to be continued by the same command.

    Raises:
        ConfigError: no budget was given.
        InputError: nothing fits, the percentile cannot be told, or the runs are of different machines.
    """
    settings = job.settings
    if settings.latency_ms is None:
        raise ConfigError(
            "experiment=budget needs latency_ms=…: what a request may take, in ms\n"
            "Beside it: percentile=95 (of requests), metric=T_request (which time), runs=DIR (measured sweeps)."
        )
    job.directory.mkdir(parents=True, exist_ok=True)
    with RunLock(job.directory, break_lock=settings.break_lock):
        job.outcome.begin(points_total=2)
        again = to_continue(job.directory, settings.output_dir)
        try:
            status, found, provenance = _solved(job, again)
        except _InterruptedError as stop:
            job.outcome.end(State.INTERRUPTED, exit_status=INTERRUPTED, reason=f"interrupted in {stop}; {again}")
            return INTERRUPTED
        files = write(found, job.directory, provenance)
        show(text(found))
        figures = f" and {shown(job.directory / 'figures')}" if files[3:] else ", no figure: no setting could be told"
        say(f"written: {shown(files[0])}, .md, .tex{figures}")
        refuse_if_nothing_fits(found)  # only now: what was measured has its table and its figure
        if status == OK and found.checks:
            status = _status(found)
        reason = None if status == OK else headline(found)
        job.outcome.progress(points_done=2)
        job.outcome.end(State.FAILED if status else State.DONE, exit_status=status, reason=reason)
    return status


def _status(found: Budget) -> int:
    promises = [check.promise for check in found.checks]
    if Promise.BROKEN in promises:
        return FAILED
    return OK if Promise.KEPT in promises else BAD_INPUT


def _solved(job: Job, again: str) -> tuple[int, Budget, Mapping[str, Any]]:
    """Exit status of what was measured, the budget with its checks, and the provenance of its runs."""
    settings = job.settings
    if settings.dry_run:
        return OK, _predicted(job), {}
    if settings.runs:
        runs = read_results([Path(name.strip()) for name in settings.runs.split(",") if name.strip()])
        if not settings.allow_unlike:
            refuse_machines(runs)
        found = _solve(job, runs)
        checks = _check_runs(job, found, runs, again) if settings.confirm and found.chosen else found
        return OK, checks, runs[0].provenance
    _check_measurable(job)
    part = job.part(SWEEP, ["task=profile"])
    model = load_model(part)
    status = _measured(part, model, again)
    job.outcome.progress(points_done=1)
    runs = read_results(part.directory)
    found = _solve(job, runs)
    if settings.confirm and found.chosen:
        chosen, notes = _few(found.chosen)
        check = job.part(CHECK, ["task=profile"])
        status = max(status, _measured(check, model, again, [one.point for one in chosen]))
        found = checked(found, _again(job, check.directory, chosen), notes)
    return status, found, runs[0].provenance


def _solve(job: Job, runs: Sequence[ResultSet]) -> Budget:
    settings = job.settings
    assert settings.latency_ms is not None
    made = settings_of(runs, metric=settings.metric, percentile=settings.percentile)
    if not made:
        raise InputError(
            f"these runs hold no measured {settings.metric}: {', '.join(shown(run.path) for run in runs[:3])}\n"
            "Name runs of phase1, phase2, phase3 or interventions, or another time with metric=…."
        )
    notes = [words for run in runs for words in run.notes]
    limit, metric = settings.latency_ms, settings.metric
    return solve(made, limit_ms=limit, percentile=settings.percentile, metric=metric, notes=notes)


def _check_measurable(job: Job) -> None:
    """Refuse a percentile for which each point will have too few runs, before anything is measured.

    Raises:
        ConfigError: such a one.
    """
    percentile = job.settings.percentile
    most = job.build("measurement.stopping").max_samples
    if (least := needed(percentile / 100)) > most:
        raise ConfigError(
            f"P{plain(percentile)} needs {least:,} independent runs of each setting, and at most {most:,} are made\n"
            f"Use measurement.stopping.max_samples={2 * least} measurement.stopping.min_samples={2 * least}, "
            "or ask for less: percentile=90."
        )


def _measured(part: Job, model: VisionLanguageModel | None, again: str, points: Sequence[str] | None = None) -> int:
    status = profile(part, model, again=again, points=points)
    if status == INTERRUPTED:
        raise _InterruptedError(part.directory.name)
    return status


def _few(chosen: Sequence[Setting]) -> tuple[list[Setting], list[str]]:
    """Those that are measured again, the ones nearest to the budget: there a promise is broken first."""
    kept = list(chosen)[-_MOST_CHECKED:]
    left = len(chosen) - len(kept)
    return kept, [f"{count(left, 'chosen setting')} further from the budget not measured again."] if left else []


def _again(job: Job, directory: Path, chosen: Sequence[Setting]) -> dict[tuple[str, str], Estimate]:
    """Key of each chosen setting to its percentile in the runs made for the check."""
    made = settings_of(read_results(directory), metric=job.settings.metric, percentile=job.settings.percentile)
    by_point = {one.point: one.latency for one in made}
    return {one.key: by_point[one.point] for one in chosen if one.point in by_point}


def _check_runs(job: Job, found: Budget, runs: Sequence[ResultSet], again: str) -> Budget:
    """Measure the chosen settings again as their runs were measured: one loaded model a configuration, interleaved."""
    chosen, notes = _few(found.chosen)
    measured: dict[tuple[str, str], Estimate] = {}
    models: dict[str, VisionLanguageModel] = {}
    for number, run in enumerate(runs):
        mine = [one for one in chosen if one.run == run.path]
        if not mine:
            continue
        made = _as_measured(run.path)
        if made is None:
            notes.append(
                f"Not measured again: {shown(run.path)} does not say how it was measured (.hydra/overrides.yaml)."
            )
            continue
        part = job.part(CHECK if len(runs) == 1 else f"{CHECK}_{number}", made)
        if why := _unlike(part, run):
            notes.append(f"Not measured again: {shown(run.path)} is of {why}.")
            continue
        kind = repr((part.config["model"], part.config["runtime"]))
        if kind not in models:
            models[kind] = load_model(part)
        note(f"measuring {count(len(mine), 'chosen setting')} of {shown(run.path)} again")
        _measured(part, models[kind], again, [one.point for one in mine])
        measured |= _again(job, part.directory, mine)
    return checked(found, measured, notes)


def _as_measured(run: Path) -> list[str] | None:
    """The choices that a run was made with; None where it does not say."""
    listed = overrides_of(run)
    if listed is None:
        return None
    kept = [
        one for one in listed if not one.startswith("hydra") and one.lstrip("+~").partition("=")[0] not in _OF_THE_RUN
    ]
    if not any(one.startswith("experiment=") for one in kept):
        kept.insert(0, "experiment=phase1")
    return [*kept, "report=none"]


def _unlike(part: Job, run: ResultSet) -> str:
    """The device that a run is of, where it is not the one here; empty where it is, or is not known."""
    from vlmbench.machine.host import device_facts
    from vlmbench.models.placement import resolve_device

    here = device_facts(str(resolve_device(part.settings.runtime.device)))
    there = run.provenance.get("device") or {}
    if there.get("name") in (None, here.get("name")) and there.get("type") in (None, here.get("type")):
        return ""
    return f"{there.get('name') or there.get('type')}, and this machine has {here.get('name') or here.get('type')}"


def _predicted(job: Job) -> Budget:
    """The budget from predictions of every point: of ``generate()`` alone, typical, not measured."""
    settings = job.settings
    assert settings.latency_ms is not None
    found = predict(job)
    made = []
    for line in found.lines:
        row, largest = line.row(), line.largest
        if largest is None:
            continue
        expected = row["expected_ms_median"]
        amounts = {
            "vision tokens": float(seen_tokens(largest.counts)),
            "output tokens": float(largest.output_tokens),
            "batch": float(largest.batch_size),
        }
        made.append(
            Setting(
                run=job.directory,
                point=line.series.point_id,
                model=found.model,
                runtime=settings.runtime.name,
                axes=dict(line.series.axes),
                amounts={name: value for name, value in amounts.items() if value},
                latency=Estimate(value=expected, n=0),
                predicted=True,
                note="" if line.fits else "does not fit in memory",
            )
        )
    if found.peaks.peaks is None or not any(one.latency.value is not None for one in made):
        raise InputError(
            f"no times can be predicted: {found.peaks.reason or 'no point can be reached'}\n"
            "device_peaks=measured measures this machine; target_device=NAME predicts for another."
        )
    notes = ["Predicted, not measured: without dry_run=true the settings are measured and the promise is checked."]
    return solve(made, limit_ms=settings.latency_ms, percentile=settings.percentile, metric="T_total", notes=notes)
