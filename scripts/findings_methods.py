"""Methods that drop vision tokens, and which settings answer in time: tables and sentences of the pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from published import (
    CARD,
    EARLIER,
    FULL,
    METHODS,
    MODELS,
    NOT_MEASURED,
    RUNTIMES,
    Published,
    Run,
    counted,
    read,
    span_of,
    table,
    times,
    value,
)

from vlmbench.analysis.claims import Verdict
from vlmbench.text import DASH, count, digits, percent


def budget_words(results: Published) -> str:
    """Which settings answered in time, and whether they did so again."""
    lines = []
    for model in MODELS:
        content = read(results.results / f"{CARD}_{model}_budget" / "budget.json")
        if content is None:
            continue
        rows = [
            [
                _setting(row), value(row["latency"]), f"{row['fit']}{', chosen' if row['chosen'] else ''}",
                value(row["measured_again"]), row["promise"] or DASH,
            ]
            for row in content["settings"]
        ]  # fmt: skip
        heads = (
            "setting",
            f"P{content['percentile']:g} of `{content['metric']}`, ms",
            "fits",
            "measured again, ms",
            "promise",
        )
        figure = results.figure(
            f"{CARD}_{model}_budget/figures/budget.png", f"What fits into {content['latency_ms']:g} ms"
        )
        link = f"[rows]({results.link}/{CARD}_{model}_budget)"
        old = "".join(sorted({run.mark for run in results.below(results.results / f"{CARD}_{model}_budget")}))
        if tried := _tried(results, f"{CARD}_{model}_budget", content):
            lines.append(f"{MODELS[model]}{old}, {content['latency_ms']:g} ms: {tried} {link}.")
            continue
        solved = (
            f"`python -m vlmbench experiment=budget latency_ms={content['latency_ms']:g} "
            f"percentile={content['percentile']:g} confirm=false "
            f"runs=docs/{results.link}/{CARD}_{model}_budget/sweep output_dir=OUT` tells the same of the rows, but for "
            "what was measured again."
        )
        lines.append(f"{MODELS[model]}{old}: {content['verdict']} {link}\n\n{figure}{table(heads, rows)}\n\n{solved}")
    return "\n\n".join(lines) or f"{NOT_MEASURED.capitalize()}."


def _tried(results: Published, name: str, content: Mapping[str, Any]) -> str:
    """Why no setting of a budget could be told; empty where one could."""
    rows = content["settings"]
    found = [(row, int(row["latency"]["effective_n"])) for row in rows if row["latency"].get("effective_n") is not None]
    if not found or any(row["fit"] != Verdict.OPEN for row in rows):
        return ""
    said = "; ".join(f"{_setting(row)}: {row['latency']['n']} runs are worth {worth}" for row, worth in found)
    moved = []
    measured = counted(results.results / name / "sweep")
    for row, _ in found:
        runs = sorted((r for r in measured if r["point_id"] == row["point_id"]), key=lambda r: r["started_unix_s"])
        steps = [run["T_LLM_decode"] / (run["num_output_tokens"] - 1) for run in runs]
        quarter = len(steps) // 4
        moved.append((median(steps[:quarter]), median(steps[-quarter:])))
    first, last = ("–".join(dict.fromkeys(f"{f(side):.2f}" for f in (min, max))) for side in zip(*moved, strict=True))
    needed = found[0][0]["latency"]["n_needed"]
    return (
        f"tried, and nothing can be promised. P{content['percentile']:g} needs {needed} independent runs; {said}. A "
        f"decode step took {first} ms in the first quarter of a setting's runs and {last} ms in the last: what moves "
        "so slowly is averaged out by an hour, not by more runs of the same minute."
    )


def _setting(row: Mapping[str, Any]) -> str:
    """``576 vision tokens, 8 output tokens``."""
    return ", ".join(
        f"{number:g} {axis.rpartition('.')[2].replace('_', ' ')}"
        for axis, number in sorted(row["axes"].items(), reverse=True)
    )


# Methods that drop vision tokens --------------------------------------------------------------------------------------

_SHOWN_KEEPS = (1.0, 0.5, 0.25, 0.11)


def methods_table(method: str, run: Run) -> str:
    """Every arm of a run: what it saves, where, and what FLOPs promised."""
    rows = []
    for arm in run.summary["arms"]:
        total, prefill = arm["savings"].get("T_total"), arm["savings"].get("T_LLM_prefill")
        if total is None:
            continue
        promised = sum(arm["promised_ms"].values()) if arm["promised_ms"] else None
        name = METHODS[method] if arm["role"] == "method" else f"control: {_control(arm)}"
        kept = "" if arm["kept"] is None else f", {digits(arm['kept'])} of {digits(arm['vision_tokens'])}"
        rows.append(
            [
                name,
                f"{DASH if arm['keep'] is None else percent(arm['keep'], 2)}{kept}",
                f"{value(total['saved_ms'])}",
                DASH if total["share"] is None else percent(total["share"]).replace("-", "−"),
                DASH if prefill is None else value(prefill["saved_ms"]),
                DASH if promised is None else digits(promised),
                digits(arm["method_ms"]["total"]) if arm["method_ms"] else DASH,
                "the baseline's" if not arm["unlike_kernels"] else f"unlike: {', '.join(arm['unlike_kernels'])}",
                f"{arm['pairs']}",
            ]
        )
    heads = ("arm", "tokens kept", "saved of `generate()`, ms", "share", "of it in prefill, ms", "FLOPs promised, ms")
    return table((*heads, "its own time, ms", "attention kernels", "pairs"), rows)


def _control(arm: Mapping[str, Any]) -> str:
    return "smaller image" if arm["name"] == "downsample" else "random tokens"


def best_arm(run: Run, keep: float) -> Mapping[str, Any] | None:
    """The method's own arm at a share."""
    arms = [a for a in run.summary["arms"] if a["role"] == "method" and a["keep"] == keep and "T_total" in a["savings"]]
    return arms[0] if arms else None


