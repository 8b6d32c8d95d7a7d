"""Phase 1: from a run directory to summary, phase file, figures and words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure

from vlmbench.analysis import frames
from vlmbench.analysis.floors import peaks_of
from vlmbench.figures import components, latency, stage_bars, workload
from vlmbench.figures.launch_bound import launch_bound_figure
from vlmbench.figures.request_timeline import request_timeline
from vlmbench.figures.roofline import device_use_figure
from vlmbench.figures.run_lane import run_lane_figure
from vlmbench.figures.theme import save
from vlmbench.records.files import write_json
from vlmbench.report import terminal_tables
from vlmbench.report.exports import write_exports
from vlmbench.report.phase1_summary import EXPERIMENT, Run, read_run, summarise_run
from vlmbench.report.phase_file import Answer, Written, run_rows, write_phase_file
from vlmbench.report.request_trace import write_request_traces
from vlmbench.report.serving_summary import read_serving, serving_figures, summarise_serving
from vlmbench.text import note

PHASE_FILE = f"{EXPERIMENT}.json"


def write_phase1(directory: Path | str, to: Path | None = None, *, quick: bool = False) -> Written:
    """Write ``summary.json``, ``phase1_dataset_profiling.json`` and ``figures/`` of a run directory.

    Each file is written whole, then renamed. Figures that a run has no data for are left out.

    Args:
        directory: where the rows lie.
        to: where to write; beside the rows if None.
        quick: ``summary.json`` alone, for a run that has no time for more.

    Raises:
        InputError: the directory holds no records, or broken ones.
        MeasurementError: a file cannot be written.
    """
    directory = Path(directory)
    to = to or directory
    run = read_run(directory)
    found = _answer(directory, run)
    summary = found.summary
    files = [write_json(to / "summary.json", summary)]
    if not quick:
        files.append(
            write_phase_file(
                to / PHASE_FILE,
                experiment=EXPERIMENT,
                provenance=run.provenance,
                summary=summary,
                results=run_rows(directory),
            )
        )
        files += write_exports(to, summary, run.provenance)
        files += write_request_traces(directory, to, run.frame, summary)
        for name, figure in found.draw():
            files += save(figure, to / "figures", name)
    return Written(summary=summary, files=tuple(files), text=found.words(None))


def answer(directory: Path) -> Answer:
    """Say what the rows of a run directory hold; nothing is written.

    Raises:
        InputError: the directory holds no records, or broken ones.
    """
    return _answer(directory, read_run(directory))


def _answer(directory: Path, run: Run) -> Answer:
    summary = summarise_run(run)
    server = read_serving(directory, run.provenance)
    if server is not None:
        summary = {**summary, "serving": summarise_serving(server)}
    several = server is not None and len(server.table) > 1
    return Answer(
        summary=summary,
        draw=lambda: chain(figures(run, loads=several), serving_figures(server) if server else ()),
        words=lambda width: terminal_tables.as_text(terminal_tables.phase1(summary, run.provenance), width),
    )


_POOLED = frozenset(
    ("latency_distribution", "request_distribution", "ttft_itl", "latency_vs_tokens", "variance_split", "over_time")
)
_OF_PARTS = frozenset(("components_pie", "components_bars", "request_timeline", "stage_distributions"))


def figures(run: Run, *, loads: bool = False) -> Iterator[tuple[str, Figure]]:
    """(file name, figure) of all figures that the run has data for, drawn one at a time.

    Args:
        run: the rows with all that belongs to them.
        loads: whether they are of several loads, whose requests are no sample of one distribution: figures that would
            pool them are left out.
    """
    frame, provenance = run.frame, run.provenance
    metric = frames.whole_metric(frame)
    drawings: dict[str, Callable[..., Figure | None]] = {
        "latency_distribution": latency.latency_distribution,
        "request_distribution": partial(latency.latency_distribution, metric="T_request"),
        "ttft_itl": lambda frame, provenance: latency.ttft_and_itl(frame, run.gaps, provenance),
        "latency_vs_tokens": partial(workload.latency_vs_tokens, metric=metric),
        "variance_split": partial(workload.variance_bars, metric=metric),
        "over_time": partial(workload.over_time, metric=metric),
        "components_pie": components.component_pies,
        "components_bars": stage_bars.component_bars,
        "launch_bound": launch_bound_figure,
        "request_timeline": request_timeline,
        "device_use": partial(device_use_figure, peaks=peaks_of(provenance, frame)),
        "run_lane": run_lane_figure,
        "stage_distributions": components.stage_distributions,
    }
    missing = []
    for name, draw in drawings.items():
        if loads and name in _POOLED:
            continue
        figure = draw(frame, provenance)
        if figure is not None:
            yield name, figure
        elif name in _OF_PARTS:
            missing.append(name)
    if missing and (frames.values(frames.workload(frame), metric) == 0).all():
        note(f"all times of {metric} are 0, which has no parts; not drawn: {', '.join(missing)}.")
