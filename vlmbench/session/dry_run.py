"""``dry_run=true``: what every point will cost, with no weights and no accelerator; nothing is measured."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmbench.cost.prediction import Prediction, wall_s
from vlmbench.data.opening import opened
from vlmbench.errors import ConfigError, SampleError, UnreachablePointError
from vlmbench.machine.peaks import PeaksAnswer, resolve_peaks, table_peaks, unknown_device
from vlmbench.models.vision.candidates import seen_tokens
from vlmbench.records.files import write_json
from vlmbench.runner.guards import beyond_positions, positions_of
from vlmbench.runner.plan import Series, no_slope
from vlmbench.text import shown

if TYPE_CHECKING:
    from vlmbench.cost.planning import Planner
    from vlmbench.session.job import Job


_REQUESTS_PER_SERIES = 20  # of a data set: enough for a median and the largest
_HOST_MS = 30.0  # preparing an image, writing a row
_WARMUP_RUNS = 3
_SHOWN = 60
DRY_RUN_FILE = "dry_run.json"


@dataclass(frozen=True, kw_only=True)
class Line:
    """The prediction of one series.

    Args:
        series: what is predicted.
        predictions: of some of its requests, all of them when it has few.
        reason: why there are none.
        runs: how many runs of it are expected, bare and warm-up runs included.
    """

    series: Series
    predictions: tuple[Prediction, ...]
    reason: str | None
    runs: int

    @property
    def largest(self) -> Prediction | None:
        """The request that needs most memory."""
        return max(self.predictions, key=lambda p: p.memory.total, default=None)

    @property
    def fits(self) -> bool:
        """Whether nothing of it is known not to fit in memory."""
        return self.largest is not None and self.largest.fits is not False

    def wall_s(self) -> float | None:
        """Expected time of all its runs, s; 0 where nothing can run."""
        if not self.predictions:
            return 0.0
        each = wall_s(self.predictions, runs_per_point=1, extra_ms_per_run=_HOST_MS)
        return None if each is None else each / len(self.predictions) * self.runs

    def row(self) -> dict[str, Any]:
        """For ``dry_run.json``."""
        largest = self.largest
        base = {"point_id": self.series.point_id, "axes": dict(self.series.axes), "reason": self.reason}
        if largest is None:
            return base
        floors = [p.floor_ms for p in self.predictions if p.floor_ms is not None]
        expected = [p.expected_ms for p in self.predictions if p.expected_ms is not None]
        return {
            **base,
            **largest.columns(),
            "requests_predicted": len(self.predictions),
            "floor_ms_median": statistics.median(floors) if floors else None,
            "expected_ms_median": statistics.median(expected) if expected else None,
            "expected_runs": self.runs,
            "expected_wall_s": self.wall_s(),
        }


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The predictions of all points: of which model, in which dtype, with which device's peaks."""

    model: str
    dtype: str
    lines: tuple[Line, ...]
    peaks: PeaksAnswer


def dry_run(job: Job) -> int:
    """Print and write the prediction of every point; returns the exit status.

    Raises:
        ConfigError: the target device is not known, or as of :func:`vlmbench.session.series.make_series`.
    """
    found = predict(job)
    _show(job, found.model, found.dtype, found.lines, found.peaks)
    return 0


