"""What controlled sweeps found: summary, phase file, figures and words; phases 2 and 3 share it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vlmbench.analysis import frames
from vlmbench.analysis.breakdown import memory_by_stage
from vlmbench.analysis.drift import aa_summary
from vlmbench.analysis.energy import energy_summary
from vlmbench.analysis.floors import peaks_of, roofline_table
from vlmbench.analysis.flops_latency import FlopsLatency, flops_latency
from vlmbench.analysis.frames import load_runs, whole_metric
from vlmbench.analysis.latency_fit import fit_latency_model
from vlmbench.analysis.latency_model import LatencyModel
from vlmbench.analysis.launch_bound import launch_by_point
from vlmbench.analysis.overhead import overhead_summary
from vlmbench.analysis.precision import precision_summary
from vlmbench.analysis.scaling import Scaling, fit_scaling, times_of
from vlmbench.analysis.scope import latency_scope
from vlmbench.analysis.slices import KINDS, MIN_POINTS, X_LABELS, slices
from vlmbench.errors import InputError
from vlmbench.figures import roofline, scaling
from vlmbench.figures.launch_bound import launch_bound_figure
from vlmbench.figures.panels import LABELS, stage_label
from vlmbench.figures.theme import save, theme
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.records.files import strict, write_json
from vlmbench.report.narrative.launch_bound import launch_bound_with_sentences
from vlmbench.report.narrative.scaling import as_text
from vlmbench.report.narrative.serving import swept_load
from vlmbench.report.phase1_summary import device_type, provenance_of, read_points, records, run_counts
from vlmbench.report.phase_file import Answer, Written, run_rows, write_phase_file
from vlmbench.report.serving_summary import read_serving, serving_figures, summarise_serving
from vlmbench.schema import SCHEMA_VERSION, TOTAL_PARTS

EXPERIMENTS: Mapping[str, str] = {"phase2": "phase2_scaling", "phase3": "exp4b_language_tokens"}
"""Name of the experiment, and of the phase file, of each kind of report: time against vision, prompt tokens, images or
batch, and FLOPs against latency (experiments 2 and 4A); time against forced output lengths (experiment 4B)."""
SUMMARY_FILE, MODEL_FILE = "summary.json", "latency_model.json"
_MAIN = ("T_total", "T_LLM_prefill", "T_LLM_decode")
_OF_A_SERVER = ("T_request", "TTFT")  # the main times where the stages are not seen
_OVERVIEW: Mapping[str, tuple[str, ...]] = {
    "vision": ("T_total", "T_LLM_prefill"),
    "prompt": ("T_total", "T_LLM_prefill"),
    "output": ("T_total", "T_LLM_decode"),
    "turns": ("T_total", "T_LLM_prefill"),
    "cache": ("T_total", "T_LLM_decode"),
    "batch": ("T_total", "T_LLM_decode"),
}
_HEADLINE = (
    "slope_ms", "slope_low", "slope_high", "slope_robust_ms", "slope_robust_low", "slope_robust_high", "missed_words",
    "effective_rows", "r2", "held_out_error", "shape", "slope_unflagged_ms", "slope_unflagged_low",
    "slope_unflagged_high", "unflagged_words",
)  # fmt: skip
_NAMES: Mapping[str, str] = {
    "vision": "vision_tokens",
    "prompt": "prompt_tokens",
    "output": "output_tokens",
    "turns": "turns",
    "cache": "kv_length",
    "batch": "batch_size",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """Everything that was found in the rows of one run."""

    frame: pd.DataFrame
    provenance: Mapping[str, Any]
    scalings: Sequence[Scaling]
    flops: FlopsLatency | None
    aa_check: Mapping[str, Any] | None
    model: LatencyModel | None
    model_reason: str
    peaks: DevicePeaks | None
    roofline: pd.DataFrame


def find(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Findings:
    """Fit everything that the rows allow."""
    model, reason = None, ""
    try:
        model = fit_latency_model(frame, provenance=_short(provenance))
    except InputError as error:
        reason = str(error)
    peaks = peaks_of(provenance, frame)
    return Findings(
        frame=frame,
        provenance=provenance,
        scalings=_fits(frame),
        flops=flops_latency(frame),
        aa_check=aa_summary(frame, whole_metric(frame)),
        model=model,
        model_reason=reason,
        peaks=peaks,
        roofline=roofline_table(frame, peaks),
    )


def _fits(frame: pd.DataFrame) -> list[Scaling]:
    """All stages in the slice with most rows of each kind; the main ones in the other slices of a grid."""
    found = []
    times = times_of(frame)
    main = _MAIN if times[0] == _MAIN[0] else _OF_A_SERVER
    for kind in KINDS.values():
        for position, part in enumerate(slices(frame, kind)):
            fits = (fit_scaling(part, time) for time in (times if position == 0 else main))
            found += [fit for fit in fits if fit is not None]
    return found


def _short(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a model file needs to say where it holds."""
    return {k: provenance[k] for k in ("model", "device", "runtime", "fingerprint") if k in provenance}