def ratio_of(saving: Mapping[str, Any]) -> str:
    """Baseline's time over the arm's, with its interval: ``1.31 × (1.28–1.35)``."""
    base, saved = saving["baseline_ms"], saving["saved_ms"]
    found = [None if saved[key] is None else base / (base - saved[key]) for key in ("value", "low", "high")]
    if found[0] is None:
        return DASH
    return f"{times(found[0])} ×{span_of(found[1], found[2], times)}"


def method_sections(results: Published) -> str:
    """A section a run: figure, sentences, table."""
    parts = []
    for model, method, runtime, run in results.methods():
        title = f"### {METHODS[method]}, {MODELS[model]}, {RUNTIMES[runtime]}{' ' + EARLIER if run.mark else ''}"
        figure = results.figure(f"{run.folder.as_posix()}/figures/interventions.png", title.removeprefix("### "))
        parts.append(
            f"{title}\n\n{figure}{methods_table(method, run)}\n\n{_method_words(run)}\n\n"
            f"{results.rows(run).capitalize()}; `python -m vlmbench experiment=report runs=docs/{results.link}/"
            f"{run.folder.as_posix()} output_dir=DIR`.\n"
        )
    return "\n".join(parts) or f"{NOT_MEASURED.capitalize()} on this card.\n"


def _method_words(run: Run) -> str:
    lines = []
    for keep in _SHOWN_KEEPS:
        arm = best_arm(run, keep)
        if arm is None:
            continue
        total = arm["savings"]["T_total"]
        saved = total["saved_ms"]["value"]
        promised = sum(arm["promised_ms"].values()) if arm["promised_ms"] else 0
        words = [f"Keeping {percent(keep, 2)}: {_said(total)}"]
        if promised > 0 and saved is not None and saved > 0 and total["verdict"] == "faster":
            words.append(f"{percent(saved / promised)} of what FLOPs promised")
        if arm["controls"]:
            words.append(f"as fast or faster without thought: {', '.join(arm['controls'])}")
        elif arm["controls"] is not None and keep < 1:
            words.append("no control that was run is as fast")
        if arm["drowned_after"] is not None:
            words.append(f"less than 5 % of `generate()` from about {arm['drowned_after'][0]:,.0f} output tokens on")
        lines.append(f"* {'; '.join(words)}.")
    if not run.summary["proofs"]:
        lines.append(
            "* This run was cut off: so many pairs as the table says, and its proof of the method was not stored."
        )
    lines += [f"* Not run: {one['arm']}: {one['reason']}" for one in run.summary.get("skipped") or []]
    return "\n".join(lines)


