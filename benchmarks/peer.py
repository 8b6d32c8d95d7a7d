"""vlmbench and optimum-benchmark 0.6.0 side by side: start-up, wall time per measured time, peak memory.

    python benchmarks/peer.py                  # makes an environment for the peer in a temporary folder
    python benchmarks/peer.py --env DIR        # keeps it in DIR, and finds it there the next time
    python benchmarks/peer.py --python 3.11    # the peer's interpreter, where it should be another

Both measure the same checkpoint: a tiny Qwen2-VL with random weights (the newest architecture for which the peer makes
image inputs itself), at three image sizes (16, 64, 144 vision tokens), with equal prompt lengths, output lengths and
numbers of runs per point. ``measured`` is time inside ``generate()`` in the runs that a tool's statistics use; ``wall``
is the whole command. ``measured`` grows when the machine is busy, so that a tool that met a slow moment looks better in
``wall / measured``; ``wall s / run`` does not depend on it. The peer writes numbers only; vlmbench is shown as it comes
(figures, report, peaks of the device measured) and measuring only (``report=none device_peaks=none``). The peer needs
older packages, so the two run on different transformers: latencies are not compared. ``peak MiB, largest`` is of the
largest single process, ``all`` of all processes that were alive at once: the peer has two, vlmbench one.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child import Cost, checked, median, run

PEER = ("optimum-benchmark==0.6.0", "transformers==4.57.6", "huggingface_hub==0.36.2", "datasets==4.0.0")
TORCH = ("torch==2.13.0+cpu", "torch==2.13.0")  # the CPU build first, wherever one is, as scripts/setup.sh
SIDES = (112, 224, 336)  # pixels: (side / 28)² vision tokens
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
TINY = Path(__file__).resolve().parent.parent / "conf" / "model" / "tiny.yaml"

# In the peer's environment: transformers 5 reads what 4 writes, not the other way round.
WRITE_MODEL = """
import sys, torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
torch.manual_seed(0)
config = Qwen2VLConfig(
    vision_config=dict(depth=3, embed_dim=32, hidden_size=128, mlp_ratio=4, num_heads=2, patch_size=14,
                       spatial_merge_size=2, temporal_patch_size=2),
    text_config=dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=8192, max_position_embeddings=32768, rms_norm_eps=1e-6,
                     rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
                     bos_token_id=None, eos_token_id=8002, pad_token_id=8000),
    tie_word_embeddings=False, image_token_id=8005, video_token_id=8006,
    vision_start_token_id=8003, vision_end_token_id=8004)
Qwen2VLForConditionalGeneration(config).save_pretrained(sys.argv[1])
"""

# In ours: tokenizer, image processor and prompt format of the tiny model, as a checkpoint's files.
WRITE_PROCESSOR = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from vlmbench.models.processors import build_processor
spec = OmegaConf.to_container(OmegaConf.load(sys.argv[1]).processor)
spec["class"] = "Qwen2VLProcessor"
processor = build_processor(spec, model_type="qwen2_vl", vocab_size=8192)
for part in (processor.tokenizer, processor.image_processor):  # a processor without its video part cannot be saved
    part.save_pretrained(sys.argv[2])
(Path(sys.argv[2]) / "chat_template.jinja").write_text(processor.chat_template)
"""

PEER_CONFIG = """
defaults: [benchmark, scenario: inference, launcher: process, backend: pytorch, _self_]
name: peer
launcher: {device_isolation: false}
backend:
  {model: "%(model)s", task: image-text-to-text, library: transformers, model_type: qwen2_vl, device: cpu}
scenario:
  iterations: %(runs)d
  duration: 0
  warmup_runs: 5
  input_shapes:  # text ids below the special tokens: the peer draws them at random from all of the vocabulary
    {batch_size: 1, num_images: 1, sequence_length: 32, vocab_size: 8000,
     num_channels: 3, image_token_id: 8005, patch_size: 14, temporal_patch_size: 2, spatial_merge_size: 2,
     height: 112, width: "${scenario.input_shapes.height}"}
  generate_kwargs: {max_new_tokens: %(tokens)d, min_new_tokens: %(tokens)d}
hydra:
  job: {chdir: true}
  sweep: {dir: "%(out)s", subdir: "${hydra.job.num}"}
"""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One tool's run of the three points: what it cost and the seconds inside ``generate()`` that it measured."""

    cost: Cost
    measured_s: float
    measured_runs: int
    loads: int

    @property
    def wall_per_measured(self) -> float:
        """Seconds of waiting for one second of data."""
        return self.cost.wall_s / self.measured_s


