"""Where the time goes: the stage table, the bar of the first screen, the share that the device works, the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.analysis import frames
from vlmbench.analysis.breakdown import component_table
from vlmbench.analysis.floors import peaks_of, short_verdict
from vlmbench.figures.roofline import si
from vlmbench.report.narrative.latency import ALL_ZERO
from vlmbench.report.narrative.pieces import Piece, bold, ci
from vlmbench.report.page.cells import (
    STAGE_CODES,
    cell,
    heading,
    known,
    ms,
    ms_span,
    point_key,
    rounded,
    share_span,
    table,
)
from vlmbench.report.page.parts import INTERVENTIONS, Part
from vlmbench.report.phase1_summary import records
from vlmbench.schema import STAGES, TOTAL
from vlmbench.text import DASH, count, factor, percent

_HELD = {
    "launch-bound": "launching kernels",
    "compute-bound": "computing",
    "memory-bound": "reading memory",
    "compute-bound, by kernels far from the floor": "computing, by kernels far from the floor",
    "memory-bound, by kernels far from the floor": "reading memory, by kernels far from the floor",
}
_BUSY = {"T_" + name: name for name in ("setup", "vision_encoder", "projector", "LLM_prefill", "LLM_decode", "total")}


def components(part: Part) -> list[dict[str, Any]]:
    """Time and share of each stage: of the summary, or worked out for a sweep, all its points together."""
    found = part.summary.get("components")
    if found is None and part.frame is not None:
        found = records(component_table(part.frame))
    return [row for row in found or [] if known(row.get("median"))]


def busy(part: Part) -> dict[str, float]:
    """Stage code (and ``all``) to the share of its time in which the device works, from traced runs."""
    stages = {row["stage"]: row for row in (part.summary.get("launch_bound") or {}).get("stages") or []}
    found = {}
    for name, stage in _BUSY.items():
        row = stages.get(stage)
        if row and known(row.get("launch_bound")):
            found[STAGE_CODES.get(name, "all")] = round(1 - float(row["launch_bound"]), 4)
    return found


def costs(part: Part) -> dict[str, dict[str, Any]]:
    """Stage to its FLOPs, bytes, time, floor, verdict, MFU and MBU; of a sweep, the middle point."""
    peaks = peaks_of(part.provenance, part.frame) if part.frame is not None else None
    cost = part.summary.get("cost") or {}
    found = {row["component"]: dict(row) for row in cost.get("stages") or []}
    if not found:
        swept = [row for row in part.summary.get("roofline") or [] if row.get("time_ms")]
        for row in swept:
            found.setdefault(row["stage"], {**row, "component": row["stage"], "point": row["point_id"]})
    for row in found.values():
        seconds = float(row.get("time_ms") or 0) / 1e3
        if peaks is None or not seconds:
            continue
        if known(row.get("flops")) and not known(row.get("mfu")):
            row["mfu"] = row["flops"] / seconds / peaks.flops_per_s
        if known(row.get("bytes")) and not known(row.get("mbu")):
            row["mbu"] = row["bytes"] / seconds / peaks.bytes_per_s
    return found


def stage_table(part: Part) -> dict[str, Any] | None:
    """Stages as rows: time, share, work of the device, floor, MFU and MBU, what holds it up."""
    parts = components(part)
    if not parts:
        return None
    cost, works = costs(part), busy(part)
    priced, traced = any(known(row.get("over_floor")) for row in cost.values()), bool(works)
    columns = [("Stage", False), ("Median, ms", True), ("Share of generate()", False)]
    columns += [("Device works", False)] if traced else []
    columns += [("Times its floor", True), ("MFU", True), ("MBU", True), ("Held up by", False)] if priced else []
    order = [stage.column for stage in STAGES]
    lines = []
    for row in sorted(parts, key=lambda row: order.index(row["component"]) if row["component"] in order else 99):
        name = row["component"]
        of_cost = cost.get(name, {})
        line = [
            _stage(row),
            cell(ms(row["median"]), sub=ms_span(row.get("median_low"), row.get("median_high"))),
            _share(row),
        ]
        if traced:
            line.append(_works(name, works))
        if priced:
            line += _price(name, of_cost)
        lines.append(line)
    runs = count(int(parts[0].get("n") or 0), "run")
    pooled = "" if part.is_phase1 else f", {_pooled(part)}"
    return table(
        "stages", f"Stages, medians of {runs}{pooled} (95 % interval)", columns, lines, note=_note(part, priced, traced)
    )


def _pooled(part: Part) -> str:
    """What the medians of a run without one workload are of."""
    return "the baseline alone" if part.experiment == INTERVENTIONS else "all points of the sweep together"


def _stage(row: Mapping[str, Any]) -> dict[str, Any]:
    name = row["component"]
    code = STAGE_CODES.get(name, "dec" if name.startswith("T_decode") else "res")
    return cell(heading(name), sw=code, nested=name.startswith("T_decode") or None)


def _share(row: Mapping[str, Any]) -> dict[str, Any]:
    if not known(row.get("share")):
        return cell(DASH)
    of = {"T_LLM_decode": "of decode", "T_request": "of the request"}.get(str(row["part_of"]), "")
    inside = share_span(row.get("share_low"), row.get("share_high"))
    code = STAGE_CODES.get(row["component"], "dec")
    bar = [code, rounded(min(abs(row["share"]), 1.0), 4)] if row["part_of"] == "T_total" else None
    return cell(percent(row["share"]) + (f" {of}" if of else ""), sub=inside, bar=bar)


def _works(name: str, works: Mapping[str, float]) -> dict[str, Any]:
    share = works.get(STAGE_CODES.get(name, ""))
    if share is None:
        return cell("host" if name in ("T_video_decode", "T_preprocess", "T_detokenize") else DASH)
    return cell(percent(share), busy=share)


def _price(name: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    inside = ms_span(row.get("over_floor_low"), row.get("over_floor_high"))
    over = cell(factor(row["over_floor"]), sub=inside) if known(row.get("over_floor")) else cell(DASH)
    rates = [cell(percent(row[key])) if known(row.get(key)) else cell(DASH) for key in ("mfu", "mbu")]
    if name in ("T_video_decode", "T_preprocess", "T_setup", "T_detokenize"):
        held = "the host"
    else:
        verdict = short_verdict(str(row.get("verdict") or ""))
        held = _HELD.get(verdict, verdict.replace("-bound", "") or DASH)
    return [over, *rates, cell(held)]


def _note(part: Part, priced: bool, traced: bool) -> str:
    words = ["Shares are sum over sum, so that they add up."]
    if traced:
        found = part.summary["launch_bound"]
        words.append(
            f"Device works: {count(int(found['traces']), 'trace')} against "
            f"{count(int(found['untraced_runs']), 'untraced run')} of the same shape."
        )
    if priced:
        peaks = peaks_of(part.provenance, part.frame) if part.frame is not None else None
        rates = f" ({si(peaks.flops_per_s)}FLOP/s, {si(peaks.bytes_per_s)}B/s)" if peaks else ""
        words.append(
            f"Floor: the least time that the work needs at the device’s peak rates{rates}, a bound, not a goal. MFU "
            "and MBU: share of these rates that was reached."
        )
        point = next((row["point"] for row in costs(part).values() if row.get("point")), None)
        if point:
            words.append(f"Floors, MFU and MBU are those of {point}.")
    return " ".join(words)


def bar(part: Part) -> dict[str, Any] | None:
    """The bar of the first screen: median of each stage, of the whole, of the first token, and the device's work."""
    parts = {row["component"]: row for row in components(part)}
    segments = [
        [code, rounded(parts[name]["median"])]
        for name, code in STAGE_CODES.items()
        if name in parts and name != "T_residual"
    ]
    distribution = part.summary.get("distribution") or {}
    whole = (distribution.get("T_request") or distribution.get("T_total") or {}).get("workload")
    first = (distribution.get("TTFT") or {}).get("workload") if "T_request" in distribution else None
    if not segments:
        return None
    waiting = part.summary.get("launch_bound") or {}
    made: dict[str, Any] = {
        "segments": segments,
        "total": rounded(whole["p50"]["value"], 5) if whole else None,
        "pooled": _pooled(part),
        "what": "request" if "T_request" in distribution else "generate()",
    }
    if first and first["p50"]["value"] is not None:
        made["first"] = [rounded(first["p50"]["value"]), ms_span(first["p50"]["low"], first["p50"]["high"])]
    if known(waiting.get("launch_bound")):
        made["waits"] = rounded(waiting["launch_bound"])
        made["busy"] = busy(part)
        made["device"] = part.device_word
        made["inner"] = rounded(((distribution.get(TOTAL) or {}).get("workload") or {}).get("p50", {}).get("value"))
        made["waits_ci"] = share_span(waiting.get("low"), waiting.get("high"))
    return made