def _said(saving: Mapping[str, Any]) -> str:
    verdict = saving["verdict"]
    if verdict == "no difference":
        return f"no difference beyond {percent(saving['no_difference_beyond'])}"
    if verdict == "too few pairs":
        return "too few pairs to tell"
    saved = saving["saved_ms"]
    low, high = sorted(abs(saved[end]) for end in ("low", "high"))
    return f"`generate()` is {verdict} by {value({'value': abs(saved['value']), 'low': low, 'high': high})} ms"


def methods_words(results: Published) -> str:
    """The answer in short, a bullet a run, at half and at a ninth of the tokens."""
    lines = []
    for model, method, runtime, run in results.methods():
        clauses = []
        for keep in (0.5, 0.11):
            if (arm := best_arm(run, keep)) is not None:
                controls = ""
                if arm["controls"] is not None and arm["savings"]["T_total"]["verdict"] == "faster":
                    controls = " (a control is as fast)" if arm["controls"] else " (no control is as fast)"
                clauses.append(f"with {percent(keep, 2)} kept {_said(arm['savings']['T_total'])}{controls}")
        pairs = sorted({arm["pairs"] for arm in run.summary["arms"]})
        said = f" ({pairs[0]}–{pairs[-1]} pairs, cut off, without its proof)" if not run.summary["proofs"] else ""
        lines.append(
            f"* {METHODS[method]}, {MODELS[model]}, {RUNTIMES[runtime]}{said}: {'; '.join(clauses)}{run.mark}."
        )
    return "\n".join(lines) or f"{NOT_MEASURED.capitalize()} on this card."


def grid_words(results: Published) -> str:
    """All methods, shares and runtimes as one command: how long it took, and what each saved."""
    parts = []
    for model in MODELS:
        folder = results.results / f"{CARD}_{model}_grid"
        runs = [run for run in results.below(folder) if run.summary.get("arms")]
        if not runs:
            continue
        rows = [[*_method_and_runtime(run), *(_saved(run, keep) for keep in _GRID_KEEPS), _pairs(run)] for run in runs]
        keeps = {arm["keep"] for run in runs for arm in run.summary["arms"] if arm["role"] == "method"}
        tries = (read(folder / "part.json") or {"tries": []})["tries"]
        took = f"took {sum(one['seconds'] for one in tries):,} s" if tries else "was not timed"
        took += "".join({run.mark for run in runs})
        if len(tries) > 1:
            took += f", in {len(tries)} goes"
        if tries and tries[-1]["status"]:
            took += " and was not finished"
        methods, runtimes = (len({row[place] for row in rows}) for place in (0, 1))
        alone = ", no control beside it" * all(arm["role"] != "control" for run in runs for arm in run.summary["arms"])
        lengths = sorted({run.provenance["config"]["output"]["tokens"] for run in runs})
        heads = ("method", "runtime", *(f"{percent(keep, 2)} kept" for keep in _GRID_KEEPS), "pairs")
        parts.append(
            f"{MODELS[model]}: {count(methods, 'method')} × {count(len(keeps), 'share')} × "
            f"{count(runtimes, 'runtime')} {took}, loading and proofs included ([rows]({results.link}/{folder.name})). "
            f"Saved of `generate()` of {'–'.join(map(str, lengths))} output tokens{alone}, ms:\n\n"
            f"{table(heads, sorted(rows))}"
        )
    return "\n\n".join(parts) or f"{NOT_MEASURED.capitalize()} on this card."


_GRID_KEEPS = (0.5, 0.25, 0.11, 0.05)


def _method_and_runtime(run: Run) -> tuple[str, str]:
    intervention = run.provenance["config"]["intervention"]
    layer, selector = intervention.get("layer"), intervention.get("selector")
    name = "pyramid_drop" if isinstance(layer, list) else "fastv" if layer is not None else (
        "visionzip" if selector == "encoder_attention" else "keep_after_projector"
    )  # fmt: skip
    return METHODS[name], RUNTIMES[run.provenance["runtime"]["name"]]


def _saved(run: Run, keep: float) -> str:
    arm = best_arm(run, keep)
    return DASH if arm is None else value(arm["savings"]["T_total"]["saved_ms"])


def _pairs(run: Run) -> str:
    return "–".join(str(end) for end in sorted({f(arm["pairs"] for arm in run.summary["arms"]) for f in (min, max)}))


