"""A comparison of two sides as text, JSON, Markdown for a pull request, a LaTeX table and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmbench.analysis.compare import StageChange
from vlmbench.analysis.provenance_changes import KINDS
from vlmbench.analysis.two_sides import Pair, Verdict, regressed
from vlmbench.errors import BAD_INPUT, FAILED
from vlmbench.records.files import write_json, write_whole
from vlmbench.report.paper_tables import markdown, tex
from vlmbench.report.table_cells import Grid
from vlmbench.report.templating import environment
from vlmbench.report.terminal_tables import Fitted, as_text
from vlmbench.text import DASH, count, digits, factor, plain, shown, span, whole_ones

STEM = "compare"
_MOST = 8  # differences of a kind that are named; compare.json has all


def text(verdict: Verdict) -> str:
    """Everything for a terminal, in its width: differences, then verdicts stage by stage, then the verdict."""
    parts: list[str] = []
    for pair in verdict.pairs:
        parts += [heading(pair), *_indented([*differences(pair), *pair.remarks]), ""]
        parts.append(as_text(Fitted(grid(pair, verdict), elsewhere="output_dir=DIR writes them.")))
        parts += [f"{pair.comparison.words()[0]}", ""]
    parts += _left_out(verdict)
    if verdict.exit_status != BAD_INPUT:  # else the last words, on the error output, say why
        parts += _sentences(verdict)
    return "\n".join(parts)


def heading(pair: Pair) -> str:
    """``llava_1_5_7b, eager: A (baseline) against B (candidate)``."""
    label = f"{pair.label}: " if pair.label else ""
    return f"{label}{shown(pair.baseline.path)} (baseline) against {shown(pair.candidate.path)} (candidate)"


def differences(pair: Pair) -> list[str]:
    """What the two differ in besides times, a line a kind; one line where nothing is known to differ."""
    lines = []
    for kind in KINDS:
        found = [one.words() for one in pair.differences if one.kind == kind]
        more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
        if found:
            lines.append(f"{kind}: {'; '.join(found[:_MOST])}{more}")
    return lines or ["hardware, model, software, settings and work: no difference is known"]


def grid(pair: Pair, verdict: Verdict, name: str = STEM) -> Grid:
    """The verdict on each stage, the whole first."""
    threshold, gate = verdict.threshold, verdict.gate
    rows = []
    for change in pair.comparison.changes.values():
        ratio = change.ratio
        effective = ratio.effective_n
        worth = f"{ratio.n:,}" if effective is None else f"{whole_ones(min(effective, ratio.n))} of {ratio.n:,}"
        said = change.verdict().partition(" (")[0]
        decides = change.metric in gate
        if not decides:
            said = f"{said} (shown only)"
        rows.append(
            (
                change.metric,
                digits(change.baseline_ms),
                digits(change.candidate_ms),
                factor(ratio.value),
                span(ratio.low, ratio.high, "×").removesuffix("×") or DASH,
                f"{said}, regression" if decides and regressed(change, threshold) else said,
                worth,
            )
        )
    label = f"{pair.label}: " if pair.label else ""
    how = "ratio: by request; worth: independent runs"
    if pairs := pair.comparison.pairs:
        how = f"ratio: in turns, {count(pairs, 'pair')}; worth: independent pairs"
    return Grid(
        name=name,
        title=f"{label}Candidate over baseline (ms: medians of all runs; {how})",
        columns=(
            ("time", False),
            ("baseline", True),
            ("candidate", True),
            ("ratio", True),
            ("95 % interval", True),
            ("verdict", False),
            ("worth", True),
        ),
        rows=tuple(rows),
    )


def headline(verdict: Verdict) -> str:
    """The verdict in a sentence."""
    beyond = _threshold(verdict)
    if verdict.exit_status == FAILED:
        slow = [
            f"{f'{pair.label}: ' if pair.label else ''}{change.metric} {factor(change.ratio.value)} "
            f"({span(change.ratio.low, change.ratio.high, '×')})"
            for pair, change in verdict.regressions
        ]
        return f"Regression beyond {beyond}: {', '.join(slow)}."
    if verdict.by_machine:
        names = _names(verdict.by_machine)
        return f"Cannot be compared: the machine changed, which may explain or hide a change of {names}."
    if verdict.nothing_told:
        note = next((c.ratio.note for p in verdict.pairs for c in p.comparison.changes.values() if c.ratio.note), "")
        return f"Cannot be compared: every time is too noisy to tell{f' ({note})' if note else ''}."
    if verdict.exit_status == BAD_INPUT:
        alone = count(len(verdict.uncompared), "run")
        return f"Cannot be compared as a whole: without a counterpart in the candidate: {alone} of the baseline."
    return f"No regression beyond {beyond}."


def advice(verdict: Verdict) -> str:
    """What to do where not everything could be compared."""
    if verdict.by_machine:
        return "Measure both again in turns (measurement.turns), or on a machine with nothing else to do."
    if verdict.nothing_told:
        return "Measure more requests or repeats, on a quieter machine."
    return "Measure what is missing, or name the runs that belong together: baseline=DIR/RUN candidate=DIR/RUN."


def _threshold(verdict: Verdict) -> str:
    return f"{plain(verdict.threshold * 100)} %"


def _sentences(verdict: Verdict) -> Iterator[str]:
    """The verdict, and where it does not reach."""
    yield headline(verdict)
    if verdict.exit_status == BAD_INPUT:
        yield advice(verdict)
    elif unsure := verdict.unsure:
        yield f"One beyond {_threshold(verdict)} could go unseen in {_names(unsure)}."


def _names(found: Sequence[tuple[Pair, StageChange]]) -> str:
    """``T_total, TTFT``; of several pairs ``llava, eager: T_total; qwen, eager: TTFT``."""
    by_pair: dict[str, list[str]] = {}
    for pair, change in found:
        by_pair.setdefault(f"{pair.label}: " if pair.label else "", []).append(change.metric)
    return "; ".join(f"{label}{', '.join(metrics)}" for label, metrics in by_pair.items())


def _left_out(verdict: Verdict) -> Iterator[str]:
    yield from (f"Not compared: {words}" for words in verdict.uncompared)
    yield from (f"Only in the candidate: {words}" for words in verdict.only_candidate)


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def write(verdict: Verdict, directory: Path) -> list[Path]:
    """Write ``compare.json``, ``compare.md``, and of each pair ``compare.tex`` and a figure (numbered where several).

    Raises:
        MeasurementError: a file cannot be written.
    """
    from vlmbench.figures.comparison import comparison_figure
    from vlmbench.figures.theme import save

    template = environment().get_template("table.tex.j2")
    files = [
        write_json(directory / f"{STEM}.json", as_dict(verdict)),
        write_whole(directory / f"{STEM}.md", as_markdown(verdict)),
    ]
    for number, pair in enumerate(verdict.pairs, start=1):
        stem = STEM if len(verdict.pairs) == 1 else f"{STEM}_{number}"
        table = grid(pair, verdict, stem)
        files.append(write_whole(directory / f"{stem}.tex", template.render(grid=table, tex=tex, stem=stem)))
        figure = comparison_figure(
            list(pair.comparison.changes.values()),
            pair.candidate.provenance,
            threshold=verdict.threshold,
            requests=pair.comparison.requests,
        )
        files += save(figure, directory, stem)
    return files


def as_markdown(verdict: Verdict) -> str:
    """For a pull request: the verdict, what differs besides times, a table a pair."""
    parts = [f"### {headline(verdict)}"]
    for pair in verdict.pairs:
        parts.append("\n".join([heading(pair), "", *(f"* {line}" for line in [*differences(pair), *pair.remarks])]))
        parts += [markdown(grid(pair, verdict)), pair.comparison.words()[0]]
    parts += [*_left_out(verdict), *list(_sentences(verdict))[1:]]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def as_dict(verdict: Verdict) -> dict[str, Any]:
    """For JSON."""
    return {
        "schema_version": 1,
        "exit_status": verdict.exit_status,
        "verdict": headline(verdict),
        "threshold": verdict.threshold,
        "gate": list(verdict.gate),
        "pairs": [
            {
                "label": pair.label,
                "baseline": shown(pair.baseline.path),
                "candidate": shown(pair.candidate.path),
                "differences": [one.as_dict() for one in pair.differences],
                "remarks": list(pair.remarks),
                **pair.comparison.as_dict(),
            }
            for pair in verdict.pairs
        ],
        "regressions": [{"label": pair.label, "metric": change.metric} for pair, change in verdict.regressions],
        "unsure": [{"label": pair.label, "metric": change.metric} for pair, change in verdict.unsure],
        "not_compared": list(verdict.uncompared),
        "only_candidate": list(verdict.only_candidate),
    }
