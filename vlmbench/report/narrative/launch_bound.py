"""What traced runs say of the device's waiting, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vlmbench.analysis.launch_bound import LEAST_TRACES, launch_bound_summary, looked_for_kernels
from vlmbench.schema import STAGES
from vlmbench.text import count, digits, factor, ms, percent, plain, span

_WORDS: Mapping[str, str] = {
    stage.name: stage.label if stage.label.startswith("LLM") else stage.label.lower() for stage in STAGES
}


def launch_bound_with_sentences(frame: pd.DataFrame, device_type: str = "") -> dict[str, Any]:
    """The summary of :func:`vlmbench.analysis.launch_bound.launch_bound_summary` with ``sentences``.

    They say what was found, or why there is no share.

    Args:
        frame: rows of a run, or of some of its points.
        device_type: ``cpu``, ``cuda``; empty if not known. It decides what is said where there is no share.
    """
    found = launch_bound_summary(frame)
    whole = next((row for row in found["stages"] if row["stage"] == "total"), None)
    if whole is None:
        traced = looked_for_kernels(frame, device_type)
        return {**found, "sentences": no_share(traced=traced, device_type=device_type)}
    return {**found, "sentences": sentences(whole, found["stages"][:-1])}


def no_share(*, traced: bool, device_type: str) -> list[str]:
    """Why there is no share of waiting.

    Args:
        traced: whether any run was traced.
        device_type: ``cpu``, ``cuda``; empty if not known.
    """
    if device_type == "cpu":
        return ["On a CPU the device is the host: there is no waiting of one for the other."]
    if traced:
        return [
            "How much of generate() the device is busy is not known: the trace shows no kernels (on a CPU there are "
            "none; on a GPU, the profiler may not be allowed to look)."
        ]
    return [
        "How much of generate() the device is busy was not traced: measure with probe=[timeline,memory,clocks,kernels]."
    ]


def sentences(whole: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The finding, with the counts that it rests on and how far a trace was scaled.

    Args:
        whole: row ``total`` of :func:`vlmbench.analysis.launch_bound.launch_table`.
    """
    inside = span(whole["launch_bound_low"], whole["launch_bound_high"], "%")
    traces, runs = whole["traces"], whole["untraced_runs"]
    short, scaling = _scaling(whole)
    first = (
        f"The device is busy {ms(whole['busy_ms'])} ({count(traces, 'trace')}{short}) of the "
        f"{ms(whole['elapsed_ms'])} that generate() takes ({count(runs, 'untraced run')}): "
        f"{percent(whole['launch_bound'])}{f' ({inside})' if inside else ''} is waiting for the host."
    )
    listed = "; ".join(f"{_WORDS[s['stage']]} {percent(s['launch_bound'])} ({s['verdict']})" for s in stages)
    found = [first, f"Waiting by stage: {listed}."]
    if scaling:
        found.append(scaling)
    slower = factor(whole["elapsed_traced_ms"] / whole["elapsed_ms"])
    how = f"Elapsed time is from untraced runs of the same shape (tracing stretches generate() to {slower})."
    if whole["untraced_fewest"] == 1:
        which = "the traced request" if traces == 1 else "each traced request" if runs == traces else "some requests"
        how = (
            f"Elapsed time of {which} is from one untraced run, and no other run has its shape: it may be far from "
            f"typical (tracing stretches generate() to {slower})."
        )
    few = []
    if traces < LEAST_TRACES:
        few.append(
            f"Its interval needs {LEAST_TRACES} traces at least, better five (measurement.trace_requests=5): "
            f"{count(traces, 'trace')} {'does' if traces == 1 else 'do'} not say how busy times differ."
        )
    return [*found, how, *few]


def _scaling(whole: Mapping[str, Any]) -> tuple[str, str]:
    """That a trace holds only part of the decoding: in a few words, and in a sentence; empty where it holds all."""
    traced, steps = whole["traced_steps"], whole["steps"]
    if traced is None or steps is None or whole["scaled_most"] <= 1:
        return "", ""
    most = f"{'up to ' if whole['traces'] > 1 else ''}{digits(whole['scaled_most'])}×"
    part = f"{plain(traced)} of {plain(steps)} decode steps"
    return (
        f", decoding scaled {most}",
        f"Traces hold {part}{' (means)' if whole['traces'] > 1 else ''}; the busy time of a step is taken as the same "
        "in the others, whose attention over a longer cache makes them a little busier.",
    )