def make_environment(folder: Path, python: str) -> Path:
    """The peer's interpreter in an environment of its own; installs what is missing.

    Raises:
        SystemExit: pip cannot install the packages; its last lines are shown.
    """
    interpreter = folder / "venv" / "bin" / "python"
    if not interpreter.exists():
        folder.mkdir(parents=True, exist_ok=True)
        checked(run([python, "-m", "venv", str(folder / "venv")]), "making an environment")
    if run([str(interpreter), "-c", "import optimum_benchmark"], cwd=folder).status == 0:
        return interpreter
    print(f"installing {' '.join(PEER)} in {folder} …", flush=True)
    pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    tries = [run([*pip, name]) for name in TORCH[:1]]
    if tries[0].status != 0:
        tries.append(checked(run([*pip, TORCH[1]]), f"installing {TORCH[1]}"))
    checked(run([*pip, *PEER, TORCH[1]]), "installing the peer")
    return interpreter


def write_checkpoint(peer: Path, folder: Path) -> None:
    """The checkpoint that both tools load."""
    checked(run([str(peer), "-c", WRITE_MODEL, str(folder)], env=OFFLINE), "writing the model")
    command = [sys.executable, "-c", WRITE_PROCESSOR, str(TINY), str(folder)]
    checked(run(command, env=OFFLINE), "writing the processor")


def sweep_peer(peer: Path, model: Path, folder: Path, options: argparse.Namespace) -> Sweep:
    """The three points by the peer: one multirun, a process and a load for each point."""
    out = folder / "out"
    folder.mkdir()
    settings = {"model": model, "runs": options.runs, "tokens": options.tokens, "out": out}
    (folder / "peer.yaml").write_text(PEER_CONFIG % settings)
    sides = ",".join(map(str, SIDES))
    command = [str(peer.parent / "optimum-benchmark"), "--config-dir", str(folder), "--config-name", "peer"]
    command += ["-m", f"scenario.input_shapes.height={sides}"]
    cost = checked(run(command, cwd=folder, env=OFFLINE, together=True), "optimum-benchmark")
    reports = sorted(out.glob("*/benchmark_report.json"))
    if len(reports) != len(SIDES):
        sys.exit(f"optimum-benchmark reported {len(reports)} of {len(SIDES)} points:\n{cost.err[-2000:]}")
    generate = [json.loads(report.read_text())["generate"]["latency"]["values"] for report in reports]
    loads = (cost.out + cost.err).count("Running model loading tracking")
    return Sweep(
        cost=cost,
        measured_s=sum(map(sum, generate)),
        measured_runs=sum(map(len, generate)),
        loads=loads or len(reports),
    )


