"""Run every image-text-to-text architecture of the installed transformers and write docs/models.md.

For each architecture a tiny random model makes one real ``generate()`` on the CPU; its stages are found by the static
rules, by watching that run with the rules' answer as a start, and by watching alone, and compared with a reviewed table
(vlmbench/testing/expected_stages.yaml) and with what must hold for any model (vlmbench/testing/stage_checks.py).

    python scripts/coverage_models.py [NAME …] [--limit-s 600] [--output docs/models.md]

Exit status 1 when an architecture that can run has a wrong stage. Towers from the ``timm`` package need it (and the
torchvision it imports) installed; without them their architectures are reported as not run.
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever vlmbench is installed

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
NEW_TOKENS = 4
# Lines of the page's summary that other pages quote.
RIGHT = "right after watching one run (the rules' answer as the start)"
CANNOT, NOT_RUN = "cannot run a `generate()`", "not run here"
INTRODUCTION = """\
# Architectures and their stages

Written by `scripts/coverage_models.py` (`make coverage-models`); not edited by hand.

Every architecture of `MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES` is built tiny with random weights
(`vlmbench/testing/shrink.py`), given one image and a short text, and run through one real `generate()` of {tokens}
tokens. "Right" means: the stages equal the table in `vlmbench/testing/expected_stages.yaml`, drafted from watched
runs and reviewed entry by entry against module trees and, where a layout is unusual, the model's code. "Nothing
violated" means: every module named was called through its `forward`, vision and projector before the language model,
the language model once for the prefill and once for each further token, no module that ran with more than 2 % of the
parameters is left out, no parameter is counted twice. The static rules were tuned on these architectures: on a new one
expect less, and look at the anatomy table first. `fast_vlm`, `gemma3n` and `perception_lm` have towers from the `timm`
package and run only where it is installed; a named `timm` tower is not shrunk.

Molmo 1 is not among them: transformers has no such architecture, and `vlmbench/models/molmo/` brings it. Checkpoints
in the hub's layouts (MolmoE-1B, 7B-O, 7B-D, 72B; safetensors) load from the folder as downloaded, through
transformers' own conversion mapping (`vlmbench/models/molmo/released.py`); `tests/models/molmo/test_molmo_released.py`
compares every tensor with the converter's, on tiny checkpoints of all three decoders (transformers 5.17.0 and 5.23.0).
The converter (`python -m vlmbench.models.molmo.convert SRC DST`) is needed for allenai/molmo's own layout
(`config.yaml`, `model.pt`, stacked experts), for `pytorch_model.bin`, and before `model.quantization` or
`runtime.tp_plan`: transformers cuts a weight for its process before the mapping's operation splits it, and the
operations are not tried with quantisers.

{summary}

`.*` stands for the indices of a list of modules. Where a stage is absent the last column says why. "Inside" is the
share of the time from the start of the first stage to the end of the first token's head that lies inside a stage (best
of three runs of the tiny model on a CPU, hooks included: a floor, since launch overhead weighs most on tiny models).

| architecture | vision encoder | projector | language model | head | found by | inside | notes |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
ABSENT = {
    "chameleon": "VQ image tokens are embedded by the language model's own table: early fusion",
    "emu3": "VQ image tokens are embedded by the language model's own table: early fusion",
    "blip": "every decoder layer attends to the vision features (cross-attention)",
    "idefics": "gated cross-attention layers read the vision features; a resampler is optional and off by default",
    "pix2struct": "every decoder layer attends to the encoder's output (cross-attention)",
    "mllama": "cross-attention: the language model sees 1 token an image; keys and values are made once",
    "diffusion_gemma": "block diffusion: several calls of the decoder for a block of tokens, not one a token",
    "udop": "text and image patches go through one joint encoder",
    "evolla": "reads proteins, not images",
    "mistral4": "a text-only model",
    "pi0": "makes robot actions with sample_actions(), has no generate(); not run, static rules only",
}


