"""Faults that users of other instruments reported, planted here: each is a kind of error, kept out by a known answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections import Counter as Counted
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analysis.made import PROVENANCE, row, write
from tests.analysis.test_energy import joules
from tests.analysis.test_floors import PEAKS, costly
from tests.cluster.test_grid_files import ended, says
from tests.command_line import as_before, command_line
from tests.models.shipped import loaded, request, shrunken, spec
from tests.probes.fake_cuda import FakeCuda, OnFakeCuda
from tests.probes.test_energy import IDLE, Board
from tests.probes.test_kernels import event
from tests.probes.test_recompiles import Compiling
from tests.test_runner import FAST, measure, sweep
from tests.test_signals import SMALL
from vlmbench.analysis import energy as energy_analysis
from vlmbench.analysis.floors import floor_table
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.quantiles import quantile
from vlmbench.analysis.scaling import without_first_times
from vlmbench.cli import node
from vlmbench.cluster import slurm
from vlmbench.cluster.grid import Task, new_submission, task_content
from vlmbench.cluster.states import RunState
from vlmbench.cluster.status import status
from vlmbench.cost.flop_sharing import Counter
from vlmbench.errors import ModelError, SampleError, UnreachablePointError
from vlmbench.machine.gpu import Gpu
from vlmbench.machine.installation import package_dir, source_sha256
from vlmbench.models.loading import build_config
from vlmbench.models.protocol import Prepared
from vlmbench.models.spec import ModelSpec
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.probes import energy
from vlmbench.probes.kernels import device_values
from vlmbench.probes.recompiles import RecompilesProbe
from vlmbench.probes.stages import segments
from vlmbench.probes.timeline import TimelineProbe, TimelineWatch
from vlmbench.probes.trace import MARK, read_trace
from vlmbench.records.comparable import differences
from vlmbench.records.outcome import State
from vlmbench.records.reading import iter_rows
from vlmbench.runner import loop
from vlmbench.runner.execution import complete, prepare
from vlmbench.runner.warmup import Warmup
from vlmbench.testing import planted
from vlmbench.testing.planted import PlantedModel, SimulatedTime, Times
from vlmbench.testing.planted import request as any_request


@pytest.fixture(scope="module")
def tiny() -> TransformersModel:
    return loaded(spec("tiny"), device="cpu")


def test_tokens_are_counted_from_ids_not_from_text(tiny: TransformersModel) -> None:
    """flexible-inference-bench#66: output tokens counted by re-tokenising the text. These ids decode to no word."""

    class Unreadable(TransformersModel):
        def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
            del prepared, stopping_criteria
            return torch.tensor([[self.processor.tokenizer.eos_token_id or 0] * 7])

    model = Unreadable(**{name: value for name, value in vars(tiny).items() if name in _fields()})
    outcome = complete(model, prepare(model, request(new_tokens=7)), [], [])
    assert outcome.values["num_output_tokens"] == 7


def _fields() -> set[str]:
    return {name for name in TransformersModel.__dataclass_fields__ if not name.startswith("_")}


@pytest.mark.parametrize("name", ["qwen2_5_vl_7b", "gemma3_4b"])
def test_flops_do_not_depend_on_the_attention_kernel(name: str) -> None:
    """pytorch#177169: the FLOP formula of scaled-dot-product attention miscounts grouped queries."""
    one = shrunken(name)
    inputs = None
    counted = []
    for attention in ("sdpa", "eager"):
        model = loaded(one, device="cpu", attn_implementation=attention)
        inputs = model.prepare(request(size=(224, 224))).inputs
        counter = Counter.of_config(_config(one, attention))
        counted.append(counter.count(inputs, output_tokens=3))
    assert counted[0] == counted[1]


def _config(one: Any, attention: str) -> Any:
    config = build_config(one)
    config._attn_implementation = attention
    return config


def test_a_question_that_holds_the_image_token_is_refused_by_its_name(tiny: TransformersModel) -> None:
    """aiperf#667, and questions of MMMU: a literal image token in the text must not become an image."""
    token = tiny.processor.image_token
    with pytest.raises(SampleError, match=re.escape(token)):
        prepare(tiny, request(question=f"What does {token} show?"))


@pytest.mark.parametrize("changed", [{"packages": {"torch": "2.9.1"}}, {"cudnn": 91002}])
def test_another_torch_or_cudnn_makes_two_runs_unlike(changed: dict[str, Any]) -> None:
    """pytorch#174051, transformers#45750: a version of torch or cuDNN made the patch embedding many times slower."""
    here = {"model": {"name": "m"}, "software": {"packages": {"torch": "2.13.0"}, "cudnn": 91900}}
    there = {**here, "software": {**here["software"], **changed}}
    assert differences(here, here) == []
    (said,) = differences(here, there)
    assert said.startswith("software.torch: 2.13.0" if "packages" in changed else "software.cudnn: 91900")


