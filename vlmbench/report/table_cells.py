"""Tables as plain text cells, once for all: the terminal, the page, LaTeX and Markdown show the same ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmbench.analysis.curve_shape import outside_words
from vlmbench.analysis.floors import STAGE_COSTS, short_verdict
from vlmbench.analysis.slices import KINDS, TOKEN_KINDS, held_fixed
from vlmbench.figures.theme import component_label
from vlmbench.report.narrative.serving import first_words
from vlmbench.report.phase1_summary import EXPERIMENT as PHASE1
from vlmbench.report.scope_table import ARM_COLUMNS, arm_rows, scope_rows
from vlmbench.text import DASH, amount, digits, factor, interval, percent, quantile_cell, span, whole_ones

Summary = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of texts.

    Args:
        name: names its files.
        title: above it, with the unit.
        columns: (heading, whether its cells are numbers and stand right).
        rows: cells, as many as columns.
        colours: for each row the component whose colour it may carry, with a share from 0 to 1 for a bar; may be empty.
    """

    name: str
    title: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]
    colours: tuple[tuple[str, float | None], ...] = ()


def grids(summary: Summary) -> list[Grid]:
    """All tables that a summary of any experiment has rows for."""
    name = summary.get("experiment_name")
    if name == PHASE1:
        made = [latency(summary), components(summary), parameters(summary)] if summary["distribution"] else []
        made += [memory(summary), energy(summary), kernels(summary)]
    elif name == "interventions":
        made = [arms(summary)]
    elif "comparisons" in summary:
        made = [token_costs(row, number) for number, row in enumerate(summary["comparisons"])]
    else:
        made = [slopes(summary), floors(summary), memory(summary), energy(summary)]
    if (summary.get("scope") or {}).get("runs"):
        made.append(scope(summary))
    return [grid for grid in (*made, points(summary)) if grid.rows]


def latency(summary: Summary) -> Grid:
    """Latencies: median and upper quantiles with intervals; the repeated request below the workload. No rows under
    several loads: each has a distribution of its own.
    """
    rows = []
    several = first_words(summary.get("serving") or {})
    for metric, groups in ({} if several else summary["distribution"]).items():
        for group, entry in groups.items():
            cells = [quantile_cell(entry[name]) for name in ("p50", "p90", "p95", "p99")]
            label = metric if group == next(iter(groups)) else ""
            runs = "workload" if group == "workload" else "repeated"
            of_runs = (f"{entry['n']:,}", *_dependence(entry))
            rows.append((label, runs, *of_runs, *cells, _bare(entry["mean"])))
    names = ("n", "lag-1", "worth", "P50", "P90", "P95", "P99", "mean")
    columns = (("", False), ("runs", False), *((name, True) for name in names))
    title = "Latency, ms [95 % interval] (worth: independent runs, or requests, that the n are worth)"
    return Grid(name="latency", title=title, columns=columns, rows=tuple(rows))