def measure(name: str) -> dict[str, Any]:
    """Everything that is reported of one architecture."""
    from vlmbench.errors import AnatomyError
    from vlmbench.models.anatomy.find import find_anatomy
    from vlmbench.models.anatomy.watch import record_calls, watch_anatomy
    from vlmbench.models.protocol import Anatomy
    from vlmbench.testing import stage_checks, tiny_models

    started = time.perf_counter()
    expected = stage_checks.expected_stages().get(name)
    try:
        model = tiny_models.tiny_model(name)
    except ImportError as error:
        return {"name": name, "status": "not built", "reason": " ".join(str(error).split())[:160]}
    static = find_anatomy(model)
    row: dict[str, Any] = {"name": name, "status": "ran", "static": stage_checks.general(static) == expected}
    if name == "pi0":
        return row | _shown(static) | {"status": "static only", "found": static.how, "violations": []}
    inputs = tiny_models.tiny_inputs(name, model)

    def run() -> object:
        return tiny_models.generate(model, inputs, NEW_TOKENS)

    watched = watch_anatomy(model, run, static)
    try:
        alone: Anatomy | None = watch_anatomy(model, run, Anatomy())
    except AnatomyError:
        alone = None
    observed = [record_calls(model, run) for _ in range(3)]
    return (
        row
        | _shown(watched)
        | {
            "found": dict(watched.how),
            "watched": stage_checks.general(watched) == expected,
            "alone": alone is not None and stage_checks.general(alone) == expected,
            "violations": stage_checks.violations(name, model, watched, observed[0], NEW_TOKENS),
            "inside": max(stage_checks.prefill_coverage(watched, calls) for calls in observed),
            "expected": None if expected is None else {stage: sorted(paths) for stage, paths in expected.items()},
            "seconds": time.perf_counter() - started,
        }
    )


def _shown(anatomy: Any) -> dict[str, Any]:
    from vlmbench.testing import stage_checks

    general = {stage: list(dict.fromkeys(_starred(paths))) for stage, paths in anatomy.stages()}
    assert {stage: set(paths) for stage, paths in general.items()} == stage_checks.general(anatomy)
    return {"stages": general, "notes": list(anatomy.notes)}


def _starred(paths: tuple[str, ...]) -> list[str]:
    return [".".join("*" if part.isdigit() else part for part in path.split(".")) for path in paths]


# ---------------------------------------------------------------------------------------------- processes


def work() -> None:
    """The worker: one architecture a line of standard input, one JSON line of answer each."""
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    for line in sys.stdin:
        name = line.strip()
        try:
            answer = measure(name)
        except Exception as error:  # reported in the table; the next architecture is still measured
            text = " ".join(str(error).split())[:300]
            answer = {"name": name, "status": "failed", "reason": f"{type(error).__name__}: {text}"}
        print("ANSWER " + json.dumps(answer), flush=True)


class Worker:
    """A process that measures one architecture after another and is replaced when one hangs or kills it."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[str] | None = None

    def ask(self, name: str) -> dict[str, Any]:
        """The answer for one architecture; a status 'failed' where none came in time."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(name + "\n")
        process.stdin.flush()
        end = time.monotonic() + self._limit_s
        while select.select([process.stdout], [], [], max(end - time.monotonic(), 0))[0]:
            line = process.stdout.readline()
            if not line:
                self.stop()
                return {"name": name, "status": "failed", "reason": f"its process ended with {process.returncode}"}
            if line.startswith("ANSWER "):
                answer: dict[str, Any] = json.loads(line.removeprefix("ANSWER "))
                return answer
        self.stop()
        return {"name": name, "status": "failed", "reason": f"no answer within {self._limit_s:.0f} s"}

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
        )
        return self._process

    def stop(self) -> None:
        """End the process, if one runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


# -------------------------------------------------------------------------------------------------- page


def right(row: dict[str, Any]) -> bool:
    """Whether the stages are right, as the page's introduction says."""
    if row["status"] == "static only":
        return bool(row["static"])
    return row["status"] == "ran" and row["watched"] and not row["violations"]


