"""What would help: interventions against their baseline and controls, where a summary has them.

``summary["interventions"]`` holds rows with ``arm``, ``saved_ms``, ``low``, ``high`` and, where known, ``control``
(true for a control), ``predicted_ms`` (what FLOPs promised), ``own_ms``, ``kept_tokens``, ``kernels``, ``verdict``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.report.narrative.pieces import Piece, bold, ci
from vlmbench.report.page.cells import cell, known, ms, ms_span, rounded, table
from vlmbench.report.page.parts import Part
from vlmbench.text import DASH

_VERDICTS = {"faster": "good", "slower": "bad", "saves": "good", "costs": "bad"}


def interventions(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Rows of every run that has interventions, for the chart: ``label``, ``at``, ``control``, ``promised``."""
    made = []
    for row in filter(_is_timed, _rows(parts)):
        inside = ms_span(row.get("low"), row.get("high"))
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


def _is_timed(row: Mapping[str, Any]) -> bool:
    return known(row.get("saved_ms"))


def _rows(parts: Sequence[Part]) -> list[Mapping[str, Any]]:
    return [row for part in parts for row in part.summary.get("interventions") or []]


def tables(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Interventions as a table; none where no run has any."""
    arms = _rows(parts)
    columns = (
        ("Method", False),
        ("Saved, ms (95 % interval)", True),
        ("FLOPs promised, ms", True),
        ("Own time, ms", True),
        ("Vision tokens kept", True),
        ("Attention kernels", False),
        ("Verdict", False),
    )
    title = "Time saved against the same request without it"
    return [table("interventions", title, columns, [_arm(row) for row in arms])] if arms else []


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


def _verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    text = str(row.get("verdict") or "not said")
    return cell(text, v=next((v for word, v in _VERDICTS.items() if text.startswith(word)), "open"))


def said(parts: Sequence[Part]) -> list[list[Piece]]:
    """What the section says beside its chart."""
    arms = [row for row in _rows(parts) if not row.get("control") and _is_timed(row)]
    if not arms:
        return []
    best = max(arms, key=lambda row: float(row["saved_ms"]))
    return [
        [
            "Most is saved by ",
            bold(str(best.get("arm", ""))),
            f": {ms(best['saved_ms'])} ms",
            *ci(ms_span(best.get("low"), best.get("high"))),
            f" of generate(), {best['verdict']}." if best.get("verdict") else " of generate().",
        ]
    ]