def predict(job: Job) -> Predicted:
    """Predict every point and write ``dry_run.json``.

    Raises:
        ConfigError: as of :func:`dry_run`.
    """
    from vlmbench.session.series import make_series

    with _uncollected():
        from vlmbench.cost.planning import Planner
        from vlmbench.models.loading import weightless

        dtype, peaks, memory = _device(job)
        model = weightless(job.build("model"), dtype=dtype)
        planner = Planner(model, peaks=peaks, dtype=dtype, memory_bytes=memory)
    series = make_series(job, opened(job.build("dataset")), model)
    if job.settings.workload == "controlled" and (why := no_slope(model, series)):
        sys.stderr.write(f"vlmbench: warning: {why}\n")
    lines = [_line(planner, one) for one in series]
    name = str(model.facts["name"])
    write_json(
        job.directory / DRY_RUN_FILE,
        {
            "schema_version": 1,
            "model": name,
            "dtype": dtype,
            "device": job.settings.target_device or "this machine",
            "peaks": None if peaks.peaks is None else vars(peaks.peaks),
            "notes": sorted({note for line in lines for p in line.predictions for note in p.notes}),
            "points": [line.row() for line in lines],
        },
    )
    return Predicted(model=name, dtype=dtype, lines=tuple(lines), peaks=peaks)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage: imports, shapes and a vocabulary make a million objects at once, none of them garbage.

    Looking through them over and over is a quarter of a dry run's time, so they are kept out of later searches too,
    until the next dry run of this process (a multirun's) begins.
    """
    was_on = gc.isenabled()
    gc.unfreeze()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def _line(planner: Planner, series: Series) -> Line:
    count = min(series.size, _REQUESTS_PER_SERIES)
    predictions, reason = [], None
    for number in range(count):
        try:
            request = series.request(number * series.size // count)
            predictions.append(planner.plan(request))
            longer = beyond_positions(positions_of(planner.model), planner.counts(request), request)
            reason = longer or reason
        except (UnreachablePointError, SampleError) as error:
            reason = str(error)
    bare = series.expected // series.bare_every if series.bare_every else 0
    return Line(
        series=series, predictions=tuple(predictions), reason=reason, runs=series.expected + bare + _WARMUP_RUNS
    )


def _device(job: Job) -> tuple[str, PeaksAnswer, int | None]:
    """dtype, peaks and memory of the device that the prediction is for."""
    import torch

    from vlmbench.models.placement import resolve_device, resolve_dtype

    settings = job.settings
    target = settings.target_device
    if target is not None:
        dtype = "bfloat16" if settings.runtime.dtype == "auto" else settings.runtime.dtype
        if words := unknown_device(target):
            raise ConfigError(words)
        answer = table_peaks(target, dtype)
        memory = settings.target_memory_gib
        return dtype, answer, None if memory is None else int(memory * 2**30)
    device = resolve_device(settings.runtime.device)
    dtype = str(resolve_dtype(settings.runtime.dtype, device)).removeprefix("torch.")
    free = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else _host_memory()
    return dtype, resolve_peaks(settings.device_peaks, device, dtype), free


def _host_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _show(job: Job, name: str, dtype: str, lines: Sequence[Line], peaks: PeaksAnswer) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Prediction · {name} · {dtype} · {job.settings.target_device or 'this machine'}",
        caption="floor: the least time of this device; expected: with the host's launches, an estimate for time limits",
        title_justify="left",
        caption_justify="left",
        box=None,
    )
    for column in ("point", "vision", "input", "output", "batch", "TFLOP", "memory", "floor", "expected", "wall"):
        table.add_column(column, justify="left" if column == "point" else "right", no_wrap=column != "point")
    for line in lines[:_SHOWN]:
        table.add_row(*_cells(line))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    path = shown(job.directory / DRY_RUN_FILE)
    more = [f"… and {len(lines) - _SHOWN} more points in {path}"] if len(lines) > _SHOWN else []
    told = [*more, *_beyond(lines), *_skipped(lines), *_totals(lines), *_no_times(job, peaks)]
    for text in (*told, f"Written to {path}; nothing was measured."):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _beyond(lines: Sequence[Line]) -> list[str]:
    """The points that are predicted although a run would not measure them as they are, each with its reason."""
    noted = [line for line in lines if line.largest is not None and line.reason]
    told = [f"Note: {line.series.point_id}: {line.reason}" for line in noted[:_SHOWN]]
    return [*told, f"… and {len(noted) - _SHOWN} more notes"] if len(noted) > _SHOWN else told


def _skipped(lines: Sequence[Line]) -> list[str]:
    """The points that a run would skip, each with its reason."""
    skipped = [line for line in lines if line.largest is None]
    told = [_skip_words(line) for line in skipped[:_SHOWN]]
    return [*told, f"… and {len(skipped) - _SHOWN} more skipped"] if len(skipped) > _SHOWN else told


def _skip_words(line: Line) -> str:
    point, reason = line.series.point_id, str(line.reason)
    return f"Skipped: {reason}" if reason.startswith(f"{point} ") else f"Skipped: {point}: {reason}"


def _totals(lines: Sequence[Line]) -> list[str]:
    """Which points do not fit, and how long the others take."""
    told = []
    possible = [line for line in lines if line.largest is not None]
    fitting = [line for line in possible if line.fits]
    if len(fitting) < len(possible):
        told.append(f"{len(possible) - len(fitting)} of {len(lines)} points do not fit in memory.")
    walls = [wall for line in fitting if (wall := line.wall_s()) is not None]
    if walls and len(walls) == len(fitting):
        which = "All points" if len(fitting) == len(lines) else f"{len(fitting)} of {len(lines)} points"
        told.append(f"{which}: about {_duration(sum(walls))} without loading.")
    return told


def _no_times(job: Job, peaks: PeaksAnswer) -> list[str]:
    """Why there are no times, and how to get some."""
    if peaks.peaks is not None:
        return []
    if job.settings.target_device is not None:
        return [f"No times are predicted: {peaks.reason}."]
    return [
        f"No times are predicted: {peaks.reason}.",
        "device_peaks=measured measures this machine; target_device=NAME predicts for another.",
    ]


def _cells(line: Line) -> list[str]:
    largest = line.largest
    if largest is None:
        return [line.series.point_id, *["–"] * 8, "skipped"]
    row, wall = line.row(), line.wall_s()
    return [
        line.series.point_id,
        str(seen_tokens(largest.counts)),
        str(largest.counts.num_input_tokens),
        str(largest.output_tokens),
        str(largest.batch_size),
        f"{largest.flops.total / 1e12:.3g}",
        f"{largest.memory.total / 2**30:.2f} GiB{'' if line.fits else ' does not fit'}",
        "–" if row["floor_ms_median"] is None else f"{row['floor_ms_median']:.3g} ms",
        "–" if row["expected_ms_median"] is None else f"{row['expected_ms_median']:.4g} ms",
        "–" if wall is None or not line.fits else _duration(wall),
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
