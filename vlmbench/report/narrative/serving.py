"""What a run against a server says, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.engines.endpoint.dialects import IN_PROCESS
from vlmbench.report.narrative.pieces import Sentence, bold, ci
from vlmbench.text import count, digits, ms, percent, span

WHAT_IT_GIVES = "What does the server give under this load?"
WHAT_IT_SAYS = "What does the server say of itself?"
WHAT_PAIRS_SAY = "What do paired requests say?"

NOT_SEEN = (
    "A server shows no stages: vision encoder, projector, prefill and decode of a request are absent here, not zero. "
    "TTFT holds the upload, preprocessing, queue, encoder and prefill together."
)
NOT_SPLIT = (
    "Under a load the steps of the engine serve several requests at once, and none of their time is split among them: "
    "vision encoder, projector, prefill and decode of a request are absent here, not zero. TTFT counts from when a "
    "request is due and holds queue, encoder and prefill; inputs are made ahead of that (T_preprocess_ahead)."
)
_LOADS = 2
_FLAGS: Mapping[str, str] = {
    "server_shared": "the server finished another number of requests than this client sent: others use it too",
    "image_cache_hits": "the server took images from its cache: the encoder did not run for all requests",
    "prefix_cache_hits": "the server took prompt tokens from its prefix cache",
}


def answers(serving: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(question, sentences) on throughput, on the server's own figures, and on paired requests where some were sent."""
    found = [(WHAT_IT_GIVES, [sentence for point in serving["points"] for sentence in _point(serving, point)])]
    if serving["server_figures"]:
        found.append((WHAT_IT_SAYS, [_figure(name, entry) for name, entry in serving["server_figures"].items()]))
    if serving["pairs"]:
        first = "Differences of two runs each, in random order; none of them is a stage of a request."
        found.append((WHAT_PAIRS_SAY, [first, *map(_pair, serving["pairs"])]))
    return found


def not_seen(serving: Mapping[str, Any]) -> str:
    """What the rows of a load cannot show."""
    return NOT_SPLIT if serving["server"].get("dialect") == IN_PROCESS else NOT_SEEN


def first_words(serving: Mapping[str, Any]) -> list[Sentence]:
    """Say in three sentences what several loads did to a server: waiting, throughput, what stays within the limits.

    Empty for a single load, whose latencies can be told as they are.
    """
    points = [p for p in serving.get("points") or [] if not str(p["point_id"]).startswith("reference")]
    timed = [p for p in points if p.get("TTFT_p50") is not None and p.get("requests_per_s") is not None]
    if len(timed) < _LOADS:
        return []
    low, high = (pick(timed, key=lambda p: float(p["requests_per_s"])) for pick in (min, max))
    said: list[Sentence] = [
        [
            *_at_load(serving, low, "The first token comes after "),
            *_at_load(serving, high, "; after "),
            ", at the median.",
        ],
        [
            "The most that was answered is ",
            *_rate(high, "requests"),
            " and ",
            *_rate(high, "tokens"),
            f" a second, {_with_load(serving, high)}.",
        ],
    ]
    return [*said, _within(serving, points)]


def _at_load(serving: Mapping[str, Any], point: Mapping[str, Any], begin: str) -> Sentence:
    inside = span(point.get("TTFT_p50_low"), point.get("TTFT_p50_high")).removesuffix(" ms")
    return [begin, bold(ms(point["TTFT_p50"])), *ci(inside), f" {_with_load(serving, point)}"]


def _rate(point: Mapping[str, Any], what: str) -> Sentence:
    """``60.5 requests (55.4–65.7)``."""
    name = f"{what}_per_s"
    inside = span(point.get(f"{name}_low"), point.get(f"{name}_high")).removesuffix(" ms")
    return [bold(f"{digits(point[name])} {what}"), *ci(inside)]