def methods_verdict(results: Published) -> str:
    """How many arms that drop tokens are faster, and of how many a control is as fast."""
    arms = [
        arm
        for *_, run in results.methods()
        for arm in run.summary["arms"]
        if arm["role"] == "method" and (arm["keep"] or 1) < 1 and "T_total" in arm["savings"]
    ]
    if not arms:
        return f"{NOT_MEASURED.capitalize()} on this card."
    found = Counter(arm["savings"]["T_total"]["verdict"] for arm in arms)
    told = [arm for arm in arms if arm["savings"]["T_total"]["verdict"] == "faster" and arm["controls"] is not None]
    said = ", ".join(f"{verdict} in {number}" for verdict, number in found.most_common())
    fast = sum(bool(arm["controls"]) for arm in told)
    return (
        f"Of {len(arms)} arms that drop tokens `generate()` is {said}. Where it is faster and the controls can be "
        f"told, a control that costs no thought is as fast by whole requests in {fast} of {len(told)}."
    )


def arms_tokens(results: Published) -> str:
    """How long the answers of all arms are."""
    ends = _answer(results)
    return f"{ends} output tokens, " if ends else ""


def without_controls(results: Published) -> str:
    """Which runs of methods had no controls beside them."""
    found = [
        f"{METHODS[method]}, {MODELS[model]}, {RUNTIMES[runtime]}"
        for model, method, runtime, run in results.methods()
        if all(arm["role"] == "method" for arm in run.summary["arms"])
    ]
    return f" No control was run beside these: {'; '.join(found)}." if found else ""


def _answer(results: Published) -> str:
    ranges = [run.summary["scope"]["output_tokens"] for *_, run in results.methods()]
    return " to ".join(sorted({f"{end:g}" for one in ranges if one for end in one}, key=float))


def drowned_words(results: Published) -> str:
    """From which length of the answer on nothing of a saving is left to speak of, over all arms that drop tokens."""
    found = [
        arm["drowned_after"][0]
        for *_, run in results.methods()
        for arm in run.summary["arms"]
        if arm["role"] == "method" and (arm["keep"] or 1) < 1 and arm["drowned_after"] is not None
    ]
    if not found:
        return ""
    return (
        f"what is saved here falls below 5 % of `generate()` with answers of {min(found):,.0f} to "
        f"{max(found):,.0f} output tokens, by arm"
    )


def published_table(results: Published) -> str:
    """Published ratios of latency beside ours in the nearest setting."""

    def ours(method: str, keep: float, metric: str, models: Sequence[str] = FULL) -> str:
        found = []
        for model in models:
            for runtime in RUNTIMES:
                run = results.run(f"{model}_{method}_{runtime}")
                arm = best_arm(run, keep) if run and run.summary.get("arms") else None
                if run and arm and metric in arm["savings"]:
                    found.append(f"{MODELS[model]}, {RUNTIMES[runtime]}: {ratio_of(arm['savings'][metric])}{run.mark}")
        return "; ".join(found) or NOT_MEASURED

    fastv, cache = (
        "[FastV](https://github.com/pkunlp-icler/FastV)",
        "[the same, with a KV cache](https://github.com/pkunlp-icler/FastV#support-kv-cache)",
    )
    zipped, qwen = (
        "[VisionZip](https://arxiv.org/abs/2412.04467)",
        "[VisionZip#24](https://github.com/JIA-Lab-research/VisionZip/issues/24)",
    )
    rows = [
        [
            fastv,
            "first token, LLaVA-1.5-13B, A100, half dropped",
            "0.203 / 0.155 s = 1.31 ×",
            ours("fastv", 0.5, "TTFT"),
        ],
        [fastv, "the same, three quarters dropped", "0.203 / 0.124 s = 1.64 ×", ours("fastv", 0.25, "TTFT")],
        [
            cache,
            "whole answer of 300 tokens and more, one image, three quarters dropped (its demo's settings; the figure "
            "names none)",
            "“approximately 8 %” = 1.09 ×",
            f"answers of {_answer(results)} tokens only: {ours('fastv', 0.25, 'T_total')}",
        ],
        [
            zipped,
            "prefill, LLaVA-NeXT, share not named in the abstract",
            "8 ×",
            f"11 % kept: {ours('visionzip', 0.11, 'T_LLM_prefill')}",
        ],
        [
            qwen,
            "whole run, Qwen2.5-VL, as a user found",
            "“nearly the same”",
            ours("visionzip", 0.11, "T_total", ["qwen"]),
        ],
    ]
    return table(("published by", "of what", "ratio", "ours: baseline over method"), rows)
