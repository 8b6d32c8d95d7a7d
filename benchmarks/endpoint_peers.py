"""vlmbench's endpoint runtime beside AIPerf 0.13 and GuideLLM 0.8 on one replay server: start-up, cost, and the truth.

    python benchmarks/endpoint_peers.py --env DIR                  # keeps the peers' environments in DIR (2 GB)
    python benchmarks/endpoint_peers.py --env DIR --streams 8 --requests 200 --turns 3
    python benchmarks/endpoint_peers.py --env DIR --model late_role  # the role chunk comes before the prefill

Every tool sends the same number of requests (one image of 280 x 280 pixels, an answer of 16 tokens) in a closed loop to
one server of planted streams, in turn, each from an environment of its own that this program makes with uv. The server
writes down when each chunk was planned and when it left, so what a tool reports is compared with what happened to its
own requests. vlmbench is shown as it comes (figures, report) and measuring only (``report=none``).

* ``start-up``: from the command to the first chat request at the server (the first of all: warm-up and rehearsal too).
* ``after``: from the server's last chunk to the end of the command.
* ``wall / request``, ``CPU / request``: of the whole command, over the measured requests.
* ``TTFT``, ``ITL``: as the tool reports them; ``off by`` is the difference to the same statistic of what the server
  wrote. GuideLLM's percentiles of ITL are over means of requests, AIPerf's of its ITL too; AIPerf also has single gaps
  (inter-chunk latency), which are shown for it. ``-`` where a tool does not give it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child import Cost, checked, run
from endpoint import replay

from vlmbench.engines.endpoint.address import Address
from vlmbench.engines.endpoint.client import Client
from vlmbench.engines.endpoint.loop import run as run_loop
from vlmbench.engines.endpoint.server import get

AIPERF, GUIDELLM = "aiperf==0.13.0", "guidellm[vision]==0.8.1"
TORCH = "torch==2.13.0+cpu"  # or 3 GB of CUDA come along with GuideLLM
TORCH_AT = "https://download.pytorch.org/whl/torch/"  # where it is, unless PIP_FIND_LINKS names another place
SIDE, TOKENS, WORDS = 280, 16, 16
TINY = Path(__file__).resolve().parent.parent / "conf" / "model" / "tiny.yaml"

# The peers count prompt tokens with a tokenizer; which one it is changes no time here.
WRITE_TOKENIZER = """
import sys
from omegaconf import OmegaConf
from vlmbench.models.processors import build_processor
spec = OmegaConf.to_container(OmegaConf.load(sys.argv[1]).processor)
build_processor(spec, model_type="qwen2_vl", vocab_size=8192).tokenizer.save_pretrained(sys.argv[2])
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One run of a tool.

    Args:
        cost: of the command.
        startup_s, after_s: before the first request came, and after the last chunk left.
        requests: that the tool reports.
        ttft, itl: its statistics by name, ms: ``p50``, ``mean``, ``p99``.
        true_ttft, true_itl: the same of what the server wrote for its measured requests.
    """

    cost: Cost
    startup_s: float
    after_s: float
    requests: int
    ttft: dict[str, float]
    itl: dict[str, float]
    true_ttft: dict[str, float]
    true_itl: dict[str, float]


def statistics_of(values: Sequence[float]) -> dict[str, float]:
    """Median, mean and 99th percentile."""
    by_size = sorted(values)
    p99 = by_size[min(len(by_size) - 1, int(0.99 * len(by_size)))]
    return {"p50": statistics.median(by_size), "mean": statistics.fmean(by_size), "p99": p99}


def make_environments(folder: Path) -> dict[str, Path]:
    """``bin`` of each peer's environment; what is missing is installed with uv, from the registry."""
    found = {name: folder / name / "bin" for name in ("aiperf", "guidellm")}
    missing = [name for name, place in found.items() if not (place / name).exists()]
    if not missing:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    uv = folder / "uv" / "bin" / "uv"
    if not uv.exists():
        checked(run([sys.executable, "-m", "venv", str(folder / "uv")]), "making an environment")
        checked(run([str(uv.with_name("python")), "-m", "pip", "install", "-q", "uv"]), "installing uv")
    links = os.environ.get("PIP_FIND_LINKS", TORCH_AT).split()
    wanted: dict[str, list[str]] = {
        "aiperf": [AIPERF],
        "guidellm": [TORCH, GUIDELLM, *(part for link in links for part in ("--find-links", link))],
    }
    for name in missing:
        print(f"installing {name} in {folder} …", flush=True)
        checked(run([str(uv), "venv", "-q", "--clear", "--python", sys.executable, str(folder / name)]), "uv venv")
        python = str(found[name] / "python")
        checked(run([str(uv), "pip", "install", "-q", "--python", python, *wanted[name]]), f"installing {name}")
    return found