def test_a_stage_a_hundred_times_over_its_floor_is_said_to_be(tmp_path: Path) -> None:
    """pytorch#174051: an encoder on a slow path. Its distance to the floor names the stage."""
    rows = [costly(sample=f"s{i}", vision=400.0) for i in range(20)]
    table = floor_table(load_runs(write(tmp_path, rows)), PEAKS).set_index("component")
    assert table.loc["T_vision_encoder", "over_floor"] == pytest.approx(200)
    assert table["over_floor"].idxmax() == "T_vision_encoder"


def test_the_largest_of_few_runs_is_no_p99() -> None:
    """GuideLLM#1163: the P99 of 71 requests was their largest."""
    times = np.random.default_rng(0).lognormal(0, 0.05, 367)
    assert quantile(times, 0.99).value is None
    assert quantile(np.random.default_rng(0).lognormal(0, 0.05, 800), 0.99).low is not None


def test_without_warm_up_the_first_run_of_a_shape_says_so(tmp_path: Path) -> None:
    """tt-inference-server#4179: two runs a shape, the first of them cold."""
    series = sweep({"vision_tokens": [4, 16]}, min_samples=2, max_samples=2)
    _, rows = measure(tmp_path, PlantedModel(FAST), series, warmup=Warmup(max_runs=0))
    for point in ("vision_tokens=4", "vision_tokens=16"):
        runs = [r for r in rows if r["point_id"] == point]
        flagged = [r["status"] == "cold" or "first_seen_length" in r["flags"] for r in runs]
        assert flagged == [True, *[False] * (len(runs) - 1)]


def test_what_the_first_run_of_a_size_costs_is_in_no_measured_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp#27147: the warm-up did not run the encoder, so that the first image was half as slow again."""
    clock, seen = SimulatedTime(), set()
    clock.install(monkeypatch)

    def slow_at_first(request: Any) -> None:
        if request.vision_tokens not in seen:
            seen.add(request.vision_tokens)
            clock.advance(500)

    model = PlantedModel(FAST, fail=slow_at_first)
    _, rows = measure(tmp_path, model, sweep({"vision_tokens": [4, 16, 64]}))
    assert len(seen) == 3
    assert max(r["T_total"] for r in rows if r["status"] == "ok") < 500
    assert max(r["T_total"] for r in rows if r["status"] != "ok") >= 500


# What is compiled again


def test_a_run_that_compiles_again_is_flagged_and_the_slope_without_it_is_known() -> None:
    """transformers#46421: the second generate() compiled again, 14.9 s against 1.4 s."""
    torch._dynamo.reset()
    model = Compiling()
    outcomes = []
    for size in (3, 3, 5, 5):
        model.size = size
        outcomes.append(complete(model, prepare(model, any_request(2)), [TimelineProbe(), RecompilesProbe()], []))
    torch._dynamo.reset()
    flags = pd.Series([" ".join(one.flags) for one in outcomes])
    assert ["recompiled" in text for text in flags] == [True, False, True, False]
    x = np.tile([10.0, 20.0, 40.0, 80.0], 6)
    slow = np.arange(24) < 4
    y = 20 + 0.5 * x + np.where(slow, 1000 * x / 10, 0.0)
    found = without_first_times(pd.Series(np.where(slow, "recompiled", "")), x, y, np.tile(range(4), 6))
    assert found is not None
    assert (found.flagged, found.slope is not None and found.slope.value) == (4, pytest.approx(0.5))


def test_a_model_with_cross_attention_takes_a_static_cache() -> None:
    """transformers#48141: Mllama crashed with one; a crash would be a row with its cause."""
    model = loaded(shrunken("llama_3_2_11b_vision"), device="cpu", cache_implementation="static")
    values = complete(model, prepare(model, request(new_tokens=3)), [TimelineProbe()], []).values
    assert (values["num_output_tokens"], len(values["ITL"])) == (3, 2)


# Molmo


def test_the_native_molmo_answers_with_this_transformers() -> None:
    """molmo#25, #42, VLMEvalKit#1297: Molmo's own code broke with new releases."""
    small = shrunken("molmo_7b_d")
    small.config["vision_config"]["num_hidden_layers"] = 24
    model = loaded(small, device="cpu")
    outcome = complete(model, prepare(model, request(size=(64, 64), new_tokens=2)), [TimelineProbe()], [])
    assert outcome.values["num_output_tokens"] == 2
    assert outcome.values["num_vision_tokens"] > 0


