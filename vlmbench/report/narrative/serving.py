"""What a run against a server says, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmbench.text import count, digits, ms, percent, span

WHAT_IT_GIVES = "What does the server give under this load?"
WHAT_IT_SAYS = "What does the server say of itself?"
WHAT_PAIRS_SAY = "What do paired requests say?"

NOT_SEEN = (
    "A server shows no stages: vision encoder, projector, prefill and decode of a request are absent here, not zero. "
    "TTFT holds the upload, preprocessing, queue, encoder and prefill together."
)
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


def doubts(serving: Mapping[str, Any]) -> list[str]:
    """What limits the answers: the client, the server's caches, other users of it."""
    found = []
    for point in serving["points"]:
        name = _name(serving, point)
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


def _name(serving: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    load = serving["load"]
    users = point.get("axis_load.concurrency") or (load["concurrency"] if load["name"] == "closed" else None)
    rate = point.get("axis_load.rate_per_s") or (load["rate_per_s"] if load["name"] == "open" else None)
    what = f"with {count(int(users), 'user')}" if users else "one after the other"
    what = f"with {digits(float(rate))} arrivals a second" if rate else what
    which = str(point["point_id"]).partition(",")[0]
    return f"{'One request, repeated' if which == 'reference' else 'Requests'} {what}"


def _point(serving: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
    name, sentences = _name(serving, point), []
    if point["requests_per_s"] is None:
        sentences.append(f"{name}: too short for a rate ({count(point['requests'], 'answer')}).")
    else:
        sentences.append(
            f"{name}: {_with(point, 'requests_per_s', 'answers a second')}, "
            f"{_with(point, 'tokens_per_s', 'tokens a second')} in all, "
            f"{_with(point, 'tokens_per_s_user', 'a second for each user')}."
        )
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