def said(part: Part) -> list[list[Piece]]:
    """What the section says beside its charts."""
    parts = [row for row in components(part) if row["part_of"] == "T_total" and row["component"] != "T_residual"]
    if not parts:
        return [["The runs carry no stage times, so their parts cannot be told apart."]]
    parts = [row for row in parts if known(row.get("share"))]
    if not parts:
        return [[ALL_ZERO]]
    parts.sort(key=lambda row: -float(row["share"]))
    first = parts[0]
    name = heading(first["component"])
    inside = share_span(first.get("share_low"), first.get("share_high"))
    lines: list[list[Piece]] = [["Into ", bold(f"{name}: {percent(first['share'])}"), *ci(inside), " of generate()."]]
    works = busy(part)
    if works:
        ordered = sorted(((code, share) for code, share in works.items() if code != "all"), key=lambda item: -item[1])
        names = {code: heading(stage) for stage, code in STAGE_CODES.items()}
        most, least = ordered[0], ordered[-1]
        lines.append(
            [
                f"The device is busiest in {names[most[0]]} (",
                bold(percent(most[1])),
                f" of its time) and least busy in {names[least[0]]} ({percent(least[1])}); "
                "the rest is waiting for the host.",
            ]
        )
    elif (part.provenance.get("device") or {}).get("type") == "cuda":
        lines.append(["Whether the device works or waits was not traced."])
    return lines


