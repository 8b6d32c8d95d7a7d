"""One model over two processes of a real torchrun, on CPUs with gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.models.shipped import loaded, request, save_checkpoint, shrunken, spec
from vlmbench.errors import ConfigError, DeviceError, ModelError, OutOfStepError
from vlmbench.machine.host import started_by_torchrun
from vlmbench.models import building
from vlmbench.models.parallel import tensor_parallel
from vlmbench.models.parallel.team import Team
from vlmbench.models.placement import Placement
from vlmbench.models.protocol import Prepared
from vlmbench.request import Output, TokenCounts

pytest.importorskip("accelerate", reason="transformers splits models only with accelerate")
ROOT = Path(__file__).parents[2]
Torchrun = Callable[..., subprocess.CompletedProcess[str]]
RUN = ("-m", "vlmbench", "experiment=smoke", "dataset.num_samples=2", "report=none", "probe=[timeline,memory]")
TP = "runtime.tp_plan=auto"


@pytest.fixture
def torchrun(tmp_path: Path) -> Torchrun:
    """Run a module or a script under ``torchrun`` in an empty working directory."""

    def run(*arguments: str, processes: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HYDRA_", "VLMBENCH_", "SLURM_"))}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        kept |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        return subprocess.run(
            [*launcher, *arguments],
            cwd=tmp_path,
            env=kept | environment,
            capture_output=True,
            text=True,
            timeout=550,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(loaded(spec("tiny"), device="cpu", seed=7), tmp_path_factory.mktemp("checkpoint"))


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ one model, two shares

GENERATE = """
import json, sys
import torch
from tests.models.shipped import loaded, request, shrunken, spec
from vlmbench.models.loading import load
from vlmbench.models.parallel import tensor_parallel
from vlmbench.models.parallel.follower import Follower

what, out = sys.argv[1:]
with tensor_parallel.joined() as team:
    if not team.leads:
        sys.exit(Follower(team, load).follow())
    known = spec("tiny", weights="pretrained", path=what) if "/" in what else shrunken(what)
    model = loaded(known, device="cpu", tp_plan="auto", seed=7)
    tokens = []
    for words in ("What color is the cat?", "Where?"):
        prepared = model.transfer(model.prepare(request(new_tokens=8, question=words)))
        tokens.append(model.generate(prepared).tolist())
        model.detokenize(torch.tensor(tokens[-1]))
    layer = next(p for n, p in model.module.named_parameters() if n.endswith("layers.0.mlp.up_proj.weight"))
    held, whole = list(layer.to_local().shape), list(layer.shape)
    facts = {k: model.facts[k] for k in ("processes", "split_share", "weights")}
    open(out, "w").write(json.dumps({"tokens": tokens, "held": held, "whole": whole, "facts": facts}))
"""


def generated(torchrun: Torchrun, tmp_path: Path, what: str) -> dict[str, object]:
    script, out = tmp_path / "generate.py", tmp_path / "out.json"
    script.write_text(GENERATE)
    done = torchrun(str(script), what, str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_two_processes_choose_the_tokens_of_one(torchrun, checkpoint, tmp_path):
    alone = loaded(spec("tiny", weights="pretrained", path=str(checkpoint)), device="cpu")
    expected = []
    for words in ("What color is the cat?", "Where?"):
        prepared = alone.transfer(alone.prepare(request(new_tokens=8, question=words)))
        expected.append(alone.generate(prepared).tolist())
    found = generated(torchrun, tmp_path, str(checkpoint))
    assert found["tokens"] == expected
    assert found["held"] == [found["whole"][0] // 2, found["whole"][1]]
    assert found["facts"]["processes"] == 2
    assert 0.5 < found["facts"]["split_share"] < 1


@pytest.mark.parametrize("name", ["llava_1_5_7b", "idefics3_8b"])  # idefics: a vocabulary that two do not divide
def test_random_weights_are_one_model(torchrun, tmp_path, name):
    """That both processes choose the same tokens is checked by the first one at every order."""
    found = generated(torchrun, tmp_path, name)
    assert found["facts"]["weights"] == "random"
    assert [len(batch[0]) for batch in found["tokens"]] == [8, 8]


# --------------------------------------------------------------------------------------------------------- whole runs


def test_a_run_has_one_directory_with_every_row(torchrun, checkpoint, tmp_path):
    done = torchrun(*RUN, f"model.path={checkpoint}", "model.weights=pretrained", TP)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert json.loads((folder / "outcome.json").read_text())["state"] == "done"
    ok = [row for row in rows(folder) if row["status"] == "ok"]
    assert {row["mode"] for row in ok} == {"instrumented", "bare"}  # kernels are traced on CUDA only
    timed = [row for row in ok if row["mode"] == "instrumented"]
    assert all(row["T_vision_encoder"] > 0 and row["T_LLM_decode"] > 0 for row in timed)
    assert not [row for row in rows(folder) if row["status"] == "error"]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["runtime"]["tp_plan"] == "auto"
    assert provenance["runtime"]["processes"] == 2
    assert provenance["runtime"]["devices"] == 2
    assert len(provenance["sessions"]) == 1


def test_a_traced_request_that_is_cut_leaves_nobody_behind(torchrun, tmp_path):
    """The followers know nothing of probes: they must be asked for as many tokens as the first process."""
    cut = ("probe=[timeline,kernels]", "probe.kernels.cpu=true", "probe.kernels.max_tokens=4", "output.tokens=12")
    done = torchrun(*RUN, *cut, TP, "measurement.trace_requests=2", "output_dir=out")
    assert done.returncode == 0, done.stderr[-3000:]
    found = [row for row in rows(tmp_path / "out") if row["status"] == "ok"]
    lengths = {mode: {r["num_output_tokens"] for r in found if r["mode"] == mode} for mode in ("instrumented", "trace")}
    assert lengths == {"instrumented": {12}, "trace": {4}}
    assert sum(row["mode"] == "trace" for row in found) == 4  # two of the data set, two of the reference
    assert not [row for row in rows(tmp_path / "out") if row["status"] == "error"]


def test_the_time_limit_of_the_first_process_ends_all(torchrun, tmp_path):
    done = torchrun(*RUN, TP, "dataset.num_samples=500", "measurement.time_limit_s=4", "output_dir=out")
    assert "exitcode  : 130" in done.stderr, done.stderr[-3000:]  # interrupted: the same command continues
    assert json.loads((tmp_path / "out/outcome.json").read_text())["state"] == "interrupted"
    assert {p["ended_by"] for p in json.loads((tmp_path / "out/points.json").read_text())["points"]} == {"time_limit"}


FAIL = """
import os, sys
from transformers.generation.utils import GenerationMixin
from vlmbench.cli.main import main
rank = sys.argv.pop(1)
whole, calls = GenerationMixin.generate, []
def generate(self, *arguments, **options):
    calls.append(1)
    if os.environ["RANK"] in rank and len(calls) > 3:
        raise MemoryError("planted")
    return whole(self, *arguments, **options)