def sweep_ours(model: Path, folder: Path, options: argparse.Namespace, *, report: bool) -> Sweep:
    """The three points by vlmbench: one process, one load."""
    tokens = ",".join(str((side // 28) ** 2) for side in SIDES)
    command = [sys.executable, "-m", "vlmbench", "experiment=phase2", "model.weights=pretrained", f"model.path={model}"]
    command += [f"sweep.axes.vision_tokens=[{tokens}]", "measurement.prompt_tokens=32", "measurement.bare_every=0"]
    command += [f"measurement.stopping.{name}_samples={options.runs}" for name in ("min", "max")]
    command += ["measurement.stopping.min_time_s=0", "runtime.device=cpu", f"output.tokens={options.tokens}"]
    command += [f"output_dir={folder}"] if report else [f"output_dir={folder}", "report=none", "device_peaks=none"]
    cost = checked(run(command, cwd=folder.parent, env=OFFLINE, together=True), "vlmbench")
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "records.jsonl").open()]
    times = [row["T_total"] for row in rows if row["status"] == "ok" and row["mode"] == "instrumented"]
    loads = sum("weights) on " in line for line in cost.err.splitlines())
    return Sweep(cost=cost, measured_s=sum(times) / 1e3, measured_runs=len(times), loads=loads)


def table(helps: dict[str, list[Cost]], sweeps: dict[str, list[Sweep]]) -> None:
    """Medians of the raw figures of each tool, and ratios peer / vlmbench."""
    names = list(sweeps)
    rows: list[tuple[str, Callable[[str], float], str]] = [
        ("--help, wall s", lambda name: median(helps[name], "wall_s"), "{:.2f}"),
        ("--help, CPU s", lambda name: median(helps[name], "cpu_s"), "{:.2f}"),
        ("wall s", functools.partial(_median, sweeps, lambda s: s.cost.wall_s), "{:.1f}"),
        ("CPU s", functools.partial(_median, sweeps, lambda s: s.cost.cpu_s), "{:.1f}"),
        ("measured s", functools.partial(_median, sweeps, lambda s: s.measured_s), "{:.2f}"),
        ("measured runs", functools.partial(_median, sweeps, lambda s: s.measured_runs), "{:.0f}"),
        ("model loads", functools.partial(_median, sweeps, lambda s: s.loads), "{:.0f}"),
        ("wall / measured", functools.partial(_median, sweeps, lambda s: s.wall_per_measured), "{:.1f}"),
        ("wall s / run", functools.partial(_median, sweeps, lambda s: s.cost.wall_s / s.measured_runs), "{:.2f}"),
        ("peak MiB, largest", functools.partial(_median, sweeps, lambda s: s.cost.peak_mib), "{:.0f}"),
        ("peak MiB, all", functools.partial(_median, sweeps, lambda s: s.cost.together_mib or math.nan), "{:.0f}"),
    ]
    peer, ours, bare = names
    print(f"{'':18}{peer:>20}{ours:>12}{bare:>16}{'ratio':>9}{'ratio':>16}")
    print(f"{'':18}{'':>20}{'':>12}{'':>16}{'peer/ours':>9}{'peer/measuring':>16}")
    for label, value, form in rows:
        raw = [value(name) for name in names]
        shown = [form.format(x) for x in raw]
        ratios = [f"{raw[0] / raw[1]:.2f}", f"{raw[0] / raw[2]:.2f}"]
        print(f"{label:18}{shown[0]:>20}{shown[1]:>12}{shown[2]:>16}{ratios[0]:>9}{ratios[1]:>16}")


def _median(sweeps: dict[str, list[Sweep]], figure: Callable[[Sweep], float], name: str) -> float:
    return statistics.median(figure(sweep) for sweep in sweeps[name])


def compare(environment: Path, work: Path, options: argparse.Namespace) -> None:
    """Run both tools in turn and print the table."""
    peer = make_environment(environment, options.python)
    model = work / "checkpoint"
    write_checkpoint(peer, model)
    names = ("optimum-benchmark", "vlmbench", "measuring only")
    helps: dict[str, list[Cost]] = {name: [] for name in names}
    sweeps: dict[str, list[Sweep]] = {name: [] for name in names}
    for turn in range(options.repeats + 1):  # the first turn warms the page cache and counts for nothing
        line = [str(peer.parent / "optimum-benchmark"), "--help"]
        peer_help = checked(run(line, cwd=work, env=OFFLINE), "optimum-benchmark --help")
        our_help = checked(run([sys.executable, "-m", "vlmbench", "--help"], cwd=work), "vlmbench --help")
        if turn == 0:
            continue
        for name, cost in zip(names, (peer_help, our_help, our_help), strict=True):
            helps[name].append(cost)
        sweeps[names[0]].append(sweep_peer(peer, model, work / f"peer{turn}", options))
        sweeps[names[1]].append(sweep_ours(model, work / f"ours{turn}", options, report=True))
        sweeps[names[2]].append(sweep_ours(model, work / f"bare{turn}", options, report=False))
    print(f"{options.runs} runs a point, {options.tokens} new tokens, medians of {options.repeats} turn(s), ", end="")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    table(helps, sweeps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, help="folder of the peer's environment (default: temporary)")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the peer (default: this one)")
    parser.add_argument("--runs", type=int, default=30, help="measured runs a point (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=8, help="new tokens a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        compare(options.env.resolve() if options.env else work / "env", work, options)


if __name__ == "__main__":
    main()