def page(rows: list[dict[str, Any]], before: dict[str, str]) -> str:
    """The whole of docs/models.md.

    Args:
        rows: what was measured.
        before: lines of the page as it was; those of architectures that cannot be built here are kept.
    """
    absent = [row["name"] for row in rows if row["status"] == "not built"]
    kept = {name: before[name] for name in absent if name in before}
    lines = [kept.get(row["name"]) or _line(row) for row in rows]
    return INTRODUCTION.format(tokens=NEW_TOKENS, summary=_summary(rows, sorted(kept))) + "".join(lines)


def lines_by_name(text: str) -> dict[str, str]:
    """The table's lines of architectures that ran, from a page."""
    lines = [line for line in text.splitlines(keepends=True) if line.count(" | ") >= 7 and "`" in line]
    return {line.split("|")[1].strip(): line for line in lines}


def _summary(rows: list[dict[str, Any]], kept: list[str]) -> str:
    import torch
    import transformers

    ran = [row for row in rows if row["status"] == "ran"]
    lines = [
        f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}: {len(rows)} architectures.",
        "",
        "| | architectures |",
        "| --- | --- |",
        f"| ran a `generate()` | {len(ran)} |",
        f"| right by the static rules alone | {sum(row['static'] for row in ran)} |",
        f"| {RIGHT} | {sum(row['watched'] for row in ran)} |",
        f"| right by watching alone, without any rule's answer | {sum(row['alone'] for row in ran)} |",
        f"| nothing violated | {sum(not row['violations'] for row in ran)} |",
        f"| {CANNOT} | {sum(row['status'] == 'static only' for row in rows)} |",
        f"| {NOT_RUN} | {sum(row['status'] in ('failed', 'not built') for row in rows)} |",
    ]
    if kept:
        lines += [
            "",
            f"Rows of {', '.join(kept)} are those of an earlier run: what they need was not installed in this one.",
        ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    if "stages" not in row:
        return f"| {row['name']} | – | – | – | – | {row['status']} | – | {row['reason'].replace('|', '/')} |\n"
    cells = [", ".join(f"`{path}`" for path in row["stages"][stage]) or "–" for stage in row["stages"]]
    rules = (row["found"].get(stage, "").replace(", seen running", "") for stage in row["stages"])
    how = "; ".join(rule for rule in dict.fromkeys(rules) if rule)
    notes = [ABSENT.get(row["name"], ""), *row["notes"], *(f"**{v}**" for v in row["violations"])]
    if not right(row):
        notes.append(f"**expected {row.get('expected')}**")
    inside = f"{row['inside']:.0%}" if "inside" in row else "–"
    return f"| {row['name']} | {' | '.join(cells)} | {how} | {inside} | {'; '.join(n for n in notes if n)} |\n"


def _read_rows(path: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run by architecture; failed ones are measured again."""
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows if row["status"] != "failed"}


def main() -> int:
    """Measure, write the page, say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures (default: all)")
    parser.add_argument("--limit-s", type=float, default=600, help="time limit for one architecture, s")
    parser.add_argument("--output", type=Path, default=None, help="page to write (default: docs/models.md, if all run)")
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines: rows found there are kept, new ones added")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return 0
    from vlmbench.testing.tiny_models import ARCHITECTURES

    if unknown := set(options.names) - set(ARCHITECTURES):
        parser.error(f"unknown architecture {', '.join(sorted(unknown))}; known: {', '.join(ARCHITECTURES)}")
    worker, rows = Worker(options.limit_s), []
    kept = _read_rows(options.rows)
    for name in options.names or ARCHITECTURES:
        row = kept.get(name) or worker.ask(name)
        rows.append(row)
        if options.rows is not None and name not in kept:
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        problem = row.get("reason") or "; ".join(row["violations"]) or ("" if right(row) else f"stages {row['stages']}")
        print(f"{name}: {'right' if right(row) else row['status']}{': ' + problem if problem else ''}", flush=True)
    worker.stop()
    output = options.output or (None if options.names else PAGE)
    if output is not None:
        before = lines_by_name(output.read_text(encoding="utf-8")) if output.is_file() else {}
        output.write_text(page(rows, before), encoding="utf-8")
    return int(any(not right(row) for row in rows if row["status"] != "not built"))


if __name__ == "__main__":
    sys.exit(main())
