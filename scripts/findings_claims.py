"""The three claims about latency under each runtime, as verdicts, and what several parts of a page say of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from published import (
    EARLIER,
    NOT_MEASURED,
    STUDIED,
    Published,
    Run,
    span_of,
    table,
    times,
    who,
)

from vlmbench.analysis.claims import Told, Verdict, claims_told
from vlmbench.text import DASH, digits, percent

PARTS = ("T_preprocess", "T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode")
STAGES = tuple(part for part in PARTS if part not in ("T_setup", "T_projector"))  # that tables have a column for


def shares_of(run: Run) -> dict[str, float]:
    """Stage to its share of all time spent on requests."""
    return {row["component"]: row.get("share_of_request") or 0.0 for row in run.summary["components"]}


def largest_of(shares: Mapping[str, float]) -> str:
    """The stage with the largest share."""
    return max(PARTS, key=lambda part: shares.get(part, 0.0))


def claims_of(results: Published, name: str) -> tuple[Told, Told, Told]:
    """The verdicts on tail, bottleneck and kinds of token."""
    run = results.run(name, "phase1")
    return claims_told(run.summary if run else {}, results.comparison(name))


def _claims_told(results: Published, name: str) -> list[Verdict]:
    """The verdicts; what was measured and could not be told is open."""
    verdicts = [one.verdict for one in claims_of(results, name)]
    measured = [results.run(name, "phase1") is not None] * 2 + [bool(results.comparison(name))]
    unmeasured = Verdict.UNMEASURED
    return [Verdict.OPEN if is_there and v is unmeasured else v for v, is_there in zip(verdicts, measured, strict=True)]


def claims_table(results: Published) -> str:
    """The three claims under each runtime."""
    rows = []
    for name in results.names(STUDIED):
        tail, share, kinds = claims_of(results, name)
        run, compared = results.run(name, "phase1"), results.run(name)
        rows.append(
            [
                *who(name),
                verdict_words(tail, times, f"× at {tail.of.upper()}", run),
                verdict_words(share, percent, "", run),
                verdict_words(kinds, digits, " to 1", compared if results.comparison(name) else None),
            ]
        )
    return table(
        ("model", "runtime", "the tail is the problem", "the LLM is the bottleneck", "kinds of token differ"), rows
    )


def verdict_words(found: Told, write: Callable[[float], str], unit: str, run: Run | None) -> str:
    """``**holds**: 1.41× at P90 (1.26–1.54)``; that a run is of an earlier set is marked."""
    if run is None:
        return NOT_MEASURED
    if found.value is None:
        return f"**{Verdict.OPEN}**{run.mark}: {too_few_words(run)}"
    if found.low is None:
        said = "not bounded" if write is digits else f"{write(found.value)}{unit}, no interval"
        return f"**{found.verdict}**{run.mark}: {said}"
    return f"**{found.verdict}**{run.mark}: {write(found.value)}{unit}{span_of(found.low, found.high, write)}"


def too_few_words(run: Run) -> str:
    """What the run has for P90, in words."""
    p90 = run.summary["distribution"]["T_request"]["workload"]["p90"]
    if p90.get("effective_n") is None:
        return "too few independent requests"
    return f"{p90['n']} requests are worth {int(p90['effective_n'])}, P90 needs {p90['n_needed']}"


def claims_words(results: Published) -> str:
    """How often each claim holds, a bullet a claim."""
    told = [_claims_told(results, name) for name in results.names()]
    lines = []
    for place, claim in enumerate(
        ("The tail is the problem", "The language model is the bottleneck", "Kinds of token differ")
    ):
        found = Counter(one[place] for one in told)
        measured = sum(found.values()) - found[Verdict.UNMEASURED]
        if not measured:
            lines.append(f"* {claim}: {NOT_MEASURED}.")
            continue
        parts = [
            f"{verdict} in {found[verdict]}" for verdict in Verdict if found[verdict] and verdict != Verdict.UNMEASURED
        ]
        names = [name for name in results.names() if results.run(name, "phase1")]
        few = [name for name in names if claims_of(results, name)[0].value is None]
        why = f"; in {len(few)} for too few independent requests, in the others because the interval holds the limit"
        if place == 2:
            names = [name for name in results.names() if results.comparison(name)]
        marks = [(results.run(name, "phase1" if place < 2 else "phase2") or results.run(name)).mark for name in names]
        earlier = marks.count(EARLIER)
        mark = f" ({earlier} of an earlier set{EARLIER})" if earlier else ""
        lines.append(
            f"* {claim}: {', '.join(parts)} of {measured} pairs of model and runtime that were measured"
            f"{mark}{why if few and not place else ''}."
        )
    return "\n".join(lines)


def drift_words(check: Mapping[str, Any]) -> str:
    """What the A/A check of a run says: ``no drift beyond 1.4 %``, ``drift: 0.96 (0.92–0.99)``."""
    if check.get("verdict") == "clean":
        return f"no drift beyond {percent(check['no_drift_beyond'])}"
    ends = span_of(check.get("low"), check.get("high"), times)
    return DASH if check.get("ratio") is None else f"{check['verdict']}: {times(check['ratio'])}{ends}"
