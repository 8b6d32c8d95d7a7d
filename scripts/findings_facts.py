"""What stands first on the page, which run lay on which card, why tails cannot be told, and the floors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median, pvariance
from typing import Any

from findings_levels import CAPTURED
from findings_methods import METHODS
from published import (
    ARCHIVE,
    CARD,
    EARLIER,
    FULL,
    MODELS,
    PROVENANCE,
    RUNTIMES,
    STUDIED,
    Published,
    Run,
    by_request,
    code_of,
    counted,
    pairs_of,
    read,
    span_of,
    table,
    times,
    value,
    who,
)  # fmt: skip

from vlmbench.analysis.claims import MOST, Verdict, tail_is_the_problem
from vlmbench.analysis.shift import shift_in_turns
from vlmbench.records.comparable import turn_ids, turns_taken
from vlmbench.text import DASH, count, digits, percent, whole_ones


def _present(results: Published) -> Iterator[tuple[str, Run]]:
    """(part, run) of all runs on the card that belong to the present set."""
    for folder in sorted(results.results.glob(f"{CARD}_*")):
        for run in results.below(folder):
            if not run.mark and (run.provenance.get("device") or {}).get("type") == "cuda":
                yield folder.name.removeprefix(f"{CARD}_"), run


def _measured(results: Published) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    """(part, directory, provenance) of all that measured of the present set, also where no summary is made of it."""
    for folder in sorted(results.results.glob(f"{CARD}_*")):
        for path in sorted(folder.rglob(PROVENANCE)):
            about = read(path)
            if about and (not results.codes or code_of(about) in results.codes):
                yield folder.name.removeprefix(f"{CARD}_"), path.parent, about


def cards_table(results: Published) -> str:
    """Which part ran on which card from when to when: what stands in a column of time ran at the same time."""
    parts: dict[tuple[str, str], tuple[float, float]] = {}
    turns: dict[str, set[str]] = {}
    processors: dict[str, set[int]] = {}
    for name, place, about in _measured(results):
        if (about.get("device") or {}).get("type") != "cuda":
            continue
        for one in about["sessions"]:
            rows = [] if one.get("ended_unix_s") else counted(place)
            last = [
                float(row["started_unix_s"]) for row in rows if row["session"] == one["session"]
            ]  # of what was cut off
            if ended := one.get("ended_unix_s") or max(last, default=None):
                key = (str((one.get("device") or about["device"]).get("uuid")), name)
                if cores := (one.get("host") or about.get("host") or {}).get("cores_logical"):
                    processors.setdefault(key[0], set()).add(cores)
                begin, end = parts.get(key, (one["started_unix_s"], ended))
                parts[key] = (min(begin, one["started_unix_s"]), max(end, ended))
                turns.setdefault(name, set()).add(turns_taken(one).get("id", name))
    cards: dict[str, list[tuple[float, float, str]]] = {}
    for (uuid, name), (begin, end) in parts.items():
        cards.setdefault(uuid, []).append((begin, end, name))
    ordered = sorted(((sorted(found), uuid) for uuid, found in cards.items()), key=lambda one: one[0][-1])
    rows = [
        [
            f"{place}",
            "; ".join(f"{_clock(begin)}–{_clock(end)} {name.replace('_', ' ')}" for begin, end, name in found),
            _one_by_one(found, turns),
            ", ".join(map(str, sorted(processors.get(uuid, ())))) or DASH,
        ]
        for place, (found, uuid) in enumerate(ordered, start=1)
    ]
    heads = ("card", "runs of the present set, UTC", "one after the other", "processors of its machine")
    return table(heads, rows) if rows else ""


def apart_words(results: Published) -> str:
    """What runs on different cards of a host shared, by the processors on which their requests ended."""
    found: dict[str, set[int]] = {}
    for _, run in _present(results):
        rows = counted(results.results / run.folder)
        places = {int(row["processor"]) for row in rows if row.get("processor") is not None}
        found.setdefault(str(run.provenance["device"].get("uuid")), set()).update(places)
    sides = list(found.values())
    if len(sides) > 1 and all(sides) and sum(map(len, sides)) == len(set.union(*sides)):
        shared = "had processors of its own and shared the rest of the machine"
    else:
        shared = "shared the machine"
    return f"Cards that measured at the same minutes are of one host; what ran on them {shared}{_asked(results)}:"


def _asked(results: Published) -> str:
    """When servers were asked, whose rows name no card."""
    spans: dict[str, list[float]] = {}
    for name, _, about in _measured(results):
        if (about.get("runtime") or {}).get("name") == "endpoint":
            for one in about["sessions"]:
                spans.setdefault(name, []).extend(
                    one[end] for end in ("started_unix_s", "ended_unix_s") if one.get(end)
                )
    said = [f"{_clock(min(ends))}–{_clock(max(ends))} {name.replace('_', ' ')}" for name, ends in spans.items()]
    return f" (rows of a server name no card: {'; '.join(said)})" if said else ""


def _one_by_one(parts: Sequence[tuple[float, float, str]], turns: Mapping[str, set[str]]) -> str:
    """Whether parts of a card followed each other: what overlaps must have taken turns."""
    at_once = [(a[2], b[2]) for a, b in pairwise(parts) if a[1] > b[0]]
    if not at_once:
        return "yes"
    return "yes, or in turns" if all(turns[a] & turns[b] for a, b in at_once) else "no"


def _clock(when: float) -> str:
    return f"{datetime.fromtimestamp(when, UTC):%H:%M}"


def why_open_words(results: Published) -> str:
    """What the tails that cannot be told lack, and where the slow waves are that take it from them."""
    worth, host, model, held, marks = [], 0, 0, 0, set()
    for name in results.names():
        run = results.run(name, "phase1")
        if run is None:
            continue
        if (told := tail_is_the_problem(run.summary)).value is not None:
            held += told.verdict is Verdict.OPEN
            continue
        p90 = run.summary["distribution"]["T_request"]["workload"]["p90"]
        if p90.get("effective_n") is None:
            continue
        worth.append((int(p90["effective_n"]), p90["n"]))
        marks.add(run.mark)
        shares = (run.summary["tail"].get("request") or {}).get("variance_parts") or []
        top = max(shares, key=lambda row: row.get("share") or 0.0, default={})
        if (top.get("low") or 0.0) > MOST:
            host += top["part"] == "T_preprocess"
            model += top["part"] == "T_total"
    if not worth:
        return _lasted(results)
    old = f", all of the earlier set{EARLIER}," if marks == {EARLIER} else ""
    enough = (
        f" In {held} others there are enough, but few of the slow waves, and the interval holds the limit."
        if held
        else ""
    )
    parts = [
        f"of preprocessing on the shared host in {host}" if host else "",
        f"of `generate()` in {model}" if model else "",
    ]
    lie = f"; most of the variance is {' and '.join(filter(None, parts))}" if host or model else ""
    untold = len(worth) - host - model
    where = f"{lie}{f', in {untold} it cannot be told of what' if lie and untold else ''}"
    return (
        f"Why so many tails cannot be told: requests that follow each other are alike, because the machine is slow and "
        f"fast by turns. In {count(len(worth), 'run')}{old} {_one_of([n for _, n in worth])} requests are worth "
        f"{_ends([w for w, _ in worth])} independent ones at P90, which needs 36{where}.{enough} "
        f"Runs that last longer would tell more. {_lasted(results)}".replace("  ", " ").rstrip()
    )


def sizes_words(results: Published) -> str:
    """Which captured runs have requests of several sizes, though the pictures are of about one, and what that makes."""
    said = []
    for model in MODELS:
        run = results.run(f"{model}_cudagraph", "phase1")
        times_of: dict[int, list[float]] = {}
        for row in [] if run is None or run.mark else counted(results.results / run.folder):
            times_of.setdefault(int(row["num_vision_tokens"]), []).append(float(row["T_total"]))
        if max(times_of, default=0) < _UNLIKE * min(times_of, default=1):
            continue
        every = [time for times_ in times_of.values() for time in times_]
        within = sum(pvariance(times_) * len(times_) for times_ in times_of.values())
        sizes = ", ".join(f"{size:,}" for size in sorted(times_of))
        if len(times_of) <= _FEW:
            said.append(
                f"{MODELS[model]} cuts them into {sizes} vision tokens, which make "
                f"{percent(1 - within / (pvariance(every) * len(every)))} of the variance of its captured `generate()`"
            )
    return f" (still, {'; '.join(said)})" if said else ""


_UNLIKE, _FEW = 2, 5  # sizes of pictures that differ so many times, and are so few


def _lasted(results: Published) -> str:
    """Over how long the requests of runs in turns lie, beside those of the others; empty where none took turns."""
    spans: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    for _, run in _present(results):
        if run.folder.name == "phase1" and not run.summary.get("serving"):
            began: dict[Any, list[float]] = {}
            for row in counted(results.results / run.folder):
                began.setdefault(row["session"], []).append(float(row["started_unix_s"]))
            lasted, requests = sum(max(one) - min(one) for one in began.values()), sum(map(len, began.values()))
            spans[bool(turn_ids(run.provenance))].append((lasted, requests))
    if not spans[True]:
        return ""
    said = [
        f"{_ends([n for _, n in found])} requests over {_ends([seconds for seconds, _ in found])} s"
        for kind in (True, False)
        if (found := spans[kind])
    ]
    alone = ", where the one run alone has " if len(spans[False]) == 1 else ", where runs alone have "
    return (
        "Requests of runs that took turns on a card lie further apart in time: "
        f"{alone.join(said)} ([what that is worth](#how-far-can-the-numbers-be-trusted))."
    )


def _ends(numbers: Sequence[float], between: str = " to ") -> str:
    return between.join(f"{end:,.0f}" for end in sorted({min(numbers), max(numbers)}))


def _one_of(numbers: Sequence[float]) -> str:
    """``168 or 900`` where there are two numbers, ``168 to 900`` where others lie between them."""
    return _ends(numbers, " or " if len(set(numbers)) == 2 else " to ")


def short_words(results: Published) -> str:
    """The present set in plain words, a bullet a finding."""
    lines = [*_encoders(results), *_steps(results), *_whole_requests(results), *_promises(results), *_grid(results)]
    return "\n".join(f"* {line}" for line in lines)


def _stage(run: Run, name: str) -> Mapping[str, Any]:
    return next((row for row in run.summary["components"] if row["component"] == name), {})


def _both(results: Published, model: str, one: str, other: str) -> tuple[Run, Run] | None:
    """Two runtimes of a model, both of the present set."""
    first, second = (results.run(f"{model}_{runtime}", "phase1") for runtime in (one, other))
    return (first, second) if first and second and not first.mark and not second.mark else None


def _encoders(results: Published) -> Iterator[str]:
    for model in FULL:
        if (sides := _both(results, model, "cudagraph", "vllm")) is not None:
            ours, theirs = (value(_stage(run, "T_vision_encoder"), key="median") for run in sides)
            yield (
                f"**Vision encoder of {MODELS[model]}:** {ours} ms captured, {theirs} ms under vLLM, whose device "
                f"waits there for {_waits_in(sides[1], 'vision_encoder')} of it ({_requests(results, *sides)})."
            )


def _requests(results: Published, *runs: Run) -> str:
    """How many requests runs have, with a link to the rows of each."""
    return " and ".join(results.rows(run, f"{run.summary['runs']['workload_runs']:,} requests") for run in runs)


def _waits_in(run: Run, stage: str) -> str:
    rows = (run.summary.get("launch_bound") or {}).get("stages") or []
    return next((percent(row["launch_bound"]) for row in rows if row["stage"] == stage), DASH)


def _steps(results: Published) -> Iterator[str]:
    found = [row for row in floors(results) if row[1] == "cudagraph_compiled"]
    if found:
        said = [
            f"{MODELS[model]} {value(entry)} ms, {over} its floor "
            f"({_requests(results, *filter(None, [results.run(f'{model}_{runtime}', 'phase1')]))})"
            for model, runtime, entry, _, over in found
        ]
        yield f"**A decode step, captured and compiled:** {'; '.join(said)} at the rate of a copy."


def _whole_requests(results: Published) -> Iterator[str]:
    for model, other in (("llava", "cudagraph_compiled"), ("llava", "cudagraph"), ("qwen", "cudagraph")):
        found = read(results.results / f"{CARD}_{model}" / f"compare_{other}_vllm.json")
        # those of other hours or another card stand in the table alone
        if found is not None and (pairs := pairs_of(found)) and _both(results, model, other, "vllm"):
            changes = {row["metric"]: row for row in found["pairs"][0]["changes"]}
            whole = changes["T_request"]
            yield (
                f"**A whole request to {MODELS[model]}** takes {value(whole['ratio'], times)} times as long under vLLM "
                f"as under {RUNTIMES[other]} ({digits(whole['candidate_ms'])} and "
                f"{digits(whole['baseline_ms'])} ms at the median, the same {whole['requests']} requests; in turns, "
                f"{count(pairs, 'pair')})."
            )


def _promises(results: Published) -> Iterator[str]:
    kept: dict[str, list[float]] = {}
    untold: dict[str, int] = {}
    marks = {run.mark for *_, run in results.methods()} - {""}
    for _model, method, runtime, run in results.methods():
        for arm in run.summary["arms"]:
            saving = arm["savings"].get("T_total")
            if arm["role"] != "method" or method not in METHODS or (arm["keep"] or 1) >= 1 or saving is None:
                continue
            promised = sum(arm["promised_ms"].values()) if arm["promised_ms"] else 0.0
            saved = saving["saved_ms"]["value"]
            if promised > 0 and saved is not None:
                kind = "eager" if runtime == "eager" else "captured"
                kept.setdefault(kind, []).append(saved / promised)
                untold[kind] = untold.get(kind, 0) + (saving["verdict"] == "no difference")
    said = [
        f"{percent(min(shares), 2)} to {percent(max(shares), 2)} of it in {count(len(shares), 'arm')} {words}"
        f"{f', {untold[kind]} of which cannot be told from no saving' if untold[kind] else ''}"
        for kind, words in (("captured", "that were captured"), ("eager", "in eager mode"))
        if (shares := kept.get(kind))
    ]
    if said:
        yield (
            f"**What FLOPs promise of dropped vision tokens, and what was saved of `generate()`:** {', '.join(said)}"
            f"{f' (some of the earlier set{marks.pop()})' if marks else ''}, by arm in the "
            "[study](study_dropping_tokens.md)."
        ).replace("-", "−")


def _grid(results: Published) -> Iterator[str]:
    for model in MODELS:
        tries = (read(results.results / f"{CARD}_{model}_grid" / "part.json") or {"tries": []})["tries"]
        runs = [run for run in results.below(results.results / f"{CARD}_{model}_grid") if run.summary.get("arms")]
        arms = [arm for run in runs for arm in run.summary["arms"] if arm["role"] == "method"]
        if len(tries) == 1 and not tries[0]["status"] and arms:
            pairs = sorted({arm["pairs"] for arm in arms})
            mark = "".join({run.mark for run in runs})
            yield (
                f"**A grid of {len(arms)} arms** (methods, shares and runtimes of {MODELS[model]}, "
                f"{'–'.join(map(str, pairs))} pairs an arm) took one command and {tries[0]['seconds']} s on one "
                f"card{mark} ([its table](study_dropping_tokens.md#all-of-it-as-one-command))."
            )


def _copy_rates(results: Published) -> list[float]:
    """Bytes a second of copies on cards of this kind, as the benchmark of the captured loop measured them."""
    file = results.results / f"{CARD}_captured" / "cudagraph.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [found["copy_bytes_per_s"] for line in lines if (found := json.loads(line)).get("copy_bytes_per_s")]


def floors(results: Published) -> list[tuple[str, str, Mapping[str, Any], Mapping[str, Any], str]]:
    """(model, runtime, ms a token, decode's cost, × the floor at a copy's rate) of captured loops and vLLM."""
    rates, found = _copy_rates(results), []
    for name in results.names():
        model, _, runtime = name.partition("_")
        run = results.run(name, "phase1")
        if run is None or run.mark or runtime not in (*CAPTURED, "vllm"):
            continue
        cost = next((r for r in run.summary["cost"]["stages"] or [] if r["component"] == "T_LLM_decode"), None)
        tokens = run.summary["tokens"]["num_output_tokens"]
        if cost is None or cost.get("bytes") is None or tokens["min"] != tokens["max"]:
            continue
        steps = tokens["median"] - 1
        stage = _stage(run, "T_LLM_decode")
        entry = {
            end: None if stage.get(key) is None else stage[key] / steps
            for end, key in (("value", "median"), ("low", "median_low"), ("high", "median_high"))
        }
        over = f"{times(entry['value'] / (cost['bytes'] / steps / median(rates) * 1e3))} ×" if rates else DASH
        found.append((model, runtime, entry, {**cost, "steps": steps}, over))
    return found


def floors_table(results: Published) -> str:
    """What a decode step takes over the least time in which its bytes could be read."""
    rows = [
        [
            MODELS[model], RUNTIMES[runtime], value(entry), f"{cost['bytes'] / cost['steps'] / 1e9:.2f}",
            f"{times(cost['over_floor'])} ×"
            + span_of(cost.get("over_floor_low"), cost.get("over_floor_high"), times), over,
        ]
        for model, runtime, entry, cost, over in floors(results)
        if model in STUDIED
    ]  # fmt: skip
    if not rows:
        return ""
    rates = _copy_rates(results)
    between = f"{min(rates) / 1e12:.2f}–{max(rates) / 1e12:.2f}" if rates else DASH
    heads = ("model", "runtime", "decode, ms a token", "GB a step", "× the floor at the datasheet's 4.8 TB/s")
    return (
        f"{table((*heads, 'at the rate of a copy'), rows)}\n\nA floor is a bound: weights and cache read once. A copy "
        f"reads and writes {between} TB/s on such cards ([{len(rates)} runs]({results.link}/{CARD}_captured) on other "
        "cards of the kind; their median is taken)."
    )


def yardstick_words(results: Published) -> str:
    """Whether the machine was as fast under vLLM, by a fixed calculation before each request."""
    under: dict[bool, list[float]] = {True: [], False: []}
    runs = {(model, runtime): results.run(f"{model}_{runtime}", "phase1") for model in MODELS for runtime in RUNTIMES}
    for (model, _), run in runs.items():
        beside = runs[model, "vllm"]
        if run is None or run.mark or beside is None or beside.mark:
            continue
        if not turn_ids(run.provenance) & turn_ids(beside.provenance):
            continue
        rows = counted(results.results / run.folder)
        found = [float(row["yardstick_ms"]) for row in rows if row.get("yardstick_ms") is not None]
        if found:
            under[run.provenance["runtime"]["name"] == "vllm"].append(median(found))
    if not (under[True] and under[False]):
        return ""
    (low, high), (least, most) = ((min(under[kind]), max(under[kind])) for kind in (True, False))
    words = (
        f"A fixed calculation on the host stands before each request: {digits(low)}–{digits(high)} ms by the medians "
        f"of the {count(len(under[True]), 'run')} under vLLM, {digits(least)}–{digits(most)} ms by those of the "
        f"{len(under[False])} others of the same models, in turns with them."
    )
    compared = list(_comparisons(results))
    taken = sum(pairs_of(found) > 0 for found in compared)
    if low > most:
        untold = "; what the machine changed by itself between two that took no turns is not told from it"
        words += (
            " So the same calculation takes longer within vLLM's process, whatever the hour, and these ratios hold "
            f"what that does to other work on the host{'' if taken and taken == len(compared) else untold}."
        )
    if taken:
        words += (
            f" {taken} of the {count(len(compared), 'comparison')}, other models with them, are of runs that took "
            "turns, a few requests each: what the machine did by itself befell both."
        )
    if any(row["change"] == "machine" for found in compared for row in found["pairs"][0]["changes"]):
        words += f" {MACHINE} marks a ratio that a change of the machine may explain."
    return words


def _comparisons(results: Published) -> Iterator[Mapping[str, Any]]:
    """The stored comparisons of two runtimes."""
    for model in MODELS:
        for path in (results.results / f"{CARD}_{model}").glob("compare_*.json"):
            if (found := read(path)) is not None:
                yield found


def turns_words(results: Published) -> str:
    """What turns did: how wide ratios of runs in turns are beside those of runs without anything in common, and what
    requests are worth in turns and alone.
    """
    shares = []
    for model in MODELS:
        for path in sorted((results.results / f"{CARD}_{model}").glob("compare_*.json")):
            if not pairs_of(read(path) or {"pairs": [{}]}):
                continue
            one, other = (results.results / f"{CARD}_{name}" for name in _sides(model, path.stem))
            times_of = [by_request(side / "phase1", "T_request") for side in (one, other)]
            names = [name for name in times_of[0] if name in times_of[1]]  # in the order measured
            ours, theirs = ([side[name] for name in names] for side in times_of)
            alone = [1.0] * len(names)
            both, *apart = (_width(*pair, names) for pair in ((ours, theirs), (alone, ours), (alone, theirs)))
            if both is not None and None not in apart:
                shares.append(both / math.hypot(*(width for width in apart if width is not None)))
    if not shares:
        return ""
    ends = [f"{end(shares):.2f}" for end in (min, max)]
    said = [
        f"{count(len(found), 'request')} over {found[-1] - found[0]:,.0f} s {words}, worth "
        f"{whole_ones(run.summary['distribution']['T_request']['workload']['effective_n'])}"
        for words, run in (
            ("in turns", results.at(Path(f"{CARD}_{_ALONE}") / "phase1")),
            (f"alone, of an earlier set{EARLIER}", results.at(Path(ARCHIVE) / f"{CARD}_{_ALONE}" / "phase1")),
        )
        if run is not None
        and (found := sorted(float(row["started_unix_s"]) for row in counted(results.results / run.folder)))
    ]
    lone = (
        f" Whether a run by itself is known better for them these rows do not tell: {', '.join(who(_ALONE))}, has "
        f"{', and '.join(said)}."
    )
    return (
        "* What turns did: a change of the machine that outlasts a turn is in both runs and so not in their ratio. The "
        f"intervals of `T_request` are {' to '.join(dict.fromkeys(ends))} times as wide as the same two runs would "
        f"have if they had nothing in common ({count(len(shares), 'comparison')})."
        f"{lone if len(said) > 1 else ''}"
    )


_ALONE = "llava_cudagraph"  # a run that the archive has as well, measured alone


def _sides(model: str, stem: str) -> tuple[str, str]:
    """The parts that ``compare_ONE_OTHER`` is of."""
    said = stem.removeprefix("compare_")
    other = next(name for name in sorted(RUNTIMES, key=len, reverse=True) if said.endswith(f"_{name}"))
    return f"{model}_{said.removesuffix(f'_{other}')}", f"{model}_{other}"


def _width(first: Sequence[float], second: Sequence[float], names: Sequence[str]) -> float | None:
    """How wide the interval of a ratio of times is, on the logarithmic scale."""
    found = shift_in_turns(first, second, names).estimate
    return None if found.low is None or found.high is None else math.log(found.high / found.low)


MACHINE = "‡"
