"""Measures methods that drop vision tokens on one GPU, with random weights and without a network, in parts.

    python scripts/gpu/interventions.py --list
    python scripts/gpu/interventions.py --out DIR                               # all parts, one after the other
    python scripts/gpu/interventions.py llava_fastv_cudagraph --out DIR         # one part
    python scripts/gpu/interventions.py --device cpu --model tiny --narrow --out DIR      # a dry run anywhere

Each part is one command of vlmbench in a process of its own: FastV, selection by the encoder's attention (as VisionZip
selects) or by norm, each at four shares with its controls beside the baseline, at n = 40, eager and captured. A part
takes a few minutes; one that was cut short continues when it is run again. ``DIR/PART/`` is the run directory,
``DIR/parts.jsonl`` says how each part ended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

KEEPS = "[1,0.5,0.25,0.11]"
MODELS = {"llava": "llava_1_5_7b", "qwen": "qwen2_5_vl_7b"}
METHODS = {
    "fastv": ["intervention=fastv"],
    "encoder": ["intervention=visionzip"],
    "norm": ["intervention=keep_after_projector", "intervention.selector=norm"],
}
RUNTIMES = ("eager", "cudagraph")


@dataclass(frozen=True)
class Part:
    """One command.

    Args:
        name: of its directory.
        words: after ``python -m vlmbench``.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """How much each part measures.

    Args:
        keeps: shares of vision tokens.
        runs: of each arm.
        tokens: of each answer.
    """

    keeps: str = KEEPS
    runs: int = 40
    tokens: int = 16


def parts(model: str | None, device: str, *, size: Size) -> list[Part]:
    """All parts, or those of one other model (``tiny``) on another device."""
    found = []
    chosen = MODELS if model is None else {model: model}
    for short, name in chosen.items():
        for runtime in RUNTIMES:
            for method, words in METHODS.items():
                found.append(Part(f"{short}_{method}_{runtime}", tuple(_words(name, runtime, words, device, size))))
    return found


def _words(model: str, runtime: str, method: list[str], device: str, size: Size) -> list[str]:
    words = [
        "experiment=interventions",
        f"model={model}",
        f"runtime={runtime}",
        f"runtime.device={device}",
        *method,
        f"sweep.axes.intervention.keep={size.keeps}",
        f"measurement.stopping.min_samples={size.runs}",
        f"measurement.stopping.max_samples={size.runs}",
        f"output.tokens={size.tokens}",
        "progress=false",
    ]
    if model == "tiny":
        words += ["runtime.threads=1", *(["intervention.layer=1"] if "intervention=fastv" in method else [])]
    elif model.startswith("qwen"):
        words.append("measurement.image_size=[924,924]")  # 33 x 33 vision tokens
    return words


def run(part: Part, out: Path, limit_s: float) -> dict[str, object]:
    """Run one part; how it ended."""
    began = time.monotonic()
    command = [sys.executable, "-m", "vlmbench", *part.words, f"output_dir={out / part.name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        status: int | None = done.returncode
        (out / f"{part.name}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        sys.stdout.write(done.stdout)
        if status:
            sys.stdout.write(done.stderr[-2000:])
    except subprocess.TimeoutExpired:
        status = None
    return {"part": part.name, "status": status, "wall_s": round(time.monotonic() - began, 1), "words": part.words}


def main() -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts; all where none is named")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_interventions"))
    parser.add_argument("--model", help="another model, such as tiny, instead of the two 7B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--narrow", action="store_true", help="two shares, three runs, four tokens")
    parser.add_argument("--keeps", default=KEEPS, help="shares of vision tokens")
    parser.add_argument("--runs", type=int, default=40, help="of each arm")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--limit-s", type=float, default=480.0, help="of one part; it continues when run again")
    parser.add_argument("--list", action="store_true", help="show the commands and end")
    args = parser.parse_args()
    wanted = Size(keeps=args.keeps, runs=args.runs, tokens=args.tokens)
    found = parts(args.model, args.device, size=Size("[1,0.5]", 3, 4) if args.narrow else wanted)
    if unknown := sorted(set(args.names) - {part.name for part in found}):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(part.name for part in found)}")
    chosen = [part for part in found if not args.names or part.name in args.names]
    if args.list:
        for part in chosen:
            print(part.name, "python -m vlmbench", *part.words)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "parts.jsonl").open("a", encoding="utf-8") as lines:
        for part in chosen:
            ended = run(part, args.out, args.limit_s)
            print(json.dumps(ended), file=lines, flush=True)
            print(f"{ended['part']}: status {ended['status']} after {ended['wall_s']} s", flush=True)


if __name__ == "__main__":
    main()
