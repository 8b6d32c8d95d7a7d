"""Which settings answer within a budget: every point of measured sweeps against a limit on one of its percentiles.

A setting *fits* when the upper end of the 95 % interval of its percentile is within the budget, is *over* when the
lower end is beyond it, and *cannot be told* else. Of the settings that fit, those are chosen that no other fitting one
matches or beats in every amount (vision tokens, kept tokens, images, output tokens, requests a batch). The front is
what one pays for more: settings for which no other of the same model has as much of everything for less time.

A promise (the chosen setting stays within the budget) is checked on runs made for that: the settings were chosen
because they looked quick, so their own runs cannot be asked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd

from vlmbench.analysis import frames
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.quantiles import needed, quantile
from vlmbench.analysis.results import ResultSet
from vlmbench.errors import InputError
from vlmbench.records.comparable import identity, varying
from vlmbench.text import digits, ms, plain, span

AMOUNTS: Mapping[str, tuple[str, ...]] = {
    "vision tokens": ("num_vision_tokens", "num_cross_attention_tokens"),
    "kept tokens": ("num_vision_tokens_kept",),
    "images": ("num_images",),
    "prompt tokens": ("num_prompt_tokens",),
    "output tokens": ("num_output_tokens",),
    "batch": ("axis_batch_size",),
}
"""What one wants much of, and the columns that hold it, the first with values."""
_MACHINE = ("device.", "software.", "load.")
_NAMED = 3


class Fit(StrEnum):
    """How a setting stands to the budget."""

    FITS = "fits"
    OVER = "over"
    UNTOLD = "cannot be told"


class Promise(StrEnum):
    """What became of a promise."""

    KEPT = "kept"
    BROKEN = "broken"
    UNTOLD = "cannot be told"


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One point of a sweep.

    Args:
        run: directory or file that its rows come from.
        point: its id there.
        model, runtime: names.
        axes: what the sweep aimed at.
        amounts: name of :data:`AMOUNTS` to the observed count.
        latency: the percentile, ms; of a prediction the expected time, without an interval.
        predicted: whether it was predicted, not measured.
        fit: how it stands to the budget.
        chosen: whether no other fitting setting has as much of everything.
        front: whether no other setting has as much of everything for less time.
        note: why it cannot be had (too large for the memory).
    """

    run: Path
    point: str
    model: str
    runtime: str
    axes: Mapping[str, Any]
    amounts: Mapping[str, float]
    latency: Estimate
    predicted: bool = False
    fit: Fit = Fit.UNTOLD
    chosen: bool = False
    front: bool = False
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What names it: its run and its point."""
        return str(self.run), self.point

    def has_as_much(self, other: Setting) -> bool:
        """Whether it is of the same model and has at least as much of everything."""
        names = {*self.amounts, *other.amounts}
        return self.model == other.model and all(self.amounts.get(n, 0) >= other.amounts.get(n, 0) for n in names)


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """A promise and what runs made for it say.

    Args:
        setting: whose promise.
        measured: the percentile of the new runs.
        promise: what became of it.
    """

    setting: Setting
    measured: Estimate
    promise: Promise

    def words(self, limit_ms: float, name: str) -> str:
        """``promised P95 ≤ 40 ms, measured 36 ms (34 to 39 ms): kept``."""
        inside = span(self.measured.low, self.measured.high) or self.measured.note
        found = ms(self.measured.value) if self.measured.value is not None else "nothing"
        return f"promised {name} ≤ {ms(limit_ms)}, measured {found} ({inside}): {self.promise}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Budget:
    """Everything that was found.

    Args:
        limit_ms: the budget. percentile: 95 for P95. metric: which time.
        settings: the quickest first.
        checks: of those chosen settings that were measured again.
        notes: what a reader must know: what was not measured again and why.
        differs: amounts, and ``runtime`` and ``model``, that differ between settings.
    """

    limit_ms: float
    percentile: float
    metric: str
    settings: tuple[Setting, ...]
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    differs: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """``P95 of T_request``; of predictions ``expected T_total``."""
        predicted = any(one.predicted for one in self.settings)
        return f"expected {self.metric}" if predicted else f"P{plain(self.percentile)} of {self.metric}"

    @property
    def chosen(self) -> list[Setting]:
        """The chosen settings, those nearest to the budget last."""
        return [one for one in self.settings if one.chosen]


def settings_of(runs: Sequence[ResultSet], *, metric: str, percentile: float) -> list[Setting]:
    """Every point of the runs that was measured, with its percentile.

    Args:
        metric: column of the time, ms.
        percentile: between 0 and 100.
    """
    return [one for run in runs for one in _of_run(run, metric, percentile)]


def _of_run(run: ResultSet, metric: str, percentile: float) -> Iterator[Setting]:
    frame = run.frame
    rows = frame[frame["status"].astype(object).eq("ok")]
    if "mode" in rows:
        rows = rows[rows["mode"].astype(object).eq("instrumented")]
    if metric not in rows or "point_id" not in rows:
        return
    axes = [name for name in rows if str(name).startswith("axis_")]
    kinds = rows["point_id"].astype(object).str.split(",").str[0]
    rows = rows[~kinds.isin([frames.REFERENCE, "paired"])]
    kept, seen = AMOUNTS["kept tokens"][0], AMOUNTS["vision tokens"][0]
    if kept in rows and rows[kept].notna().any():  # the arm that drops none keeps what it sees
        rows = rows.assign(**{kept: rows[kept].fillna(rows[seen])})
    for point, part in rows.groupby(rows["point_id"].astype(object), sort=False):
        codes = frames.sample_codes(part) if part["sample_id"].nunique() > 1 else None
        yield Setting(
            run=run.path,
            point=str(point),
            model=_name(run.provenance, "model"),
            runtime=_name(run.provenance, "runtime"),
            axes={str(n).removeprefix("axis_"): part[n].iloc[0] for n in axes if part[n].notna().any()},
            amounts=dict(_amounts(part)),
            latency=quantile(frames.values(part, metric), percentile / 100, clusters=codes),
        )


def _amounts(part: pd.DataFrame) -> Iterator[tuple[str, float]]:
    for name, columns in AMOUNTS.items():
        for column in columns:
            if column in part and part[column].notna().any() and float(part[column].median()) > 0:
                yield name, float(part[column].median())
                break


def _name(provenance: Mapping[str, Any], part: str) -> str:
    section = provenance.get(part)
    return str((section.get("name") if isinstance(section, Mapping) else None) or "")


def refuse_machines(runs: Sequence[ResultSet]) -> None:
    """A budget is of one machine.

    Raises:
        InputError: the runs are of several; the message says what differs.
    """
    differ = {n: v for n, v in varying([identity(run.provenance) for run in runs]).items() if n.startswith(_MACHINE)}
    if differ:
        told = "; ".join(f"{name}: {' and '.join(map(str, values))}" for name, values in list(differ.items())[:_NAMED])
        raise InputError(
            f"these runs are of different machines, and a budget is of one: {told}\n"
            "Name runs of one machine, or set allow_unlike=true if you mean it."
        )


def solve(
    settings: Sequence[Setting], *, limit_ms: float, percentile: float, metric: str, notes: Sequence[str] = ()
) -> Budget:
    """Judge each setting, choose among those that fit, and find the front. Nothing need fit."""
    judged = [replace(one, fit=_fit(one, limit_ms)) for one in settings]
    known = [one for one in judged if one.latency.value is not None]
    fitting = [one for one in judged if one.fit is Fit.FITS]
    found = Budget(limit_ms=limit_ms, percentile=percentile, metric=metric, settings=tuple(judged), notes=tuple(notes))
    made = [
        replace(
            one, chosen=one in fitting and not _is_beaten(one, fitting), front=one in known and _on_front(one, known)
        )
        for one in judged
    ]
    made.sort(key=lambda one: float("inf") if one.latency.value is None else one.latency.value)
    return replace(found, settings=tuple(made), differs=tuple(_differs(made)))


def _fit(one: Setting, limit_ms: float) -> Fit:
    latency = one.latency
    if one.note:
        return Fit.OVER
    if one.predicted and latency.value is not None:
        return Fit.FITS if latency.value <= limit_ms else Fit.OVER
    if latency.low is None or latency.high is None:
        return Fit.UNTOLD
    return Fit.FITS if latency.high <= limit_ms else Fit.OVER if latency.low > limit_ms else Fit.UNTOLD


def _is_beaten(one: Setting, others: Sequence[Setting]) -> bool:
    """Whether another has more of something and no less of anything, or the same for less time."""
    for other in others:
        if other is one or not other.has_as_much(one):
            continue
        if not one.has_as_much(other) or (other.latency.value or 0) < (one.latency.value or 0):
            return True
    return False


def _on_front(one: Setting, others: Sequence[Setting]) -> bool:
    mine = one.latency.value or 0
    return not any(
        other is not one and other.has_as_much(one) and (other.latency.value or 0) < mine for other in others
    )


def _differs(settings: Sequence[Setting]) -> Iterator[str]:
    for name in AMOUNTS:
        if len({one.amounts.get(name) for one in settings}) > 1:
            yield name
    for name in ("runtime", "model"):
        if len({getattr(one, name) for one in settings}) > 1:
            yield name


def refuse_if_nothing_fits(found: Budget) -> None:
    """Say why nothing fits, and what to ask for instead.

    Raises:
        InputError: the budget is below the cheapest setting, or the percentile cannot be told.
    """
    if found.chosen:
        return
    known = [one for one in found.settings if one.latency.value is not None]
    if not known:
        notes = dict.fromkeys(one.latency.note for one in found.settings if one.latency.note)
        why = "; ".join(list(notes)[:_NAMED]) or "nothing was measured"
        worth = max((one.latency.effective_n or one.latency.n for one in found.settings), default=0)
        lower = next((p for p in (95, 90, 50) if p < found.percentile and needed(p / 100) <= worth), 50)
        raise InputError(
            f"the {found.name} cannot be told at any setting: {why}\n"
            f"Measure more runs of each (measurement.stopping.min_samples=…), or ask for less: percentile={lower}."
        )
    cheapest = min(known, key=lambda one: one.latency.value or 0)
    value, inside = ms(cheapest.latency.value), span(cheapest.latency.low, cheapest.latency.high)
    told = f"{found.name} of the cheapest setting ({cheapest.point}) is {value}" + (f" ({inside})" if inside else "")
    if all(one.fit is Fit.OVER for one in found.settings):
        raise InputError(
            f"latency_ms={plain(found.limit_ms)} is below what the cheapest setting takes: the {told}\n"
            f"Ask for latency_ms={digits(_above(cheapest))} or more, or sweep smaller settings."
        )
    raise InputError(
        f"no setting surely fits into {ms(found.limit_ms)}: the {told}\n"
        f"Measure more runs, or ask for latency_ms={digits(_above(cheapest))} or more."
    )


def _above(one: Setting) -> float:
    """The least budget that a setting surely keeps, rounded up a little: what is asked for must be enough."""
    return 1.01 * float(one.latency.high if one.latency.high is not None else one.latency.value or 0)


def checked(found: Budget, again: Mapping[tuple[str, str], Estimate], notes: Sequence[str] = ()) -> Budget:
    """With what runs made for it say of each promise.

    Args:
        again: key of a setting to its percentile in the new runs.
        notes: what was not measured again, and why.
    """
    made = []
    for one in found.chosen:
        if (measured := again.get(one.key)) is not None:
            promise = {Fit.FITS: Promise.KEPT, Fit.OVER: Promise.BROKEN, Fit.UNTOLD: Promise.UNTOLD}[
                _fit(replace(one, latency=measured), found.limit_ms)
            ]
            made.append(Check(setting=one, measured=measured, promise=promise))
    return replace(found, checks=tuple(made), notes=(*found.notes, *notes))