def write_scaling(directory: Path | str, to: Path | None = None, *, experiment: str, quick: bool = False) -> Written:
    """Write ``summary.json``, ``<experiment>.json``, ``latency_model.json`` and ``figures/`` of a run directory.

    Each file is written whole, then renamed. Figures that a run has no data for are left out.

    Args:
        directory: where the rows lie.
        to: where to write; beside the rows if None.
        experiment: name of the experiment, and of the phase file.
        quick: ``summary.json`` and the latency model alone, for a run that has no time for more.

    Raises:
        InputError: the directory holds no records, or broken ones.
        MeasurementError: a file cannot be written.
    """
    directory = Path(directory)
    to = to or directory
    found, said = _answer(directory, experiment)
    files = [write_json(to / SUMMARY_FILE, said.summary)]
    if found.model is not None:
        files.append(found.model.save(to / MODEL_FILE))
    if not quick:
        files.append(
            write_phase_file(
                to / f"{experiment}.json",
                experiment=experiment,
                provenance=found.provenance,
                summary=said.summary,
                results=run_rows(directory),
            )
        )
        for name, figure in said.draw():
            files += save(figure, to / "figures", name)
    return Written(summary=said.summary, files=tuple(files), text=said.words(None))


def answer(directory: Path, experiment: str) -> Answer:
    """Say what the rows of a run directory hold; nothing is written.

    Args:
        experiment: name of the experiment, and of the phase file.

    Raises:
        InputError: the directory holds no records, or broken ones.
    """
    return _answer(directory, experiment)[1]


def _answer(directory: Path, experiment: str) -> tuple[Findings, Answer]:
    frame = load_runs(directory)
    if "T_total" not in frame:  # a server's rows, or nothing could be measured; the report says why
        frame["T_total"] = math.nan
    found = find(frame, provenance_of(directory))
    summary = summarise(found, experiment, read_points(directory))
    server = read_serving(directory, found.provenance)
    if server is not None:
        summary = {**summary, "serving": summarise_serving(server)}
    loads = server is not None and swept_load(summary["serving"])
    return found, Answer(
        summary=summary,
        draw=lambda: chain(figures(found), serving_figures(server) if server and loads else ()),
        words=lambda _: as_text(summary, found.provenance),
    )


