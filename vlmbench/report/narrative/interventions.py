"""What a comparison of methods found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmbench.schema import STAGES
from vlmbench.text import count, digits, ms, percent, span

WHAT_SAVED = "What does the method save?"
WHAT_ELSE = "What would be as fast without it?"
HOW_SURE = "How far can the comparison be trusted?"
_SHOWN_STAGES = tuple(stage.column for stage in STAGES if stage.column.startswith("T_"))
_MAIN = "T_total"


def answers(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(question, sentences) from the content of ``summary.json``."""
    arms: Sequence[Mapping[str, Any]] = summary["arms"]
    methods = [arm for arm in arms if arm["role"] == "method"]
    found = [(WHAT_SAVED, [sentence for arm in methods for sentence in _saved(arm)])]
    found.append((WHAT_ELSE, [sentence for arm in methods if (sentence := _controls(arm, arms))]))
    found.append((HOW_SURE, [*_proofs(summary["proofs"]), *_kernels(arms), *_skipped(summary["skipped"])]))
    return [(question, sentences) for question, sentences in found if sentences]


def as_text(summary: Mapping[str, Any]) -> str:
    """The answers as plain text, a question above its sentences."""
    blocks = ["\n".join([question, *(f"  {s}" for s in sentences)]) for question, sentences in answers(summary)]
    return "\n\n".join(blocks) or "No arm of a comparison was measured."


def _where(arm: Mapping[str, Any]) -> str:
    return f" at {arm['point']}" if arm["point"] else ""


def verdict(saving: Mapping[str, Any]) -> str:
    """One time of an arm against the baseline's: ``12.1 ms faster (11.8–12.5 ms, 6.2 %)``."""
    saved = saving["saved_ms"]
    value, inside = saved["value"], span(saved["low"], saved["high"])
    if saving["verdict"] == "no difference":
        return f"no difference beyond {percent(saving['no_difference_beyond'])} ({inside})"
    if saving["verdict"] == "too few pairs" or value is None:
        about = "" if value is None else f": {ms(value)} in {saved['n']} pairs"
        return f"too few pairs to tell{about}"
    share = "" if saving["share"] is None else f", {percent(abs(saving['share']))}"
    ends = span(*sorted((abs(saved["low"]), abs(saved["high"]))))
    return f"{ms(abs(value))} {saving['verdict']} ({ends}{share})"


def _saved(arm: Mapping[str, Any]) -> Iterator[str]:
    total = arm["savings"].get(_MAIN)
    if total is None:
        return
    kept = _kept(arm)
    kinds = " (kernel + tokens: its attention kernels are not the baseline's)" if arm["unlike_kernels"] else ""
    says = "shows" if total["verdict"] == "no difference" else "has" if total["verdict"] == "too few pairs" else "is"
    yield f"{arm['label']}{_where(arm)}{kept}: generate() {says} {verdict(total)}{kinds}."
    stages = [
        f"{name} {verdict(entry)}"
        for name, entry in arm["savings"].items()
        if name in _SHOWN_STAGES and entry["verdict"] in ("faster", "slower")
    ]
    if stages:
        yield f"By stage: {'; '.join(stages)}."
    if sum(arm["promised_ms"].values()):
        yield _promise(total, sum(arm["promised_ms"].values()))
    if own := arm["method_ms"]:
        where = ", ".join(f"{ms(value)} in {stage}" for stage, value in own.items() if stage != "total")
        yield f"Its own work takes {ms(own['total'])} of that ({where}), which is inside these times."
    yield from _length(arm)
    if arm["kernel_ms"] is not None:
        tokens = (total["saved_ms"]["value"] or 0.0) - arm["kernel_ms"]
        yield f"Of what it saves, the kernels make {ms(arm['kernel_ms'])} and the tokens {ms(tokens)}."
    if arm["tokens_equal"] is not None and arm["tokens_compared"]:
        yield (
            f"Its answer begins with {digits(arm['tokens_equal'])} of the baseline's {arm['tokens_compared']} tokens "
            "(median)."
        )


def _kept(arm: Mapping[str, Any]) -> str:
    if arm["kept"] is None or arm["vision_tokens"] is None:
        return ""
    return f", {digits(arm['kept'])} of {digits(arm['vision_tokens'])} vision tokens"


def _promise(total: Mapping[str, Any], promised: float) -> str:
    saved = total["saved_ms"]["value"]
    if promised <= 0 or saved is None or total["verdict"] in ("too few pairs", "no difference"):
        return f"FLOPs promised {ms(promised)}."
    if saved <= 0:
        return f"FLOPs promised {ms(promised)}; none of it came true."
    return f"FLOPs promised {ms(promised)}; {percent(saved / promised)} of it came true."


def _length(arm: Mapping[str, Any]) -> Iterator[str]:
    if arm["drowned_after"] is not None:
        value, low, high = arm["drowned_after"]
        ends = "" if low is None or high is None else f" ({low:,.0f} to {high:,.0f})"
        yield f"From about {value:,.0f} output tokens on{ends} it is less than 5 % of generate()."
    if arm["even_after"] is not None:
        yield f"Each of its decode steps is slower: from about {arm['even_after']:,.0f} output tokens on it loses."


def _controls(arm: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> str | None:
    beside = [a for a in arms if a["role"] == "control" and a["keep"] == arm["keep"] and a["point"] == arm["point"]]
    if not beside:
        return None
    if arm["controls"] is None:
        return f"{arm['label']}{_where(arm)}: too few pairs to tell whether a control is as fast."
    if arm["controls"]:
        first, *others = arm["controls"]
        also = f", and so are {', '.join(others)}" if others else ""
        return f"{arm['label']}{_where(arm)}: {first} of the same share {_is(first)} as fast or faster{also}."
    return f"{arm['label']}{_where(arm)}: no control that was run is as fast."


def _is(name: str) -> str:
    return "are" if name.endswith("s") else "is"


def _proofs(proofs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for label, proof in proofs.items():
        if "words" in proof:
            yield f"{label} proved itself before it was measured: {proof['words']}."
            continue
        weak = ". The proof is weak: dropping changes no more than rounding does" if proof["weak"] else ""
        yield (
            f"{label} proved itself before it was measured: everything kept gives the baseline's tokens, and its "
            f"logits those of a reference that masks what it drops (they differ by {digits(proof['error'])}, rounding "
            f"explains {digits(proof['tolerance'])}, dropping changes {digits(proof['effect'])}); kept by layer: "
            f"{proof['kept_by_layer']}{weak}."
        )


def _kernels(arms: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    unlike = {f"{arm['label']} ({', '.join(arm['unlike_kernels'])})" for arm in arms if arm["unlike_kernels"]}
    if unlike:
        yield f"Attention kernels differ from the baseline's in {'; '.join(sorted(unlike))}."
    elif any(arm["kernels_seen"] for arm in arms):
        yield "Attention kernels are the baseline's in every arm and tower, as far as they were seen."
    elif arms:
        yield "No attention kernel was seen in any arm, so it is not known whether they are the baseline's."


def _skipped(skipped: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if skipped:
        yield f"{count(len(skipped), 'arm')} could not be run:"
    for entry in skipped:
        yield f"{entry['arm']}: {entry['reason']}"
