"""How far a run can be trusted: one cell for each thing that would weaken its answer, and the facts beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vlmbench.analysis import frames
from vlmbench.analysis.serving import served
from vlmbench.figures.theme import dtype_name
from vlmbench.report.narrative.serving import first_words
from vlmbench.report.page.cells import share_span, signed
from vlmbench.report.page.parts import Part
from vlmbench.report.page.stories import Story
from vlmbench.text import amount, count, digits, percent, whole_ones

_OVERHEAD_GOAL = 0.003  # METHOD, invariant 4
Cell = dict[str, str]


def quality(story: Story) -> list[Cell]:
    """Cells of the first screen: ``v`` (good, warn, bad, open), ``h`` heading, ``t`` value, ``s`` what it means."""
    part = story.main
    if part is None:
        return []
    made = [
        _machine(story, part),
        _watching(part),
        _residual(part),
        _marked(story),
        _stopping(story),
        _independent(part),
    ]
    return [cell for cell in made if cell]


def _cell(verdict: str, heading: str, value: str, said: str) -> Cell:
    return {"v": verdict, "h": heading, "t": value, "s": said}


def _machine(story: Story, part: Part) -> Cell:
    check = part.summary.get("aa_check")
    if not check:
        return _cell("open", "Machine kept still?", "not known", "Too few repeats for an A/A check.")
    inside = f"{check['low']:.3f}–{check['high']:.3f}" if check.get("low") is not None else "no interval"
    verdict = {"clean": "good", "drift": "bad"}.get(check["verdict"], "warn")
    told = {
        "clean": "no drift seen",
        "drift": "it drifted, so differences of this size may be the machine’s",
    }.get(check["verdict"], "too noisy to tell; more repeats or a machine of one’s own would")
    if check.get("no_drift_beyond") is not None and verdict == "good":
        told = f"no drift beyond {percent(check['no_drift_beyond'])}"
    heading = {"good": "Machine kept still", "bad": "Machine drifted"}.get(verdict, "Machine kept still?")
    drifted = [
        one for one in story.sweeps if one is not part and (one.summary.get("aa_check") or {}).get("verdict") == "drift"
    ]
    also = ""
    if drifted:
        ratios = " and ".join(f"{one.summary['aa_check']['ratio']:.3f}" for one in drifted)
        also = f" The sweeps behind the price of a token drifted ({ratios})."
        verdict = "warn" if verdict == "good" else verdict
    said = f"A/A check, {check.get('basis') or 'second half against first'}: {told}.{also}"
    return _cell(verdict, heading, f"second half / first {check['ratio']:.3f} ({inside})", said)


def _watching(part: Part) -> Cell:
    found = part.summary.get("instrument_overhead") or {}
    if found.get("value") is None:
        return _cell("open", "Cost of watching", "not measured", "No runs without probes stand beside those with them.")
    low, high = found.get("low"), found.get("high")
    pairs = f"From {count(found['n'], 'pair')} of runs with and without probes"
    value = signed(percent(found["value"]))
    if low is None or high is None:
        return _cell("warn", "Cost of watching", value, f"{pairs}: too few for an interval.")
    inside = share_span(low, high)
    if high <= _OVERHEAD_GOAL:
        return _cell("good", "Cost of watching", f"{value} ({inside})", f"{pairs}: below the aim of 0.3 %.")
    if low > _OVERHEAD_GOAL:
        return _cell("bad", "Cost of watching", f"{value} ({inside})", f"{pairs}: above the aim of 0.3 %.")
    measurable = "" if low > 0 or high < 0 else "no measurable cost, but "
    return _cell(
        "warn", "Cost of watching", f"{value} ({inside})", f"{pairs}: {measurable}the aim of 0.3 % is not shown."
    )


def _residual(part: Part) -> Cell:
    found = part.summary.get("residual")
    if found is None and part.frame is not None:
        from vlmbench.analysis.breakdown import residual_summary

        found = residual_summary(part.frame)
    middle = (found or {}).get("median_abs_share") or {}
    if not found or middle.get("value") is None:
        return _cell("open", "Parts add up?", "not known", "The runs carry no stage times, or no whole beside them.")
    negative = int(found.get("runs_with_negative") or 0)
    mismatch = int(found.get("sum_mismatch") or 0)
    met = found.get("goal_met")
    goal = found.get("goal")
    said = f"That much of generate() is in no stage{f'; goal {percent(goal)}' if goal else ''}. "
    said += "No stage is negative." if not negative else f"{count(negative, 'run')} had a negative stage."
    if mismatch:
        said += f" In {count(mismatch, 'run')} the stages do not add up: do not use them."
    verdict = "bad" if negative or mismatch else "warn" if met is False else "good"
    inside = share_span(middle.get("low"), middle.get("high"))
    return _cell(
        verdict,
        "Parts add up" if verdict == "good" else "Parts add up?",
        f"{percent(middle['value'])} ({inside})" if inside else percent(middle["value"]),
        said,
    )


def _marked(story: Story) -> Cell:
    flags: dict[str, int] = {}
    failed = measured = marked = 0
    for part in story.parts:
        runs = part.summary.get("runs") or {}
        for name, number in (part.summary.get("flags") or {}).items():
            flags[name] = flags.get(name, 0) + int(number)
        failed += sum(int((runs.get("status") or {}).get(status, 0)) for status in ("error", "oom", "skipped"))
        measured += int((runs.get("ok_by_mode") or {}).get("instrumented", 0))
        marked += _rows_with_marks(part)
    lost = f"{count(failed, 'row')} failed. " if failed else "None failed. "
    where = f", over all {len(story.parts)} runs of this page" if len(story.parts) > 1 else ""
    if not flags:
        return _cell(
            "warn" if failed else "good", "Marked runs", f"0 of {measured:,}", f"{lost}No run carries a mark{where}."
        )
    common = sorted(flags.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{flag_name(name)} {number:,}" for name, number in common[:3])
    more = f" and {count(len(flags) - 3, 'more kind')}" if len(flags) > 3 else ""
    verdict = "good" if marked <= 0.01 * measured and not failed else "warn"
    return _cell(
        verdict,
        "Marked runs",
        f"{marked:,} of {measured:,}",
        f"{lost}{listed[0].upper()}{listed[1:]}{more}. Kept in every number{where}.",
    )


def flag_name(flag: str) -> str:
    """``throttled:sw_power_cap`` as ``throttled (sw power cap)``."""
    kind, _, reason = flag.replace("_", " ").partition(":")
    return f"{kind} ({reason})" if reason else kind


def _rows_with_marks(part: Part) -> int:
    """Measured rows with any flag; without the rows, those of the commonest flag."""
    if part.frame is None:
        return max(map(int, (part.summary.get("flags") or {}).values()), default=0)
    return int(frames.measured(part.frame)["flags"].astype(object).fillna("").ne("").sum())


def _stopping(story: Story) -> Cell:
    points = [point for part in story.parts for point in part.summary.get("stopping") or []]
    if not points:
        return {}
    unmet = [point for point in points if point.get("unmet")]
    failed = [point for point in points if point.get("failed")]
    if not unmet and not failed:
        return _cell(
            "good",
            "Stopping rules",
            f"met at {'the one point' if len(points) == 1 else f'all {len(points):,} points'}",
            f"Each ended by its own rule or with all requests measured.{_known_to(story)}",
        )
    reached = _reached(unmet)
    said = f"They stopped before their median was known to the precision asked for{reached}." if unmet else ""
    said += f" {count(len(failed), 'point')} had failures." if failed else ""
    return _cell("warn", "Stopping rules", f"unmet at {len(unmet):,} of {count(len(points), 'point')}", said.strip())


def _known_to(story: Story) -> str:
    """How well the medians are known, where the summaries say."""
    points = [point for part in story.parts for point in (part.summary.get("precision") or {}).get("points") or []]
    reach = [float(point["reach"]) for point in points if point.get("reach") is not None]
    if not reach:
        return ""
    some = (
        "" if len(reach) == len(points) else f" at {len(reach):,} of {len(points):,} points, without interval elsewhere"
    )
    return f" Medians are known to ±{percent(max(reach), 2)} or better{some}."


_REACHED = re.compile(r"median_interval \(±([\d.]+) %")
_NO_INTERVAL, _NOTHING = "median_interval (no interval yet", "median_interval (the median is 0"


def _reached(unmet: list[Mapping[str, Any]]) -> str:
    """The precisions that the points say they reached, and how many have no interval yet, or a median of 0."""
    texts = [str(text) for point in unmet for text in point.get("unmet") or []]
    found = [float(here[1]) for text in texts if (here := _REACHED.match(text))]
    none, nothing = (sum(text.startswith(why) for text in texts) for why in (_NO_INTERVAL, _NOTHING))
    ends = list(dict.fromkeys((digits(min(found)), digits(max(found))))) if found else []
    said = [f"reached: {' to '.join(f'±{end}' for end in ends)} %"] if ends else []
    if none:
        said.append(f"no interval yet at {'any' if none == len(unmet) else f'{none:,}'} of them")
    if nothing:
        where = "all" if nothing == len(unmet) else f"{nothing:,}"
        said.append(f"a median of 0, of which there are no shares, at {where} of them")
    return f" ({'; '.join(said)})" if said else ""


def _independent(part: Part) -> Cell:
    """Effective number of runs; nothing where the summary does not say."""
    found = effective(part)
    if not found:
        return {}
    n, effective_n, lag1 = found
    among = f" (correlation of neighbours {lag1:.2f})" if lag1 is not None else ""
    are_worth = f"{n:,} are worth {whole_ones(effective_n)}"
    if effective_n >= 0.9 * n:
        return _cell("good", "Independent runs", are_worth, "Runs do not depend on each other.")
    said = f"Runs depend on each other{among}; the intervals allow for it."
    return _cell("warn", "Independent runs", are_worth, said)


def effective(part: Part) -> tuple[int, float, float | None] | None:
    """(n, effective n, lag-1 autocorrelation or None) of the headline's time; None where the summary does not say.

    Runs under several loads are no sample of one time: they have no effective n together.
    """
    if first_words(part.summary.get("serving") or {}):
        return None
    metric = (part.summary.get("headline") or {}).get("latency_metric")
    entry = ((part.summary.get("distribution") or {}).get(metric) or {}).get("workload") or {}
    value = entry.get("effective_n")
    if value is None:
        return None
    return int(entry["n"]), float(value), entry.get("lag1")


def facts(story: Story) -> list[tuple[str, str]]:
    """(name, value) beside the answer: model, machine, runtime, workload, day, number of runs."""
    part = story.main
    provenance: Mapping[str, Any] = part.provenance if part else story.comparison.get("provenance") or {}
    found = [
        ("Model", _model(story, provenance)),
        ("Machine", _device(story, provenance)),
        ("Runtime", story.facts["runtime"]),
        ("Workload", _workload(part) if part else ""),
        ("Load", _load(part) if part else ""),
        ("Measured", "; ".join(_days(story))),
        ("Runs", "; ".join(_runs(story))),
    ]
    return [(name, value) for name, value in found if value]


def _model(story: Story, provenance: Mapping[str, Any]) -> str:
    model = provenance.get("model") or {}
    counted = model.get("parameters")
    total = counted.get("total") if isinstance(counted, Mapping) else counted
    size = f", {amount(int(total))} parameters" if total else ""
    dtype = dtype_name(provenance)
    note = "; times are real, answers are not" if model.get("weights") == "random" else ""
    return f"{story.facts['model']}{size}{f', {dtype}' if dtype else ''}{note}"


def _device(story: Story, provenance: Mapping[str, Any]) -> str:
    host = provenance.get("host") or {}
    cores = host.get("cores_usable")
    cpu = str(host.get("cpu") or "")
    beside = f" ({count(cores, 'core')})" if cores else ""
    name = story.facts["device"]
    return f"{name}{beside}" if cpu == name or not cpu else f"{name}; host {cpu}{beside}"


def _workload(part: Part) -> str:
    spread = part.summary.get("tokens") or {}
    swept = (part.provenance.get("sweep") or {}).get("name") not in (None, "none")
    texts = [f"sweep of {part.facts['sweep']}" if swept and not part.is_phase1 else part.facts["data"]]
    for name, unit in (
        ("num_vision_tokens", "vision"),
        ("num_prompt_tokens", "prompt"),
        ("num_output_tokens", "output"),
    ):
        entry = spread.get(name)
        if entry:
            low, high = entry["min"], entry["max"]
            texts.append(f"{low:,.0f}{f'–{high:,.0f}' if high > low else ''} {unit}")
    return ", ".join(filter(None, texts)) + (" tokens" if len(texts) > 1 else "")


def _load(part: Part) -> str:
    """How many requests at once: of a batch, and under way."""
    config: Mapping[str, Any] = part.provenance.get("config") or {}
    load: Mapping[str, Any] = config.get("load") or {}
    if served(part.provenance) is not None:
        if part.frame is not None and any(str(name).startswith("axis_load.") for name in part.frame):
            return "swept: each load has its own figures"
        if load.get("name") == "open":
            traced = load.get("arrivals") == "trace"  # it has its own rate
            rate = None if traced else load.get("rate_per_s")
            return f"open: {f'{float(rate):g} ' if rate else ''}arrivals a second, {load.get('arrivals')}"
        return f"closed: {count(int(load.get('concurrency') or 1), 'request')} at a time"
    measured = None if part.frame is None else frames.values(frames.measured(part.frame), "batch_size")
    batches = [] if measured is None else sorted({int(size) for size in set(measured.tolist()) if math.isfinite(size)})
    if not batches:
        return "one batch at a time"
    if len(batches) > 1:
        return f"batches of {batches[0]} to {batches[-1]} requests, one batch at a time"
    return "batch 1: one request at a time" if batches == [1] else f"batches of {batches[0]}, one batch at a time"


def _days(story: Story) -> Iterator[str]:
    """One entry a day: first begin to last end."""
    days: dict[str, list[datetime]] = {}
    for part in story.parts:
        for session in part.provenance.get("sessions") or []:
            for moment in (session.get("started_unix_s"), session.get("ended_unix_s")):
                if moment:
                    at = datetime.fromtimestamp(moment, tz=UTC)
                    days.setdefault(f"{at.day} {at:%b %Y}", []).append(at)
    for day, moments in list(days.items())[:3]:
        yield f"{day}, {min(moments):%H:%M}–{max(moments):%H:%M} UTC"
    if len(days) > 3:
        yield f"and on {len(days) - 3} more days"


def _runs(story: Story) -> Iterator[str]:
    for part in story.parts:
        runs = part.summary.get("runs") or {}
        measured = int((runs.get("ok_by_mode") or {}).get("instrumented", 0))
        name = f"{part.facts['sweep']}: " if len(story.parts) > 1 else ""
        if part.is_phase1:
            found = effective(part)
            beside = f" (worth {found[1]:,.0f} independent)" if found else ""
            repeated = f", one request repeated {runs['reference_runs']:,} times" if runs.get("reference_runs") else ""
            yield f"{name}n = {runs.get('workload_runs', measured):,}{beside}{repeated}"
        else:
            yield f"{name}n = {measured:,}"


def command(part: Part | None) -> str:
    """The command that measured a run, as one may type it; empty if its provenance does not say."""
    sessions = (part.provenance.get("sessions") or []) if part else []
    words: Sequence[Any] = next((session["command"] for session in sessions if session.get("command")), [])
    if not words:
        return ""
    kept = [_quoted(str(word)) for word in words[1:] if not str(word).startswith("output_dir=")]
    return " ".join(["python -m vlmbench", *kept])


def _quoted(word: str) -> str:
    plain = all(c.isalnum() or c in "=._/-+:,@%…~" for c in word)
    return word if plain else "'" + word.replace("'", "'\\''") + "'"
