"""What would help: interventions against their baseline and controls, and two runs compared, where a summary has them.

``summary["interventions"]`` holds rows with ``arm``, ``saved_ms``, ``low``, ``high`` and, where known, ``control``
(true for a control), ``predicted_ms`` (what FLOPs promised), ``own_ms``, ``kept_tokens``, ``kernels``, ``verdict``.
``summary["comparison"]`` holds ``rows`` with ``stage``, ``ratio``, ``low``, ``high``, ``verdict``, and what differs
between the two in ``differs``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.report.narrative.pieces import Piece, bold
from vlmbench.report.page.cells import cell, heading, known, ms, ms_span, rounded, table
from vlmbench.report.page.parts import Part
from vlmbench.text import DASH, digits

_VERDICTS = {"faster": "good", "slower": "bad", "saves": "good", "costs": "bad"}


def interventions(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Rows of every run that has interventions, for the chart: ``label``, ``at``, ``control``, ``promised``."""
    made = []
    for part in parts:
        for row in _rows(part, "interventions"):
            inside = ms_span(row.get("low"), row.get("high"))
            if known(row.get("saved_ms")):
                made.append(
                    {
                        "label": str(row.get("arm", "")),
                        "at": [rounded(row.get(k)) if known(row.get(k)) else None for k in ("saved_ms", "low", "high")],
                        "control": bool(row.get("control")),
                        "promised": rounded(row["predicted_ms"]) if known(row.get("predicted_ms")) else None,
                        "words": ms(row["saved_ms"]) + (f" ({inside})" if inside else ""),
                    }
                )
    return made


def _rows(part: Part, name: str) -> list[Mapping[str, Any]]:
    found = part.summary.get(name)
    if isinstance(found, Mapping):
        found = found.get("rows")
    return [row for row in found or [] if isinstance(row, Mapping)]


def tables(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Interventions and comparisons as tables; none where no run has any."""
    made = []
    arms = [row for part in parts for row in _rows(part, "interventions")]
    if arms:
        columns = (
            ("Method", False),
            ("Saved, ms (95 % interval)", True),
            ("FLOPs promised, ms", True),
            ("Own time, ms", True),
            ("Vision tokens kept", True),
            ("Attention kernels", False),
            ("Verdict", False),
        )
        made.append(
            table(
                "interventions", "Time saved against the same request without it", columns, [_arm(row) for row in arms]
            )
        )
    for part in parts:
        pairs = _rows(part, "comparison")
        if pairs:
            differs = (part.summary.get("comparison") or {}).get("differs") or []
            note = f"What differs: {'; '.join(map(str, differs))}." if differs else ""
            heads = (("Stage", False), ("Ratio", True), ("95 % interval", True), ("Verdict", False))
            made.append(
                table("comparison", "Two runs, stage by stage", heads, [_pair(row) for row in pairs], note=note)
            )
    return made


def _arm(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    name = f"{row.get('arm', '')}{' (control)' if row.get('control') else ''}"
    cells = [ms(row.get(key)) for key in ("predicted_ms", "own_ms")]
    kept = row.get("kept_tokens")
    return [
        cell(name),
        cell(ms(row.get("saved_ms")), sub=ms_span(row.get("low"), row.get("high"))),
        *map(cell, cells),
        cell(f"{kept:,.0f}" if known(kept) and kept is not None else DASH),
        cell(str(row.get("kernels") or DASH)),
        _verdict(row),
    ]


def _pair(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    name = str(row.get("stage", ""))
    ratio, low, high = row.get("ratio"), row.get("low"), row.get("high")
    inside = (
        f"{digits(low)}–{digits(high)}" if known(low) and known(high) and low is not None and high is not None else DASH
    )
    return [
        cell(heading(name)),
        cell(digits(ratio) if known(ratio) and ratio is not None else DASH),
        cell(inside),
        _verdict(row),
    ]


def _verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    text = str(row.get("verdict") or "not said")
    return cell(text, v=next((v for word, v in _VERDICTS.items() if text.startswith(word)), "open"))


def said(parts: Sequence[Part]) -> list[list[Piece]]:
    """What the section says beside its chart."""
    arms = [
        row
        for part in parts
        for row in _rows(part, "interventions")
        if not row.get("control") and known(row.get("saved_ms"))
    ]
    if not arms:
        return []
    best = max(arms, key=lambda row: float(row["saved_ms"]))
    return [
        [
            "Most is saved by ",
            bold(str(best.get("arm", ""))),
            f": {ms(best['saved_ms'])} ms ({ms_span(best.get('low'), best.get('high'))}).",
        ]
    ]