def log_of(url: str) -> list[dict[str, Any]]:
    """What the server wrote down so far."""
    client = Client(address=Address.parse(url))
    log: list[dict[str, Any]] = run_loop(get(client, "/v1/replay/log", {})).json
    return log


def watched(
    url: str, command: list[str], env: dict[str, str], folder: Path, read: Callable[[Path], dict[str, Any]]
) -> Seen:
    """Run a tool and set what it reports beside what the server wrote for it."""
    folder.mkdir()
    before = len(log_of(url))
    begin = time.monotonic_ns()
    cost = checked(run(command, cwd=folder, env=env), command[0])
    end = time.monotonic_ns()
    log = log_of(url)[before:]
    told = read(folder)
    gaps, first = [], []
    for sent in log[-told["requests"] :]:
        left = [written for kind, _, written in sent["steps"] if kind == "content"]
        first.append((left[0] - sent["received_ns"]) / 1e6)
        gaps += [(b - a) / 1e6 for a, b in itertools.pairwise(left)]
    return Seen(
        cost=cost,
        startup_s=(log[0]["received_ns"] - begin) / 1e9,
        after_s=(end - max(sent["steps"][-1][2] for sent in log)) / 1e9,
        true_ttft=statistics_of(first),
        true_itl=statistics_of(gaps),
        **told,
    )


def ours(url: str, folder: Path, options: argparse.Namespace, *, report: bool) -> Seen:
    """Measure with vlmbench."""
    command = [sys.executable, "-m", "vlmbench", "experiment=phase1", "runtime=endpoint", f"runtime.base_url={url}"]
    command += [f"runtime.model={options.model}", "runtime.proxy=none", "load=closed", f"output_dir={folder}/run"]
    command += [f"load.concurrency={options.streams}", f"load.warmup_requests={options.streams}"]
    command += [f"dataset.num_samples={options.requests}", f"measurement.image_size=[{SIDE},{SIDE}]"]
    command += [f"measurement.prompt_tokens={WORDS}", "measurement.reference=false", f"output.tokens={TOKENS}"]
    command += ["output.policy=natural"] + ([] if report else ["report=none"])

    def read(folder: Path) -> dict[str, Any]:
        rows = [json.loads(line) for line in (folder / "run" / "records.jsonl").open()]
        rows = [row for row in rows if row["status"] == "ok"]
        gaps = [gap for row in rows for gap in row["ITL"]]
        ttft = statistics_of([row["TTFT"] for row in rows])
        return {"requests": len(rows), "ttft": ttft, "itl": statistics_of(gaps)}

    return watched(url, command, {}, folder, read)


def aiperf(url: str, folder: Path, options: argparse.Namespace, place: Path, tokenizer: Path) -> Seen:
    """Measure with AIPerf, counting tokens as the server does (it counts its own otherwise)."""
    command = [str(place / "aiperf"), "profile", "--model", options.model, "--url", url.removesuffix("/v1")]
    command += ["--endpoint-type", "chat", "--streaming", "--concurrency", str(options.streams), "--ui", "none"]
    command += ["--request-count", str(options.requests), "--warmup-request-count", str(options.streams)]
    command += ["--tokenizer", str(tokenizer), "--use-server-token-count", "--artifact-dir", "out"]
    command += ["--synthetic-input-tokens-mean", str(WORDS), "--synthetic-input-tokens-stddev", "0"]
    command += ["--output-tokens-mean", str(TOKENS), "--image-batch-size", "1"]
    command += ["--image-width-mean", str(SIDE), "--image-height-mean", str(SIDE)]

    def read(folder: Path) -> dict[str, Any]:
        rows = [json.loads(line) for line in (folder / "out" / "profile_export.jsonl").open()]
        rows = [row["metrics"] for row in rows if row["metadata"]["benchmark_phase"] == "profiling"]
        gaps = [gap for row in rows for gap in row["inter_chunk_latency"]["value"]]
        told = json.loads((folder / "out" / "profile_export_aiperf.json").read_text())["inter_token_latency"]
        ttft = statistics_of([row["time_to_first_token"]["value"] for row in rows])
        return {"requests": len(rows), "ttft": ttft, "itl": {**statistics_of(gaps), "mean": told["avg"]}}

    return watched(url, command, {}, folder, read)