GenerationMixin.generate = generate
main()
"""


@pytest.mark.parametrize(
    ("ranks", "reason"),
    [("1", "process 1: MemoryError: planted"), ("0", "out of step after: MemoryError: planted"), ("01", "planted")],
    ids=["a-follower", "the-first", "both"],
)
def test_a_failure_ends_the_run_and_every_process(torchrun, tmp_path, ranks, reason):
    script = tmp_path / "fail.py"
    script.write_text(FAIL)
    done = torchrun(str(script), ranks, *RUN[2:], TP, "output_dir=out", "dataset.num_samples=50")
    assert done.returncode == 1
    outcome = json.loads((tmp_path / "out/outcome.json").read_text())
    assert outcome["state"] == "failed"
    assert outcome["exit_status"] == 1
    assert reason in outcome["reason"]
    assert rows(tmp_path / "out")


def test_a_run_that_never_began_is_followed_by_none():
    """The others would be waiting in it."""
    team = Team(rank=0, size=1, store=torch.distributed.HashStore())
    prepared = Prepared(
        inputs={"input_ids": torch.zeros(1, 3, dtype=torch.long)},
        count=lambda: TokenCounts(num_input_tokens=3, num_prompt_tokens=3, num_vision_tokens=0, num_images=0),
        output=Output(max_new_tokens=1, forced=True),
    )
    team.announce(prepared)
    with team.in_step(prepared):
        pass
    team.announce(prepared)
    with pytest.raises(OutOfStepError, match="did not begin"):
        team.announce(prepared)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp_plan": "auto"}, "needs two or more processes of torchrun"),
        ({"tp_plan": "auto", "compile": True}, "exclude each other"),
    ],
)
def test_settings_that_contradict_each_other(options, message):
    with pytest.raises(ConfigError, match=message):
        loaded(spec("tiny"), device="cpu", **options)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("experiment=smoke", TP), "needs two or more processes of torchrun"),
        (("experiment=smoke", TP, "runtime.device_map=auto"), "must be null with 'runtime.device_map'"),
        (("experiment=smoke", "runtime.tp_plan=wibble"), "must be auto or null"),
    ],
)
def test_the_command_line_refuses(vlmbench_here, overrides, message):
    done = vlmbench_here(*overrides)
    assert done.returncode == 2
    assert message in done.stderr


def test_torchrun_without_a_plan_is_refused_once(torchrun):
    done = torchrun("-m", "vlmbench", "experiment=smoke")
    assert done.returncode == 1
    assert "exitcode  : 2" in done.stderr
    assert done.stderr.count("set runtime.tp_plan=auto, or start without torchrun") == 1


def test_a_model_without_a_plan_is_refused():
    config_of = shrunken("llama_3_2_11b_vision")
    from vlmbench.models.loading import build_config

    where = Placement(device=torch.device("cpu"), dtype=torch.float32, tp_plan="auto", processes=2)
    with pytest.raises(ModelError, match="no tensor-parallel plan for Mllama"):
        building.random_module(build_config(config_of), where, attn_implementation=None, seed=0, name="it")


def test_more_processes_than_gpus(monkeypatch):
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert started_by_torchrun()
    with pytest.raises(DeviceError, match=r"3 processes here and 2 GPU\(s\)"), tensor_parallel.joined():
        pass