def _with_load(serving: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """``with 4 users``, ``with 2 arrivals a second``."""
    return load_name(serving, point).partition("Requests ")[2]


def _within(serving: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Sentence:
    """Which load gives most answers within the limits, where there are limits."""
    limits = ", ".join(f"{n.upper()} ≤ {v:g} ms" for n, v in (serving.get("limits") or {}).items() if v is not None)
    good = [p for p in points if p.get("goodput_per_s") is not None]
    if not limits or not good:
        return ["How much of that is good enough was not asked: no limit of latency was set (load.ttft_limit_ms=…)."]
    best = max(good, key=lambda p: float(p["goodput_per_s"]))
    inside = span(best.get("good_share_low"), best.get("good_share_high"), "%").removesuffix(" %")
    return [
        f"Within {limits} most are answered {_with_load(serving, best)}: ",
        bold(f"{digits(best['goodput_per_s'])} a second"),
        f", {percent(best['good_share'])}",
        *ci(inside),
        " of its answers.",
    ]


def why_doubtful(point: Mapping[str, Any]) -> list[str]:
    """Why what a load gave may not be the server's doing.

    Args:
        point: one of ``points`` of the summary.
    """
    found = [str(flag).replace("_", " ") for flag in point.get("flags") or []]
    if point.get("client_in_the_way"):
        found.append("the client may be the bottleneck")
    if point.get("saturated"):
        found.append("the server did not keep up")
    return found


def doubts(serving: Mapping[str, Any]) -> list[str]:
    """What limits the answers: the client, the server's caches, other users of it."""
    found = []
    for point in serving["points"]:
        name = load_name(serving, point)
        found += [f"{name}: {_FLAGS.get(flag, flag)}." for flag in point["flags"]]
        if point["client_in_the_way"]:
            found.append(f"{name}: the client may be the bottleneck: {'; '.join(point['client_in_the_way'])}.")
        if point["saturated"]:
            found.append(f"{name}: {point['saturated']}; latencies grow as long as it lasts.")
    if serving["server"].get("cache") == "keep":
        found.append("Images were sent as they are (runtime.cache=keep): a repeated one may come out of a cache.")
    if serving["load"].get("name") == "closed":
        found.append(
            "A closed loop waits for the server: requests that would have come during a stall are not sent, so the "
            "tail is what waiting users see, not what arrivals would (load=open)."
        )
    return found


def load_name(serving: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """Name a load: ``Requests with 4 users``."""
    load = serving["load"]
    users = point.get("axis_load.concurrency") or (load["concurrency"] if load["name"] == "closed" else None)
    rate = point.get("axis_load.rate_per_s") or (load["rate_per_s"] if load["name"] == "open" else None)
    what = f"with {count(int(users), 'user')}" if users else "one after the other"
    what = f"with {rate:g} arrival{'' if rate == 1 else 's'} a second" if rate else what
    what = "with the arrivals of a trace" if load["name"] == "open" and load.get("arrivals") == "trace" else what
    others = (f"{n.removeprefix('axis_')} {v:g}" for n, v in point.items() if _turned(n, v))
    what = ", ".join([what, *others])
    which = str(point["point_id"]).partition(",")[0]
    return f"{'One request, repeated' if which == 'reference' else 'Requests'} {what}"


def swept_load(serving: Mapping[str, Any]) -> bool:
    """Whether the run turned the load itself."""
    return any(n.startswith("axis_load.") and v is not None for point in serving["points"] for n, v in point.items())


def _turned(name: str, value: object) -> bool:
    """Whether an entry of a point is an axis, other than the load, that the sweep turned."""
    return name.startswith("axis_") and not name.startswith("axis_load.") and isinstance(value, int | float)


def _point(serving: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
    name, sentences = load_name(serving, point), []
    if point["requests_per_s"] is None:
        sentences.append(f"{name}: too short for a rate ({count(point['requests'], 'answer')}).")
    else:
        sentences.append(
            f"{name}: {_with(point, 'requests_per_s', 'answers a second')}, "
            f"{_with(point, 'tokens_per_s', 'tokens a second')} in all, "
            f"{_with(point, 'tokens_per_s_user', 'a second for each user')}."
        )
    if swept_load(serving) and point.get("TTFT_p50") is not None:
        whole = f", a request takes {ms(point['T_request_p50'])}" if point.get("T_request_p50") is not None else ""
        sentences.append(f"There the first token comes after {ms(point['TTFT_p50'])}{whole}, at the median.")
    if point.get("good_share") is not None:
        limits = ", ".join(f"{n.upper()} ≤ {v:g} ms" for n, v in serving["limits"].items() if v is not None)
        rate = "" if point.get("goodput_per_s") is None else f": goodput {digits(point['goodput_per_s'])} a second"
        inside = span(point["good_share_low"], point["good_share_high"], "%")
        sentences.append(f"{percent(point['good_share'])} of them ({inside}) stay within {limits}{rate}.")
    if point["errors"]:
        kinds = ", ".join(f"{kind} {number}" for kind, number in point["errors_by_class"].items())
        sentences.append(f"{count(point['errors'], 'attempt')} failed: {kinds}.")
    return sentences


def _with(point: Mapping[str, Any], name: str, unit: str) -> str:
    value = point.get(name)
    if value is None:
        return f"unknown {unit}"
    low, high = point.get(f"{name}_low"), point.get(f"{name}_high")
    inside = "" if low is None or high is None else f" ({digits(low)}–{digits(high)})"
    return f"{digits(value)}{inside} {unit}"


def _figure(name: str, entry: Mapping[str, Any]) -> str:
    value = ms(entry["value"]) if entry["unit"] == "ms" else digits(entry["value"])
    inside = span(entry["low"], entry["high"]) if entry["unit"] == "ms" else ""
    return f"{name}: {value}{f' ({inside})' if inside else ''} at the median; {entry['meaning']}."


def _pair(entry: Mapping[str, Any]) -> str:
    inside = span(entry["low"], entry["high"])
    shown = f"{ms(entry['difference'])} ({inside})" if inside else f"{ms(entry['difference'])} ({entry['note']})"
    tokens = [entry.get(f"prompt_tokens_{side}") for side in ("first", "second")]
    prompts = f"; prompts of {tokens[0]:,.0f} and {tokens[1]:,.0f} tokens" if None not in tokens else ""
    return f"{entry['question']} {shown}, {count(entry['pairs'], 'pair')} ({entry['metric']}{prompts})."