def test_molmos_own_code_is_not_needed_and_the_native_way_is_named(tmp_path: Path) -> None:
    """The same: with its code allowed, a checkpoint as released is led to the native model."""
    code = {"AutoConfig": "config_molmo.MolmoConfig", "AutoModelForCausalLM": "modeling_molmo.MolmoForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "molmo", "qkv_bias": True, "auto_map": code}))
    (tmp_path / "modeling_molmo.py").write_text("from transformers.nowhere import Gone\n")
    own = ModelSpec(name="mine", path=str(tmp_path), weights="pretrained", trust_remote_code=True, config={})
    with pytest.raises(ModelError, match=r"python -m vlmbench\.models\.molmo\.convert"):
        loaded(own, device="cpu")


# Two devices


class OnTwo(OnFakeCuda):
    count = 2


@pytest.mark.parametrize("vision_on", [0, 1])
def test_each_stage_is_timed_on_its_own_device(monkeypatch: pytest.MonkeyPatch, vision_on: int) -> None:
    """lmdeploy#1759: only one of two GPUs was waited for. Their clocks have nothing in common."""
    cuda, clock = FakeCuda({0: 5.0, 1: 90_000.0}), SimulatedTime()
    cuda.install(monkeypatch)
    clock.install(monkeypatch)

    def wait(ms: float) -> None:
        clock.advance(ms)
        cuda.now_ms = {device: now + ms for device, now in cuda.now_ms.items()}

    monkeypatch.setattr(planted, "wait", wait)
    model = OnTwo(Times(setup=1, vision=50, projector=10, prefill=5, decode=2, loop=0.5, tail=0.25))
    tower = model.module.get_submodule(model.anatomy.vision_encoder[0])

    def ends(_: Any, module: torch.nn.Module) -> tuple[torch.device, torch.device]:
        device = torch.device("cuda", vision_on if module is tower else 1 - vision_on)
        return device, device

    monkeypatch.setattr(TimelineWatch, "_ends", ends)
    values = complete(model, prepare(model, any_request(3)), [TimelineProbe()], []).values
    found = {name: values[name] for name in ("T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode")}
    assert found == pytest.approx(
        {"T_vision_encoder": 50, "T_projector": 10, "T_LLM_prefill": 5, "T_LLM_decode": 5}, abs=1e-6
    )
    assert values["T_residual"] == pytest.approx(0.25, abs=1e-6)
    waited = [device for what, device in cuda.log if what == "synchronize"]
    assert Counted(waited)[0] == Counted(waited)[1] >= 2


# Settings of a processor


def test_a_setting_of_the_processor_works_or_is_refused_by_its_name() -> None:
    """transformers#39591, #36890: 'max_pixels' was ignored without a word."""
    qwen = loaded(shrunken("qwen2_5_vl_7b"), device="cpu")
    seen = [
        qwen.prepare(request(processor_kwargs={"max_pixels": most})).counts.num_vision_tokens
        for most in (50_000, 200_000)
    ]
    assert 0 < seen[0] < 64 < seen[1] <= 256
    fixed = loaded(shrunken("llava_1_5_7b"), device="cpu")
    with pytest.raises(UnreachablePointError, match="max_pixels"):
        fixed.prepare(request(processor_kwargs={"max_pixels": 50_000}))


def test_another_backend_of_the_processor_makes_two_runs_unlike() -> None:
    """transformers#36890: the default image processor changed from one release to the next."""
    here = {"model": {"name": "m", "processor_backend": "torchvision"}}
    (said,) = differences(here, {"model": {"name": "m", "processor_backend": "pil"}})
    assert "processor_backend" in said


# Slurm


def task_of_a_grid(folder: Path) -> Path:
    """A small run as a task of Slurm: its task file."""
    configs: list[dict[str, Any]] = []

    def keep(job: Any) -> int:
        configs.append(dict(job.config))
        return 0

    assert command_line(*SMALL, "report=none", f"output_dir={folder / 'composed'}", task=keep).status == 0
    config = {key: value for key, value in configs[0].items() if key != "hydra"}
    content = task_content(
        index=0, directory="0_run", overrides=[], config=config, source_sha256=source_sha256(package_dir()), requeues=1,
        grace_s=60.0,
    )  # fmt: skip
    tasks = {0: (Task(index=0, directory="0_run", overrides=()), content)}
    made = new_submission(folder, cluster="slurm", job_name="t", tasks=tasks, settings={}).with_ids({0: "7_0"})
    made.write()
    return made.task_file(made.tasks[0])


def test_a_signal_at_the_time_limit_is_never_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit#1708, #1776, hydra#3201: USR2 at the limit was taken for preemption, or the job for a finished one."""
    task, asked = task_of_a_grid(tmp_path), []
    monkeypatch.setattr(slurm, "left_s", lambda job: 30.0)
    monkeypatch.setattr(slurm, "is_preempted", lambda job: False)
    monkeypatch.setattr(slurm, "requeue", lambda job: bool(asked.append(job)))
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    original, runs = loop.complete, []

    def signalled(*arguments: Any) -> Any:
        runs.append(1)
        if len(runs) == 3:
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(*arguments)

    monkeypatch.setattr(loop, "complete", signalled)
    with as_before():
        assert node.run(task) == 130
    assert len(runs) == 3, "the run at hand is finished, and no other begun"
    assert asked == ["7_0"]
    outcome = json.loads((tmp_path / "0_run" / "outcome.json").read_text())
    assert (outcome["state"], outcome["exit_status"], outcome["cause"]) == ("interrupted", 130, "stopped")
    says(monkeypatch, {}, {"7_0": "TIMEOUT"})
    assert [one.state for one in status(tmp_path)] == [RunState.INTERRUPTED]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with as_before():
        assert node.run(task) == 0
    assert [one.state for one in status(tmp_path)] == [RunState.DONE]
    measured = [r for r in iter_rows(tmp_path / "0_run") if r["status"] == "ok"]
    keys = [(r["point_id"], r["sample_id"], r["repeat"], r["mode"]) for r in measured]
    assert len(set(keys)) == len(keys), "nothing is measured twice"


def test_an_id_that_slurm_gave_before_is_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit#1660: the outcome of an earlier job of the same id was taken for the new one's."""
    tasks = {0: (Task(index=0, directory="0_run", overrides=()), {"seed": 1})}
    ended(tmp_path / "0_run", State.FAILED, 1, "7_0", reason="out of luck")
    made = new_submission(tmp_path, cluster="slurm", job_name="t", tasks=tasks, settings={}).with_ids({0: "7_0"})
    replace(made, submitted_unix_s=time.time() + 1000).write()
    says(monkeypatch, {"7_0": "PENDING"})
    assert [one.state for one in status(tmp_path)] == [RunState.QUEUED]
    says(monkeypatch, {}, {"7_0": "COMPLETED"})
    (one,) = status(tmp_path)
    assert (one.state, "out of luck" in (one.reason or "")) == (RunState.FAILED, False)


def test_a_log_folder_that_is_gone_is_no_silent_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hydra#2100: Slurm cannot write the log, and the job ends without a word."""
    tasks = {0: (Task(index=0, directory="0_run", overrides=()), {"seed": 1})}
    made = new_submission(tmp_path, cluster="slurm", job_name="t", tasks=tasks, settings={}).with_ids({0: "7_0"})
    made.write()
    shutil.rmtree(made.folder / "logs")
    says(monkeypatch, {}, {"7_0": "FAILED"})
    (one,) = status(tmp_path)
    assert one.state == RunState.FAILED
    assert "ended without a result (Slurm: FAILED, exit code 0:9)" in (one.reason or "")


# Captured graphs


def test_kernels_of_a_captured_graph_lie_in_a_stage() -> None:
    """Hyperloom#946, TraceLens#827, kineto#1062: kernels of captured graphs lose the operator that launched them."""
    marks = [
        ("START", 0), ("ENTER_VISION", 1000), ("EXIT_VISION", 3000), ("ENTER_FORWARD", 4000), ("EXIT_FORWARD", 5900),
        ("TOKEN", 6000), ("ENTER_FORWARD", 6100), ("EXIT_FORWARD", 9900), ("TOKEN", 10000), ("END", 10500),
    ]  # fmt: skip
    gpu = {"pid": 0, "tid": 7}
    traced = [
        {"ph": "M", "name": "process_name", "ts": 0, "pid": 4, "tid": 0, "args": {"name": "python"}},
        *(event("user_annotation", f"{MARK}{name}", t, 3) for name, t in marks),
        event("cuda_runtime", "cudaLaunchKernel", 1200, 5, args={"correlation": 1}),
        event("cuda_runtime", "cudaGraphLaunch", 4100, 5, args={"correlation": 2}),
        event("cuda_runtime", "cudaGraphLaunch", 6200, 5, args={"correlation": 3}),
        event("kernel", "tower", 1300, 1000, args={"correlation": 1, "device": 0}, **gpu),
        *(event("kernel", "k", 4200 + 100 * i, 50, args={"correlation": 2, "device": 0}, **gpu) for i in range(10)),
        *(event("kernel", "k", 6300 + 100 * i, 50, args={"correlation": 3, "device": 0}, **gpu) for i in range(20)),
    ]
    trace = read_trace(traced)
    times = {"T_setup": 1.0, "T_vision_encoder": 2.0, "T_LLM_prefill": 3.0, "T_LLM_decode": 4.0, "T_total": 10.5}
    values = device_values(trace, segments(trace.marks, num_output_tokens=2), times)
    assert values["unlinked_kernels"] == 0
    assert (values["kernels_LLM_prefill"], values["kernels_LLM_decode"]) == (10, 20)
    in_stages = sum(values[f"busy_{stage}"] for stage in ("vision_encoder", "LLM_prefill", "LLM_decode"))
    assert in_stages == pytest.approx(values["busy_total"]) == pytest.approx(2.5)


# Energy


class SlowHost(PlantedModel):
    """Prepares an image of 20 MP and makes text of the answer for seconds, in which the board idles."""

    def __init__(self, board: Board) -> None:
        super().__init__(Times(setup=0, vision=0, projector=0, prefill=0, decode=0, loop=0, tail=0, preprocess=0))
        self.board = board

    def prepare(self, request: Any) -> Prepared:
        self.board.pass_time(3.0)
        return super().prepare(request)

    def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
        self.board.watts = 600
        self.board.pass_time(2.0)
        self.board.watts = 100
        return super().generate(prepared, stopping_criteria)

    def detokenize(self, tokens: torch.Tensor) -> list[str]:
        self.board.pass_time(3.0)
        return super().detokenize(tokens)


def test_work_of_the_host_around_a_run_is_in_no_window_of_its_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """ML.ENERGY: readings came late while the process prepared its inputs."""
    board = Board(100)
    counter = SimpleNamespace(energy_j=board.counter, name="board", sampled_energy_j=lambda seconds: None)
    monkeypatch.setattr(energy, "_gpus_with_counter", lambda model: [counter])
    timed = partial(energy.EnergyWatch, clock=board.clock, sleep=board.pass_time)
    monkeypatch.setattr(energy, "EnergyWatch", timed)
    probe, model = energy.EnergyProbe(), SlowHost(board)
    probe._idle["cpu"] = IDLE
    values = complete(model, prepare(model, any_request()), [probe], []).values
    assert values["energy_j"] == pytest.approx(1000, rel=1e-3)
    assert values["energy_window_ms"] == pytest.approx(2100, abs=101)


class Sampled:
    """NVML with samples of power, 400 W every 20 ms for four seconds."""

    NVMLError = RuntimeError
    NVML_TOTAL_POWER_SAMPLES = 0

    def __init__(self, kept: Any) -> None:
        self.samples = [
            SimpleNamespace(timeStamp=20_000 * (i + 1), sampleValue=SimpleNamespace(uiVal=400_000))
            for i in range(200)
            if kept(i)
        ]

    def nvmlDeviceGetSamples(self, handle: str, kind: int, since: int) -> tuple[int, list[Any]]:
        return 0, self.samples


@pytest.mark.parametrize(
    ("kept", "flags"),
    [
        (lambda i: True, []),
        (lambda i: i % 2 == 0, []),
        (lambda i: not 50 <= i < 150, ["energy_samples_missing"]),
    ],
    ids=["all", "every other", "a hole of half"],
)  # fmt: skip
def test_energy_that_nothing_checks_says_so(kept: Any, flags: list[str]) -> None:
    """InferenceX: a measurement can be invalid, and must say so itself."""
    gpu, board = Gpu(nvml=Sampled(kept), handle="0", name="made"), Board(400)
    watch = energy.EnergyWatch(
        board.counter, IDLE, gpus=1, clock=board.clock, sleep=board.pass_time, integral=gpu.sampled_energy_j
    )
    board.pass_time(4.0)
    watch.close()
    values = watch.values(SimpleNamespace(T_total=4000.0, num_output_tokens=4, batch_size=1))
    assert values["flags"] == flags
    assert (values["energy_integral_j"] is None) == bool(flags)


def test_energy_that_nothing_checked_is_withheld_with_the_reason(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}") | joules(100.0 + i) for i in range(12)]
    for wrong in rows[6:]:
        wrong |= {"flags": ["energy_samples_missing"], "energy_per_request_j": 1e9}
    found = energy_analysis.energy_summary(load_runs(write(tmp_path, rows), energy_analysis.COLUMNS), PROVENANCE)
    assert found is not None
    assert found["per_request_j"]["mean"] < 200
    assert any("Withheld: 6 runs cannot be checked" in words for words in found["words"])