def summarise(found: Findings, experiment: str, points: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The findings as plain data, the content of ``summary.json``.

    Returns:
        ``headline`` (kind → ms per token of ``T_total``, with and without rows of work done for the first time),
        ``scaling`` (one entry a fit), ``flops_latency``,
        ``roofline``, ``launch_bound`` (share of each stage that the device waits for the host; also by point),
        ``latency_model`` (held-out error), ``aa_check``, ``instrument_overhead``,
        ``memory_by_stage`` (peaks, from runs of their own on CUDA), ``energy`` (of each point; None where it was not
        measured), ``runs`` (status counts, failures), ``stopping``, ``precision`` (how well each point's median is
        known).
    """
    frame = found.frame
    totals = [s for s in found.scalings if s.stage == whole_metric(frame)]
    headline: dict[str, Any] = {}
    for fit in totals:
        row = fit.as_row()
        headline.setdefault(
            fit.slice.kind.name,
            {
                **{name: row[name] for name in _HEADLINE},
                "range": [fit.low, fit.high],
                "unit": f"ms per {fit.slice.kind.unit}",
            },
        )
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "experiment_name": experiment,
        "scope": latency_scope(frame, found.provenance),
        "headline": headline,
        "runs": run_counts(frame),
        "scaling": [s.as_row() for s in found.scalings],
        "too_few_points": _too_few(frame, found.scalings),
        "flops_latency": None if found.flops is None else found.flops.as_dict(),
        "roofline": records(found.roofline),
        "launch_bound": launch_bound_with_sentences(frame, device_type(found.provenance)),
        "launch_bound_by_point": records(launch_by_point(frame)) if "busy_total" in frame else [],
        "latency_model": _model_summary(found),
        "aa_check": found.aa_check,
        "instrument_overhead": overhead_summary(frame),
        "memory_by_stage": records(memory_by_stage(frame)),
        "flags": frames.as_counts(frames.flag_counts(frames.measured(frame)), "flag"),
        "energy": energy_summary(frame, found.provenance, pooled=False),
        "precision": precision_summary(frame),
        "stopping": list(points),
    }
    plain: dict[str, Any] = strict(summary)
    return plain


def _model_summary(found: Findings) -> dict[str, Any]:
    if found.model is None:
        return {"file": None, "reason": found.model_reason}
    return {"file": MODEL_FILE, "held_out_error": found.model.held_out, "ranges": found.model.ranges}


def _too_few(frame: pd.DataFrame, fits: Sequence[Scaling]) -> dict[str, int]:
    """Kinds that were swept, but at fewer than three counts: how many."""
    fitted = {fit.slice.kind.name for fit in fits}
    measured = frames.measured(frame)
    counts: dict[str, int] = {}
    for kind in KINDS.values():
        axes = [c for c in measured if str(c).startswith("axis_") and kind.turned_by(str(c).removeprefix("axis_"))]
        swept = measured[measured[axes].notna().any(axis=1)] if axes else measured.iloc[:0]
        seen = max((int(swept[c].nunique()) for c in kind.counts(swept)), default=0)
        if len(swept) and kind.name not in fitted and seen < MIN_POINTS:
            counts[kind.name] = seen
    return counts


def figures(found: Findings) -> Iterator[tuple[str, Figure]]:
    """(file name, figure) of all figures that the run has data for."""
    with theme():
        for kind, name in _NAMES.items():
            overview = scaling.select(found.scalings, kind, _OVERVIEW[kind]) or scaling.select(
                found.scalings, kind, _OF_A_SERVER
            )
            if not overview:
                continue
            label = X_LABELS.get(overview[0].slice.x, name.replace("_", " "))
            names = (stage_label(s.stage) for s in overview)
            against = " and ".join("total" if text == LABELS["T_total"] else text for text in names)
            title = f"{label.capitalize()} against {against}"
            columns = min(len(overview), 2)
            yield f"{name}_latency", scaling.scaling_figure(overview, found.provenance, title=title, columns=columns)
            parts = scaling.select(found.scalings, kind, TOTAL_PARTS)
            if len(parts) > 1:
                title = f"{label.capitalize()} against each component"
                yield f"{name}_components", scaling.scaling_figure(parts, found.provenance, title=title, columns=3)
                title = f"What the total is made of, by {label}"
                yield f"{name}_composition", scaling.composition_figure(parts, found.provenance, title=title)
        if found.flops is not None:
            yield "flops_latency", scaling.flops_latency_figure(found.flops, found.provenance)
        waiting = launch_bound_figure(found.frame, found.provenance)
        if waiting is not None:
            yield "launch_bound", waiting
        if len(found.roofline):
            yield "roofline", roofline.roofline_figure(found.roofline, found.provenance, found.peaks)