def guidellm(url: str, folder: Path, options: argparse.Namespace, place: Path, tokenizer: Path) -> Seen:
    """Measure with GuideLLM."""
    command = [str(place / "guidellm"), "run", "--disable-console", "--output", "kind=json,path=out.json"]
    command += ["--backend", f"kind=openai_http,target={url.removesuffix('/v1')},model={options.model}"]
    command += ["--profile", f"kind=concurrent,streams={options.streams}"]
    command += ["--constraint", f"kind=max_requests,count={options.requests}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={tokenizer}"]
    command += ["--data", f"kind=synthetic_image,width={SIDE},height={SIDE},output_tokens={TOKENS}"]

    def read(folder: Path) -> dict[str, Any]:
        (benchmark,) = json.loads((folder / "out.json").read_text())["benchmarks"]
        told = {
            name: benchmark["metrics"][name]["successful"]
            for name in ("time_to_first_token_ms", "inter_token_latency_ms")
        }
        ttft, itl = ({"p50": t["median"], "mean": t["mean"], "p99": t["percentiles"]["p99"]} for t in told.values())
        return {"requests": len(benchmark["requests"]["successful"]), "ttft": ttft, "itl": {"mean": itl["mean"]}}

    return watched(url, command, {"HF_HUB_OFFLINE": "1"}, folder, read)


def table(seen: dict[str, list[Seen]]) -> None:
    """Medians over the turns, and the ratios of the costs to vlmbench as it comes."""
    rows: list[tuple[str, Callable[[Seen], float | None], bool]] = [
        ("start-up, s", lambda s: s.startup_s, True),
        ("after, s", lambda s: s.after_s, True),
        ("wall / request, s", lambda s: s.cost.wall_s / s.requests, True),
        ("CPU / request, s", lambda s: s.cost.cpu_s / s.requests, True),
        ("requests", lambda s: s.requests, False),
    ]
    for name in ("ttft", "itl"):
        for kind in ("p50", "mean", "p99"):
            rows += [
                (f"{name.upper()} {kind}, ms", lambda s, n=name, k=kind: getattr(s, n).get(k), False),  # type: ignore[misc]
                ("  off by", lambda s, n=name, k=kind: _off(getattr(s, n), getattr(s, f"true_{n}"), k), False),  # type: ignore[misc]
            ]
    names = list(seen)
    print(f"{'':20}" + "".join(f"{name:>18}" for name in names))
    for label, value, costs in rows:
        raw = [_median([value(one) for one in seen[name]]) for name in names]
        cells = ["-" if x is None else f"{x:.3f}" for x in raw]
        base = raw[0]
        ratios = [f" ({x / base:.1f}x)" if costs and number and x and base else "" for number, x in enumerate(raw)]
        print(f"{label:20}" + "".join(f"{cell + ratio:>18}" for cell, ratio in zip(cells, ratios, strict=True)))


def _off(told: dict[str, float], true: dict[str, float], kind: str) -> float | None:
    return told[kind] - true[kind] if kind in told else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def main() -> None:
    """Run all tools in turn against one server and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, help="folder of the peers' environments (default: temporary)")
    parser.add_argument("--model", default="counted", help="script of the replay server (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=1, help="requests at a time (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=50, help="measured requests a run (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=1, help="runs of each tool (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        places = make_environments(options.env.resolve() if options.env else work / "env")
        tokenizer = work / "tokenizer"
        checked(run([sys.executable, "-c", WRITE_TOKENIZER, str(TINY), str(tokenizer)]), "writing the tokenizer")
        seen: dict[str, list[Seen]] = {}
        with replay() as url:
            for turn in range(options.turns):
                runs: dict[str, Callable[[Path], Seen]] = {
                    "vlmbench": lambda folder: ours(url, folder, options, report=True),
                    "measuring only": lambda folder: ours(url, folder, options, report=False),
                    "AIPerf": lambda folder: aiperf(url, folder, options, places["aiperf"], tokenizer),
                    "GuideLLM": lambda folder: guidellm(url, folder, options, places["guidellm"], tokenizer),
                }
                for number, (name, measure) in enumerate(runs.items()):
                    seen.setdefault(name, []).append(measure(work / f"{turn}-{number}"))
        print(
            f"script {options.model}, {options.streams} stream(s), {options.requests} requests a run, medians of "
            f"{options.turns} turn(s), {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        table(seen)


if __name__ == "__main__":
    main()
