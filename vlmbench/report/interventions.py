"""What a comparison of methods leaves: summary, phase file, figures and words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vlmbench.analysis import frames
from vlmbench.analysis.interventions import ArmResult, Verdict, arm_results, skipped_arms
from vlmbench.analysis.scope import latency_scope
from vlmbench.figures.interventions import interventions_figure
from vlmbench.figures.theme import save
from vlmbench.records.files import read_json, strict, write_json
from vlmbench.report.narrative.interventions import as_text, verdict
from vlmbench.report.phase1_summary import provenance_of, read_points, run_counts
from vlmbench.report.phase_file import Answer, run_rows, write_phase_file
from vlmbench.schema import SCHEMA_VERSION

EXPERIMENT, PROOFS = "interventions", "proofs.json"


def write_interventions(directory: Path | str, to: Path | None = None, *, quick: bool = False) -> str:
    """Write ``summary.json``, ``interventions.json`` and ``figures/interventions*`` of a run directory.

    Args:
        directory: where the rows lie.
        to: where to write; beside the rows if None.
        quick: ``summary.json`` alone, for a run that has no time for more.

    Returns:
        The answer in words.

    Raises:
        InputError: the directory holds no records, or broken ones.
        MeasurementError: a file cannot be written.
    """
    directory = Path(directory)
    to = to or directory
    said = answer(directory)
    write_json(to / "summary.json", said.summary)
    if quick:
        return said.words(None)
    write_phase_file(
        to / f"{EXPERIMENT}.json",
        experiment=EXPERIMENT,
        provenance=provenance_of(directory),
        summary=said.summary,
        results=run_rows(directory, arms=True),
    )
    for name, figure in said.draw():
        save(figure, to / "figures", name)
    return said.words(None)


def answer(directory: Path) -> Answer:
    """Say what the rows of a run directory hold; nothing is written.

    Raises:
        InputError: the directory holds no records, or broken ones.
    """
    frame = frames.load_runs(directory)
    provenance = provenance_of(directory)
    arms = arm_results(frame)
    summary = summarise(frame, arms, provenance, read_json(directory / PROOFS) or {}, points=read_points(directory))
    return Answer(summary=summary, draw=lambda: figures(arms, provenance), words=lambda _: as_text(summary))


def figures(arms: Sequence[ArmResult], provenance: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """(file name, figure): one figure a point of the sweep."""
    points = list(dict.fromkeys(arm.point for arm in arms))
    for number, point in enumerate(points):
        figure = interventions_figure([arm for arm in arms if arm.point == point], provenance)
        if figure is not None:
            yield EXPERIMENT if len(points) == 1 else f"{EXPERIMENT}_{number + 1}", figure


def summarise(
    frame: pd.DataFrame,
    arms: Sequence[ArmResult],
    provenance: Mapping[str, Any],
    proofs: Mapping[str, Any],
    *,
    points: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The findings as plain data, the content of ``summary.json``.

    Args:
        arms: every arm but the baselines.
        provenance: content of ``provenance.json``.
        proofs: content of ``proofs.json``.
        points: how each series ended.
    """
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "experiment_name": EXPERIMENT,
        "arms": [arm.as_dict() for arm in arms],
        "interventions": [row for arm in arms if (row := page_row(arm)) is not None],
        "skipped": skipped_arms(frame),
        "proofs": dict(proofs),
        "scope": latency_scope(frame, provenance),
        "runs": run_counts(frame),
        "flags": frames.as_counts(frames.flag_counts(frames.arms(frame)), "flag"),
        "stopping": list(points),
    }
    plain: dict[str, Any] = strict(summary)
    return plain


def page_row(arm: ArmResult) -> dict[str, Any] | None:
    """An arm as the page's chart and table take it; None where generate() was not timed."""
    total = arm.savings.get("T_total")
    if total is None:
        return None
    entry = total.as_dict()
    where = f" at {arm.point}" if arm.point else ""
    return {
        "arm": f"{arm.label}{where}",
        "saved_ms": total.saved.value,
        "low": total.saved.low,
        "high": total.saved.high,
        "control": arm.role == "control",
        "predicted_ms": sum(arm.promised_ms.values()) if arm.promised_ms else None,
        "own_ms": arm.method_ms.get("total"),
        "kept_tokens": arm.kept,
        "kernels": "unlike: kernel + tokens" if arm.unlike_kernels else "the baseline's",
        "verdict": verdict(entry) if total.verdict is Verdict.NO_DIFFERENCE else str(total.verdict),
    }
