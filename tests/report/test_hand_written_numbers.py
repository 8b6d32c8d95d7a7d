"""Numbers on pages that are written by hand follow from the published rows that they name."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.vllm_watching import in_rows
from vlmbench.analysis.dependence import dependence
from vlmbench.analysis.quantiles import median
from vlmbench.text import digits, tight_interval

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"

pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="a source distribution has no published rows")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8").replace("−", "-")


def rows(folder: str, *, mode: str = "instrumented") -> list[dict[str, Any]]:
    """Finished runs of a folder in the order measured."""
    with lzma.open(RESULTS / folder / "records.jsonl.xz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return sorted(
        (row for row in found if row["status"] == "ok" and row["mode"] == mode), key=lambda row: row["started_unix_s"]
    )


def summary(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((RESULTS / folder / "summary.json.gz").read_bytes()))
    return found


def times(folder: str, name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows(folder)], dtype=np.float64)


def a_step(folder: str) -> NDArray[np.float64]:
    return np.array([row["T_LLM_decode"] / (row["num_output_tokens"] - 1) for row in rows(folder)])


@pytest.mark.parametrize(
    "folder",
    [
        "h200_llava_cudagraph",
        "h200_llava_cudagraph_compiled",
        "h200_molmo_cudagraph",
        "h200_molmo_cudagraph_compiled",
        "h200_qwen_cudagraph",
        "archive/h200_qwen_cudagraph_compiled",
    ],
)
def test_decode_steps_of_the_captured_loop(folder: str) -> None:
    found = median(a_step(f"{folder}/phase1"))
    assert None not in (found.value, found.low, found.high)
    written = f"{digits(found.value)} ({tight_interval(found.low, found.high)}"  # type: ignore[arg-type]
    assert written in page("docs/engines_cudagraph.md"), written


@pytest.mark.parametrize("model", ["llava", "molmo", "qwen"])
def test_captured_vision_encoders(model: str) -> None:
    found = median(times(f"h200_{model}_cudagraph/phase1", "T_vision_encoder"))
    assert None not in (found.value, found.low, found.high)
    written = f"{digits(found.value)} ({tight_interval(found.low, found.high)}) in phase 1"  # type: ignore[arg-type]
    assert written in page("docs/engines_cudagraph.md"), written


def test_how_much_the_captured_stages_miss_of_the_whole() -> None:
    said = page("docs/engines_cudagraph.md")
    for model, compiled in (
        ("llava", "h200_llava_cudagraph_compiled"),
        ("molmo", "h200_molmo_cudagraph_compiled"),
        ("qwen", "archive/h200_qwen_cudagraph_compiled"),
    ):
        both = []
        for folder in (f"h200_{model}_cudagraph", compiled):
            shares = np.abs(times(f"{folder}/phase1", "T_residual")) / times(f"{folder}/phase1", "T_total")
            both.append(f"{100 * float(np.median(shares)):.3f} %")
        assert "; ".join(both) in said, both


def test_what_watching_vllm_costs() -> None:
    said = page("docs/engines.md")
    table = [
        line for line in said.splitlines() if line.startswith(("| `T_total`, of 69.0", "| of it ", "| `thread_cpu"))
    ]
    metrics = (
        "T_total", "engine_prefill_time", "engine_decode_time", "T_total without engine_inference_time",
        "thread_cpu_ms without engine_prefill_time",
    )  # fmt: skip
    for column, model in ((2, "llava"), (3, "qwen")):
        found = in_rows(RESULTS / f"h200_{model}_vllm/phase1/records.jsonl.xz")  # us
        for line, metric in zip(table, metrics, strict=True):
            numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", line.split("|")[column])]
            one = median(np.array(found[metric]) / 1e3)
            assert numbers == pytest.approx([one.value, one.low, one.high], abs=0.0051), (model, metric, one)
        share = summary(f"h200_{model}_vllm/phase1")["instrument_overhead"]
        assert f"({100 * share['low']:.2f} to {100 * share['high']:.2f} %)" in said, share


def test_what_watching_the_captured_loop_costs() -> None:
    said = page("docs/engines_cudagraph.md")
    for model in ("llava", "molmo", "qwen"):
        share = summary(f"h200_{model}_cudagraph/phase1")["instrument_overhead"]
        joint = " to " if share["low"] < 0 else "–"
        written = f"{100 * share['value']:.3f} % ({100 * share['low']:.3f}{joint}{100 * share['high']:.3f})"
        assert written in said, written


def test_first_steps_of_a_compiled_decode() -> None:
    said = page("docs/method.md")
    for model, form in (("llava", "in {} of {} requests to LLaVA-1.5-7B"), ("qwen", "in {} of {} to Qwen2.5-VL-7B")):
        gaps = [row["ITL"] for row in rows(f"h200_{model}_compiled/phase1")]
        slow = sum(one[0] > 2.5 * float(np.median(one[1:])) for one in gaps)
        assert form.format(slow, len(gaps)) in said, (slow, len(gaps))


def test_how_alike_neighbouring_requests_are() -> None:
    said = page("docs/method.md")
    for folder in ("h200_llava_eager", "h200_llava_vllm"):
        of_requests = times(f"{folder}/phase1", "T_request")
        assert f"by {np.corrcoef(of_requests[:-1], of_requests[1:])[0, 1]:.2f} instead of" in said, folder
    found = []
    for path in sorted(RESULTS.glob("h200_*/phase1/provenance.json")):
        command = json.dumps(json.loads(path.read_text(encoding="utf-8"))["sessions"])
        if "change_processor=true" in command:
            found.append(dependence(times(str(path.parent.relative_to(RESULTS)), "T_request")).lag1)
    assert len(found) > 40
    ends = [f"{end:.1f}" for end in (min(found), max(found))]
    assert f"of whole requests {ends[0]} to {ends[1]} where the processor is changed" in said, ends


def test_a_prefill_of_an_odd_number_of_tokens() -> None:
    folder = "archive/h200_llava_cudagraph/phase1"
    odd = times(folder, "num_input_tokens") % 2 == 1
    prefill = times(folder, "T_LLM_prefill")
    more = float(np.median(prefill[odd]) - np.median(prefill[~odd]))
    assert f"took {more:.1f} ms longer than one of an even number" in page("docs/method.md"), more


def test_the_words_about_coverage_count_their_table() -> None:
    """As many cells as the table has, of those where at least half of the simulations were given an interval."""
    said = page("benchmarks/README.md")
    table = said[said.index("**Share of 95 % intervals that hold the truth") :].split("\n\n")[1]
    rows_of_it = [line.strip("|").split("|")[1:] for line in table.splitlines() if "→" in line]
    cells = [
        (float(after), float(given or 1))
        for row in rows_of_it
        for cell in row[:-1]  # but `slow`
        for after, given in re.findall(r"→ (\d\.\d\d)(?: \((\d\.\d\d)\))?", cell)
    ]
    kept = [after for after, given in cells if given >= 0.5]
    assert (
        f"{len(kept)} cells but `slow` where at least half were given an interval; {sum(a < 0.9 for a in kept)} of"
        in (said.replace("\n", " "))
    )
    assert f"{sum(a > 0.99 for a in kept)} of {len(kept)} other cells" in said
    most = max((1 - after) * given for after, given in cells)
    assert f"at most 0.12 of the simulations of any cell ({most:.2f} for a slope" in said.replace("\n", " ")