def roofline(part: Part) -> dict[str, Any] | None:
    """Points for the roofline: stage, FLOP per byte, FLOP/s reached; the device's peaks."""
    peaks = peaks_of(part.provenance, part.frame) if part.frame is not None else None
    found = part.summary.get("roofline") or list(costs(part).values())
    points = []
    for row in found:
        name = row.get("stage") or row.get("component")
        if name not in STAGE_CODES or not row.get("bytes") or not row.get("flops") or not row.get("time_ms"):
            continue
        rate = row["flops"] / (row["time_ms"] / 1e3)
        points.append(
            [STAGE_CODES[name], rounded(row["flops"] / row["bytes"]), rounded(rate), str(row.get("point_id") or "")]
        )
    if not points:
        return None
    return {
        "points": points[:600],
        "left": len(points[600:]),
        "peaks": [peaks.flops_per_s, peaks.bytes_per_s] if peaks else None,
        "source": peaks.source if peaks else "",
    }


def point_medians(part: Part) -> dict[str, Any] | None:
    """Median of each stage at each point of a sweep, for stacked bars: ``names``, ``stages`` (code to ms)."""
    if part.frame is None or part.is_phase1:
        return None
    good = frames.measured(part.frame)
    names: Sequence[str] = [str(name) for name in good["point_id"].astype(object).unique()]
    stages = {name: code for name, code in STAGE_CODES.items() if name in good and name != "T_residual"}
    if len(names) < 2 or len(names) > 60 or not stages:
        return None
    grouped = good.assign(point_id=good["point_id"].astype(object)).groupby("point_id")[list(stages)].median()
    ordered = sorted(names, key=point_key)
    return {
        "names": ordered,
        "stages": {code: [rounded(grouped.at[n, name]) for n in ordered] for name, code in stages.items()},
    }
