"""Experiment 5: what tokens cost against each other, from the results of phases 2 and 3."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vlmbench.analysis.flops_latency import FlopsLatency, flops_latency
from vlmbench.analysis.latency_fit import fit_latency_model
from vlmbench.analysis.latency_model import LatencyModel
from vlmbench.analysis.results import merge_like, pair, read_results, rows_of_both
from vlmbench.analysis.token_costs import Comparison, compare
from vlmbench.errors import InputError
from vlmbench.figures.scaling import flops_latency_figure
from vlmbench.figures.theme import caption, model_name, save, theme
from vlmbench.figures.token_costs import break_even_figure, models_figure, token_costs_figure
from vlmbench.records.files import read_json, strict, write_json
from vlmbench.report import write_pages
from vlmbench.report.narrative.scaling import comparison_answers
from vlmbench.report.phase_file import Written, json_row, write_phase_file
from vlmbench.report.scaling import MODEL_FILE, SUMMARY_FILE
from vlmbench.schema import SCHEMA_VERSION

EXPERIMENT = "exp5_token_comparison"
PHASE_FILE = f"{EXPERIMENT}.json"


def write_exp5(
    phase2: Path | str | Sequence[Path | str],
    phase3: Path | str,
    directory: Path | str,
    *,
    allow_unlike: bool = False,
    pages: bool = True,
) -> Written:
    """Compare token costs and write ``exp5_token_comparison.json``, ``summary.json``, models, figures and pages.

    Args:
        phase2: results with vision (and prompt) tokens swept: a run directory, multirun directory or phase file,
            or several of them.
        phase3: results with output tokens swept; may be the same path.
        directory: where to write; made if missing. A ``summary.json`` of another experiment there is left alone.
        allow_unlike: compare unlike hardware, models, dtypes or runtimes all the same.
        pages: also write ``report.html`` and ``tables/``.

    Raises:
        InputError: an input cannot be read, the two are unlike, or have fewer than three points; nothing was written.
        MeasurementError: a file cannot be written.
    """
    pairs = pair(merge_like(read_results(phase2)), merge_like(read_results(phase3)), allow_unlike=allow_unlike)
    directory = Path(directory)
    comparisons = [compare(a, b, output_dir=directory) for a, b in pairs]
    names = _names(comparisons)
    together = [rows_of_both(a, b) for a, b in pairs]
    flops = [flops_latency(frame) for frame in together]
    models = [_model(frame, found) for frame, found in zip(together, comparisons, strict=True)]
    rows = [_row(*each) for each in zip(names, comparisons, flops, models, strict=True)]
    summary: dict[str, Any] = strict(
        {
            "schema_version": SCHEMA_VERSION,
            "experiment_name": EXPERIMENT,
            "headline": [c.break_even() for c in comparisons],
            "comparisons": rows,
        }
    )
    files = list(_write(directory, comparisons, summary))
    for name, model in zip(names, models, strict=True):
        if model is not None:
            files.append(model.save(directory / MODEL_FILE.replace("latency_model", f"latency_model{name}")))
    for name, figure in _figures(names, comparisons, flops):
        files += save(figure, directory / "figures", name)
    text = _text(comparisons, summary["comparisons"])
    if pages:
        text += f"\n\n{write_pages(directory)}"
    return Written(summary=summary, files=tuple(files), text=text)


def _model(frame: pd.DataFrame, comparison: Comparison) -> LatencyModel | None:
    try:
        return fit_latency_model(frame, provenance=_kept(comparison))
    except InputError:
        return None


def _kept(comparison: Comparison) -> dict[str, Any]:
    return {k: comparison.provenance[k] for k in ("model", "device", "runtime") if k in comparison.provenance}


def _names(comparisons: Sequence[Comparison]) -> list[str]:
    """What tells the files of several models apart: empty for a single one, else ``_<model>``, numbered if need be."""
    if len(comparisons) == 1:
        return [""]
    slugs = [re.sub(r"[^a-z0-9]+", "_", model_name(c.provenance).lower()).strip("_") for c in comparisons]
    return [f"_{s}" if slugs.count(s) == 1 else f"_{s}_{i + 1}" for i, s in enumerate(slugs)]


def _row(name: str, comparison: Comparison, flops: FlopsLatency | None, model: LatencyModel | None) -> dict[str, Any]:
    return {
        "status": "ok",
        "provenance": _kept(comparison),
        **comparison.as_dict(),
        "flops_latency": None if flops is None else flops.as_dict(),
        "latency_model": None
        if model is None
        else {"file": f"latency_model{name}.json", "held_out_error": model.held_out, "ranges": model.ranges},
    }


def _write(directory: Path, comparisons: Sequence[Comparison], summary: dict[str, Any]) -> Iterator[Path]:
    present = read_json(directory / SUMMARY_FILE)
    if present is None or present.get("experiment_name") == EXPERIMENT:
        yield write_json(directory / SUMMARY_FILE, summary)
    yield write_phase_file(
        directory / PHASE_FILE,
        experiment=EXPERIMENT,
        provenance=comparisons[0].provenance if len(comparisons) == 1 else {},
        summary={k: v for k, v in summary.items() if k != "comparisons"},
        results=(json_row(row) for row in summary["comparisons"]),
    )


def _figures(
    names: Sequence[str], comparisons: Sequence[Comparison], flops: Sequence[FlopsLatency | None]
) -> Iterator[tuple[str, Figure]]:
    with theme():
        for name, comparison, found in zip(names, comparisons, flops, strict=True):
            yield f"token_costs{name}", token_costs_figure(comparison)
            yield f"break_even{name}", break_even_figure(comparison)
            if found is not None:
                yield f"flops_latency{name}", flops_latency_figure(found, comparison.provenance)
        if len(comparisons) > 1:
            yield "break_even_models", models_figure(comparisons)


def _text(comparisons: Sequence[Comparison], rows: Sequence[Mapping[str, Any]]) -> str:
    lines: list[str] = []
    for comparison, row in zip(comparisons, rows, strict=True):
        lines += [caption(comparison.provenance)]
        for question, sentences in comparison_answers(row):
            lines += ["", question, *(f"  {sentence}" for sentence in sentences)]
        lines.append("")
    return "\n".join(lines).rstrip()
