"""Phase 1 of the models whose kinds of token were not compared, in one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import Any

from findings_claims import STAGES, claims_of, drift_words, largest_of, shares_of, verdict_words
from findings_facts import floors
from published import (
    CARD,
    EARLIER,
    MODELS,
    NOT_MEASURED,
    STUDIED,
    Published,
    Run,
    cut_words,
    read,
    table,
    times,
    value,
    who,
)

from vlmbench.records.comparable import turns_taken
from vlmbench.schema import label_of
from vlmbench.text import DASH, count, digits, lasting, percent, whole_ones

_OTHERS = tuple(model for model in MODELS if model not in STUDIED)


def _runs(results: Published) -> Iterator[tuple[str, Run]]:
    """(``MODEL_RUNTIME``, phase 1) of the other models."""
    for name in results.names(_OTHERS):
        if (run := results.run(name, "phase1")) is not None:
            yield name, run


def others_made(results: Published) -> str:
    """Of how many requests the runs are, which library they ran with, and which were continued on another card."""
    runs = [(name, run) for name, run in _runs(results) if not run.mark]
    if not runs:
        return ""
    requests = Counter(run.summary["runs"]["workload_runs"] for _, run in runs)
    usual, _ = requests.most_common(1)[0]
    cut = f" ({', '.join(f'{n:,}' for n in sorted(requests) if n != usual)} where they were cut off)" * (
        len(requests) > 1
    )
    libraries: dict[str, list[str]] = {}
    continued: dict[str, float] = {}
    machines: set[tuple[int, ...]] = set()
    for name, run in runs:
        model, sessions = who(name)[0], run.provenance["sessions"]
        of = libraries.setdefault(str(sessions[0]["software"]["packages"]["transformers"]), [])
        if model not in of:
            of.append(model)
        if len({one["device"]["uuid"] for one in sessions}) > 1:
            continued[model] = sessions[-1]["started_unix_s"] - sessions[0]["ended_unix_s"]
            machines.add(tuple(one["host"]["cores_logical"] for one in sessions))
    (library, _), *others = sorted(libraries.items(), key=lambda one: -len(one[1]))
    with_others = "".join(f", {' and '.join(models)} with {version}" for version, models in others)
    taken = [turns_taken(one) for _, run in runs for one in run.provenance["sessions"]]
    members = sorted({turns["members"] for turns in taken if turns})
    turns = f", {'–'.join(map(str, dict.fromkeys((members[0], members[-1]))))} runs in turns" if members else ""
    words = f"Phase 1 of {usual:,} requests{cut} of 8 output tokens{turns}, with transformers {library}{with_others}."
    if continued:
        words += (
            f" Runs of {', '.join(continued)} were cut off and went on {lasting(median(continued.values()))} later on "
            f"another card of the kind{_machines(machines)}: what differs between the two is in their intervals and in "
            "their A/A."
        )
    return words


def others_earlier(results: Published) -> str:
    """Which rows of the table are of an earlier set; nothing where none is."""
    names = [", ".join(who(name)) for name, run in _runs(results) if run.mark]
    if not names:
        return ""
    rows, are = ("row", "is") if len(names) == 1 else ("rows", "are")
    return f" The {rows} of {'; '.join(names)} {are} of an earlier set{EARLIER}."


def _machines(of: set[tuple[int, ...]]) -> str:
    """How many processors the machines have between which runs moved; nothing where as many, or not one pair."""
    if len(of) != 1 or len(set(each := next(iter(of)))) == 1:
        return ""
    return f", in a machine of {each[-1]} processors instead of {each[0]}"


def others_table(results: Published) -> str:
    """Phase 1 of the other models: how long a request takes, two claims, stages, the decode step."""
    steps = {f"{model}_{runtime}": (entry, over) for model, runtime, entry, _, over in floors(results)}
    rows = []
    for name, run in _runs(results):
        whole = run.summary["distribution"]["T_request"]["workload"]
        n, worth = whole["n"], whole.get("effective_n")
        tail, share, _ = claims_of(results, name)
        shares = shares_of(run)
        step, over = steps.get(name, (None, ""))
        rows.append(
            [
                *who(name),
                f"{n}{cut_words(run)}{'' if worth is None else f', worth {whole_ones(min(worth, n))}'}{run.mark}",
                value(whole.get("p50")),
                verdict_words(tail, times, f"× at {tail.of.upper()}", run),
                verdict_words(share, percent, "", run),
                *(percent(shares.get(stage)) for stage in STAGES),
                DASH if step is None else f"{value(step)}; {over}",
                results.rows(run),
            ]
        )
    heads = (
        "model", "runtime", "requests", "request, median ms", "the tail is the problem", "the LLM is the bottleneck",
        "preprocessing", "vision encoder", "prefill", "decode", "decode, ms a token; × the floor of a copy", "",
    )  # fmt: skip
    return table(heads, rows) if rows else f"{NOT_MEASURED.capitalize()}."


def others_words(results: Published) -> str:
    """What the table shows: which stage is the largest, what capturing changes, whether runs drifted."""
    runs = [(name, run) for name, run in _runs(results) if not run.mark]
    if not runs:
        return ""
    lines = [*_largest(runs), *_captured(results), _steady(runs)]
    return "\n".join(f"* {line}" for line in lines)


def _largest(runs: list[tuple[str, Run]]) -> Iterator[str]:
    for runtime, words in (("eager", "In eager mode,"), ("cudagraph", "Captured,")):
        found: dict[str, list[str]] = {}
        for name, run in runs:
            if name.partition("_")[2] == runtime:
                shares = shares_of(run)
                top = largest_of(shares)
                found.setdefault(top, []).append(f"{who(name)[0]} {percent(shares[top], 2)}")
        if found:
            said = [
                f"{label_of(part)} in {len(names)}" + ("" if part == "T_LLM_decode" else f" ({', '.join(names)})")
                for part, names in sorted(found.items(), key=lambda one: -len(one[1]))
            ]
            yield f"{words} the largest part of a request of 8 output tokens is {'; '.join(said)}."


def _captured(results: Published) -> Iterator[str]:
    """The least and the most that capturing leaves of a whole request, of pairs in turns."""
    found: list[tuple[float, str, dict[str, Any]]] = []
    untold = 0
    for model in _OTHERS:
        content = read(results.results / f"{CARD}_{model}" / "compare_eager_cudagraph.json")
        changes = {} if content is None else {row["metric"]: row for row in content["pairs"][0]["changes"]}
        if (whole := changes.get("T_request")) is None:
            continue
        if whole["ratio"]["low"] is None:
            untold += 1
        else:
            found.append((whole["ratio"]["value"], MODELS[model], whole["ratio"]))
    if found:
        (_, least, low), (_, most, high) = min(found, key=lambda one: one[0]), max(found, key=lambda one: one[0])
        middle = digits(median(one[0] for one in found))
        yield (
            f"A whole request under captured graphs takes {value(low, times)} times ({least}) to {value(high, times)} "
            f"times ({most}) as long as in eager mode, {middle} at the median of {count(len(found), 'model')}"
            f"{f'; of {untold} more the ratio has no interval' if untold else ''} (in turns, request by request)."
        )


def _steady(runs: list[tuple[str, Run]]) -> str:
    checks = [(name, run.summary.get("aa_check") or {}) for name, run in runs]
    found = Counter(str(check.get("verdict")) for _, check in checks)
    drifted = [(", ".join(who(name)), drift_words(check)) for name, check in checks if check.get("verdict") == "drift"]
    missed = max(run.summary["residual"]["median_abs_share"]["value"] for _, run in runs)
    return (
        f"A/A: {found['clean']} of {len(runs)} runs without drift, {found['too noisy']} too noisy to tell"
        f"{', ' * bool(drifted)}{'; '.join(f'{one} in {name}' for name, one in drifted)}. Stages miss the whole by at "
        f"most {percent(missed)} at the median of a run."
    )