def _dependence(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Autocorrelation of neighbours, and independent runs that the runs are worth; summaries of old have neither."""
    lag1, effective = entry.get("lag1"), entry.get("effective_n")
    return DASH if lag1 is None else f"{lag1:.2f}", DASH if effective is None else whole_ones(effective, "< 1")


def components(summary: Summary) -> Grid:
    """Time and share of each part, and how far above the least possible time it is where that is known."""
    costs = {row["component"]: row for row in summary["cost"]["stages"]}
    over = {name: row["over_floor"] for name, row in costs.items()}
    known = any(value is not None for value in over.values())
    rows, colours = [], []
    for row in summary["components"]:
        nested = "  " if row["part_of"] == "T_LLM_decode" else ""
        rows.append(
            (
                nested + component_label(row["component"]),
                _bare(row["median"]),
                _bare(row["mean"]),
                percent(row["share"]),
                span(row["share_low"], row["share_high"], "%"),
                row["part_of"],
                *([factor(over.get(row["component"])), of_peak(costs.get(row["component"], {}))] if known else []),
            )
        )
        colours.append((row["component"], row["share"]))
    columns = [("", False), *((name, True) for name in ("median, ms", "mean, ms", "share")), ("95 % interval", False)]
    columns += [("of", False), *([("× floor", True), ("of peak", True)] if known else [])]
    return Grid(
        name="components",
        title="Where the time goes (shares: of all time spent, sum by sum)",
        columns=tuple(columns),
        rows=tuple(rows),
        colours=tuple(colours),
    )


def parameters(summary: Summary) -> Grid:
    """Parameters of each part; no rows if they were not counted."""
    return Grid(
        name="parameters",
        title="Where the parameters are",
        columns=(("", False), ("parameters", True), ("share", True)),
        rows=tuple(
            (component_label(row["component"]), amount(row["parameters"]), percent(row["share"]))
            for row in summary["parameters"]
        ),
        colours=tuple((row["component"], row["share"]) for row in summary["parameters"]),
    )


def memory(summary: Summary) -> Grid:
    """Peak memory of each stage; no rows where it was not watched (on a CPU, say)."""
    found = summary.get("memory_by_stage") or []
    rows = tuple(
        (
            component_label(row["stage"]),
            _gib(row["allocated_bytes"]),
            _gib(row["reserved_bytes"]),
            f"{row['runs']:,}",
            row["point_id"],
        )
        for row in found
    )
    names = ("in tensors", "held by the allocator", "runs")
    columns = (("stage", False), *((name, True) for name in names), ("most at", False))
    return Grid(name="memory", title="Peak memory of each stage, weights included, GiB", columns=columns, rows=rows)


def _gib(number: int | None) -> str:
    return DASH if number is None else digits(number / 2**30)


def energy(summary: Summary) -> Grid:
    """Energy of a request and of an output token at each point, idle power subtracted; no rows without the probe."""
    found = summary.get("energy") or {}
    rows = tuple(
        (
            str(point["point_id"]),
            f"{point['runs']:,}",
            *(_joules(point.get(name)) for name in ("per_request_j", "per_output_token_j", "gross_per_run_j")),
            f"{point['below_resolution']:,}",
        )
        for point in found.get("points") or []
    )
    names = ("runs", "a request", "an output token", "a run, with idle", "runs below resolution")
    idle = found.get("idle_power_w")
    less = f" (idle power of {digits(idle)} W subtracted)" if idle is not None else ""
    columns = (("point", False), *((name, True) for name in names))
    return Grid(name="energy", title=f"Energy, J [95 % interval]{less}", columns=columns, rows=rows)


def _joules(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return DASH
    inside = span(entry["low"], entry["high"], "J").removesuffix(" J")
    return f"{digits(entry['value'])} [{inside}]" if inside else digits(entry["value"])


def slopes(summary: Summary) -> Grid:
    """Milliseconds of each stage for one more token of each kind, or request in the batch, with all else held fixed.

    Where rows carry flags of work done for the first time, a column has the slope without them.
    """
    flagged = any(entry.get("flagged_rows") for entry in summary["scaling"])
    rows = tuple(
        (
            KINDS[entry["kind"]].unit,
            component_label(entry["stage"]) if entry["stage"] != "T_total" else "generate()",
            digits(entry["slope_ms"], 4),
            interval(entry["slope_low"], entry["slope_high"]),
            _pulled_in(entry),
            *([_unflagged(entry)] if flagged else []),
            DASH if entry["r2"] is None else f"{entry['r2']:.3f}",
            percent(entry["held_out_error"]),
            entry["shape"],
            held_fixed(entry["fixed"]) if entry["fixed"] else DASH,
        )
        for entry in summary["scaling"]
    )
    names = (
        "slope",
        "95 % interval",
        "outliers pulled in",
        *(["without first-time rows"] if flagged else []),
        "R²",
        "held-out error",
    )
    columns = (("one more", False), ("stage", False), *((name, True) for name in names))
    columns += (("shape", False), ("held fixed", False))
    units = dict.fromkeys(
        "token" if entry["kind"] in TOKEN_KINDS else KINDS[entry["kind"]].unit for entry in summary["scaling"]
    )
    title = f"What one more {' or '.join(units) or 'token'} costs, ms"
    if any(entry.get("missed_words") for entry in summary["scaling"]):
        title += (
            " (fit outside N of M medians' intervals: M points have a median with a 95 % interval, and the fit to "
            "all runs lies outside it at N of them)"
        )
    return Grid(name="slopes", title=title, columns=columns, rows=rows)


def _pulled_in(entry: Mapping[str, Any]) -> str:
    """The outlier-proof slope, with a word where the fit to all runs misses most of its points' medians."""
    if entry.get("slope_robust_ms") is None:
        return DASH
    inside = interval(entry["slope_robust_low"], entry["slope_robust_high"])
    missed = f"; fit {outside_words(entry['medians_missed'], entry['medians_with_interval'])}"
    return f"{digits(entry['slope_robust_ms'])} ({inside}){missed if entry['missed_words'] else ''}"


def _unflagged(entry: Mapping[str, Any]) -> str:
    if entry.get("slope_unflagged_ms") is None:
        return DASH
    inside = interval(entry["slope_unflagged_low"], entry["slope_unflagged_high"])
    return f"{digits(entry['slope_unflagged_ms'])} ({inside})"


def floors(summary: Summary) -> Grid:
    """Each stage at each point against the least time its work needs on the device."""
    rows = tuple(
        (
            row["point_id"],
            component_label(row["stage"]),
            _bare(row["time_ms"]),
            digits(row["flops"] / 1e9),
            _bare(row.get("floor_ms")),
            factor(row["over_floor"]),
            of_peak({**row, "component": row["stage"]}),
            short_verdict(row["verdict"]),
        )
        for row in sorted(summary["roofline"], key=_by_number)
        if row.get("over_floor") is not None
    )
    names = ("time, ms", "GFLOP", "floor, ms", "time / floor", "of peak")
    columns = (("point", False), ("stage", False), *((name, True) for name in names), ("bound by", False))
    return Grid(name="floors", title="Time against the device's floor", columns=columns, rows=rows)


def of_peak(row: Mapping[str, Any]) -> str:
    """Write the share of the peak that a stage reaches: ``MBU 41 %`` of bandwidth for decode, ``MFU 62 %`` else.

    Args:
        row: ``component``, and ``mfu`` and ``mbu`` where they are known (results of release 0.1 lack them).
    """
    name = "mbu" if row.get("component") == "T_LLM_decode" else "mfu"
    share = row.get(name)
    return DASH if share is None or math.isnan(share) else f"{name.upper()} {percent(share, 2)}"


def kernels(summary: Summary) -> Grid:
    """The longest kernels of each stage, from traced runs; no rows without any."""
    found = summary.get("top_kernels") or []
    rows = tuple(
        (component_label(f"T_{row['stage']}"), str(row["name"]), digits(row["calls"]), digits(row["ms"]))
        for row in found
    )
    kind = found[0]["of"] if found else "kernels"
    columns = (("stage", False), ("name", False), ("calls", True), ("ms", True))
    return Grid(name="kernels", title=f"Longest {kind} of a traced request, by stage", columns=columns, rows=rows)


def _by_number(row: Mapping[str, Any]) -> tuple[int, list[str | float]]:
    """Stages as they run, and in each the points by their numbers, not by their digits."""
    words = re.split(r"(\d+(?:\.\d+)?)", str(row["point_id"]))
    return list(STAGE_COSTS).index(row["stage"]), [float(w) if i % 2 else w for i, w in enumerate(words)]


def token_costs(comparison: Mapping[str, Any], number: int = 0) -> Grid:
    """What one more token of each kind costs, and how many of another kind that buys."""
    costs = comparison["token_costs"]
    rows = []
    for kind, cost in costs.items():
        cells = [digits(cost["cost_ms"], 4), interval(cost["low"], cost["high"]), _cost_pulled_in(cost)]
        bought = (comparison.get(name, {}).get(f"output_over_{kind}") or {} for name in ("ratios", "ratios_robust"))
        rows.append((KINDS[kind].unit, *cells, *(_bare(ratio.get("value")) for ratio in bought)))
    names = (
        "ms",
        "95 % interval",
        "with outliers pulled in",
        "tokens for one output token",
        "these with outliers pulled in",
    )
    return Grid(
        name=f"token_costs_{number + 1}" if number else "token_costs",
        title="What one more token costs",
        columns=(("one more", False), *((name, True) for name in names)),
        rows=tuple(rows),
    )


def _cost_pulled_in(cost: Mapping[str, Any]) -> str:
    """The outlier-proof cost; results of release 0.2 lack it."""
    if cost.get("cost_robust_ms") is None:
        return DASH
    return f"{digits(cost['cost_robust_ms'], 4)} ({interval(cost['low_robust'], cost['high_robust'])})"


def arms(summary: Summary) -> Grid:
    """Every arm of a comparison of methods against its baseline."""
    rows = tuple(arm_rows(summary["arms"]))
    return Grid(name="interventions", title="Methods beside their baseline", columns=ARM_COLUMNS, rows=rows)


def scope(summary: Summary) -> Grid:
    """What is inside the latencies of this run."""
    rows = tuple(scope_rows(summary["scope"]))
    return Grid(name="latency_scope", title="What is inside the number", columns=(("", False), ("", False)), rows=rows)


def points(summary: Summary) -> Grid:
    """How many runs each point has and what they are worth, how well its median is known, and what ended it."""
    known = {entry["point_id"]: entry for entry in (summary.get("precision") or {}).get("points", [])}
    rows = tuple(
        (
            str(point.get("point_id", "")),
            f"{point.get('measured', 0):,}",
            *_known(known.get(str(point.get("point_id", "")), {})),
            str(point.get("ended_by") or "").replace("_", " "),
            ", ".join(map(str, point.get("unmet") or [])) or DASH,
        )
        for point in summary.get("stopping") or []
    )
    names = ("measured", "lag-1", "worth", "median ±", "to ±1 %, s")
    columns = (("point", False), *((name, True) for name in names), ("ended by", False), ("unmet", False))
    return Grid(name="points", title="How well each point is known, and what ended it", columns=columns, rows=rows)


def _known(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What a point's runs are worth, how far the interval of its median reaches, and seconds that the goal lacks."""
    reach, missing = entry.get("reach"), entry.get("missing_s")
    return (
        *_dependence(entry),
        percent(reach, 2),
        DASH if missing is None else f"{missing:,.0f}",
    )


def _bare(value: float | None) -> str:
    return DASH if value is None else digits(value)
