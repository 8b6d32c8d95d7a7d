"""What is refused, doubted or told before and beside measuring: paths, devices, probes, outsized requests, failures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.command_line import command_line
from vlmbench.cli import early_checks, environment, validate
from vlmbench.request import TokenCounts
from vlmbench.runner.guards import Outsized
from vlmbench.runner.reasons import Reasons

Compose = Callable[..., DictConfig]


def job(compose: Compose, *words: str) -> Any:
    config = compose(*words)
    return SimpleNamespace(settings=validate.validate(config), config=OmegaConf.to_container(config, resolve=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=token_comparison", "phase2_results=/nope"], "'phase2_results': no results at '/nope'"),
        (["model.weights=pretrained", "model.path=/nope"], "model folder '/nope' does not exist"),
        (["dry_run=true", "target_device=H300"], "must be a device of the table .*near it: NVIDIA H200"),
        (["runtime.device=cuda:1"], "device 'cuda:1' is not here"),
        (["+sweep.axes.load.concurrency=[1,4]"], "axis 'load.concurrency' is one of load=closed .got load=none"),
        (["probe.timeline.nvtx=true"], "'probe.timeline.nvtx' must be false on device 'cpu'"),
    ],
)
def test_paths_and_devices_are_answered_first(
    compose: Compose, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_checks, "_no_accelerator", lambda: True)
    with pytest.raises(Exception, match=message) as refused:
        early_checks.check(job(compose, *words))
    assert refused.value.exit_status == 2  # type: ignore[attr-defined]


def test_whether_a_machine_has_an_accelerator_is_known_by_its_device_files(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("elsewhere only torch can tell")
    assert early_checks._no_accelerator(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert not early_checks._no_accelerator(tmp_path)


def test_such_a_question_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.argv[1:] = ['experiment=token_comparison', 'phase2_results=/nope', 'output_dir=x']\n"
        "from vlmbench.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "2 False\n", done.stderr


def test_a_list_of_probes_without_the_timeline_is_doubted(compose: Compose) -> None:
    (doubt,) = early_checks.doubts(job(compose, "experiment=smoke", "probe=[kernels]"))
    assert "no stages will be measured" in doubt
    assert "probe=[timeline,kernels] keeps the stages" in doubt
    assert early_checks.doubts(job(compose, "experiment=smoke")) == []
    assert early_checks.doubts(job(compose, "experiment=smoke", "probe=[timeline,memory]")) == []


def counts(tokens: int) -> TokenCounts:
    return TokenCounts(num_input_tokens=tokens, num_prompt_tokens=20, num_vision_tokens=tokens - 20, num_images=1)


def test_a_request_far_above_the_rest_is_told_of() -> None:
    outsized = Outsized()
    assert outsized.words("a", counts(600)) is None
    assert outsized.words("b", counts(700)) is None
    told = outsized.words("panorama.jpg", counts(16_200))
    assert told is not None
    assert "'panorama.jpg' has 16,200 input tokens (25 times those before it, 16,180 of vision)" in told
    assert outsized.words("c", counts(650)) is None
    assert Outsized().words("first", counts(16_200)) is not None, "the first one, too"


def test_failures_are_counted_by_kind() -> None:
    reasons = Reasons()
    for name in ("a.jpg", "b.jpg"):
        reasons.add(f"cannot read '{name}': it is cut off after 17 bytes\nmore")
    assert reasons.words() == "cannot read 'a.jpg': it is cut off after 17 bytes"
    reasons.add("'c.jpg' is 300 times as wide as high")
    assert reasons.words() == (
        "2: cannot read 'a.jpg': it is cut off after 17 bytes, for example; 1: 'c.jpg' is 300 times as wide as high"
    )


@pytest.mark.parametrize("words", [("experiment=smoke",), ("-m", "seed=1,2"), ("experiment=status", "runs=x")])
def test_a_working_directory_that_is_gone_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    lost = "import os, sys; os.rmdir(os.getcwd()); from vlmbench.cli.main import main; main()"
    (tmp_path / "gone").mkdir()
    command = [sys.executable, "-c", lost, *words]
    done = subprocess.run(command, cwd=tmp_path / "gone", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "vlmbench: the working directory is not there any more (No such file or directory): it was removed or replaced",
        "change to one that is (cd ~), and run the command again",
    ]


@pytest.mark.parametrize("given", ["seed=99999999999999999999", "seed=-1", "runtime.threads=1000000"])
def test_a_number_that_torch_cannot_take_is_refused(given: str) -> None:
    """It ended in a traceback, and so many threads in a crash."""
    done = command_line("experiment=smoke", given)
    assert done.status == 2
    assert f"'{given.partition('=')[0]}' must be " in done.said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("output.tokens=1000000000000",), "'output.tokens' must be 1,048,576 or less"),
        (("measurement.prompt_tokens=99999999",), "'measurement.prompt_tokens' must be 1,048,576 or less"),
        (("measurement.image_size=[1000000,1000000]",), "'a side of measurement.image_size' must be 16,384 or less"),
        (("dataset.num_samples=100000000000000",), "'num_samples' must be 1 to 10,000,000"),
        (("experiment=phase2", "sweep=resolution", "sweep.axes.resolution=[1000000]"), "must be 16,384 or less"),
        (("experiment=phase3", "sweep.axes.output_tokens=[1000000000000]"), "must be 1,048,576 or less"),
        (
            ("experiment=phase3", "sweep.axes.output_tokens={start:1,stop:1000000000000,step:1}"),
            "a range has at most 10,000 values",
        ),
    ],
)
def test_a_number_that_would_fill_the_memory_is_refused(words: tuple[str, ...], message: str) -> None:
    """The system ended the process, without a word."""
    done = command_line(*words)
    assert done.status == 2
    assert message in done.said


def test_variables_of_torchrun_that_lead_nowhere_are_named() -> None:
    """They ended in a traceback; a scheduler's script may leave them behind."""
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "two"}
    command = [sys.executable, "-m", "vlmbench", "experiment=smoke"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "it cannot join the others: invalid literal" in done.stderr
    assert done.stderr.splitlines()[1].endswith("or alone: unset RANK WORLD_SIZE")


def test_python_without_docstrings_is_refused() -> None:
    """Transformers reads its own, and failed in words about an architecture."""
    command = [sys.executable, "-OO", "-m", "vlmbench", "experiment=smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "-OO" in done.stderr) == (2, True), done.stderr


def test_the_backend_of_a_notebook_is_not_asked_for() -> None:
    """``MPLBACKEND`` is left to what a notebook starts; a report ended in a traceback."""
    code = (
        "from vlmbench.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: import matplotlib; print(matplotlib.get_backend())"
    )
    command = [sys.executable, "-c", code, "--version"]
    environment = {**os.environ, "MPLBACKEND": "module://nowhere.backend_inline"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1].lower() == "agg", done.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OMP_NUM_THREADS", "abc", "OMP_NUM_THREADS=abc, which is no number of threads"),
        ("CUDA_VISIBLE_DEVICES", "0,abc", "CUDA_VISIBLE_DEVICES=0,abc, which names no GPU"),
        ("TRANSFORMERS_VERBOSITY", "nonsense", "TRANSFORMERS_VERBOSITY=nonsense, which transformers passes over"),
        ("TORCH_LOGS", "nonsense", "TORCH_LOGS=nonsense, which a library refuses: Invalid log settings"),
        ("TORCH_COMPILE_DEBUG", "x", "TORCH_COMPILE_DEBUG=x, which a library refuses: invalid literal"),
        ("HF_HUB_ETAG_TIMEOUT", "soon", "HF_HUB_ETAG_TIMEOUT=soon, which a library refuses: invalid literal"),
    ],
)
def test_a_variable_that_no_library_can_take_is_named_in_two_lines(
    name: str, value: str, words: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "vlmbench", "-q", "experiment=smoke", "runtime.device=cpu", "output_dir=run"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, name: value}, capture_output=True, text=True, check=False
    )
    *_, first, second = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert first.startswith(f"vlmbench: the environment has {words}")
    assert second.startswith("give ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("visible", ["", "0", "0, 1", "-1", "GPU-8932f937-d72c", "MIG-GPU-8932/1/0", "NoDevFiles"])
def test_what_cuda_takes_as_visible_is_taken(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert not list(environment.wrong())


@pytest.mark.parametrize(
    "words", [("--config-dir", "{}"), ("--config-dir={}",), ("hydra.searchpath=[pkg://hydra.conf,file://{}]",)]
)
def test_a_folder_of_configurations_that_cannot_be_read_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    absent, locked, there = tmp_path / "absent", tmp_path / "locked", tmp_path / "there"
    locked.mkdir(mode=0)
    there.mkdir()
    assert command_line(*(word.format(there) for word in words), "--cfg", "job").status == 0
    for folder, why in ((absent, "No such file"), (locked, "Permission denied")):
        if folder is locked and os.geteuid() == 0:
            continue  # root may read it
        done = command_line(*(word.format(folder) for word in words), "--cfg", "job")
        assert done.status == 2
        assert len(done.own) == 2
        assert f"cannot read the folder '{folder}': {why}" in done.own[0]


def test_a_package_of_configurations_that_is_not_there_is_refused() -> None:
    done = command_line("hydra.searchpath=[pkg://not_there]", "--cfg", "job")
    assert done.status == 2
    assert done.own[0].startswith("vlmbench: no folder or package 'not_there' of configurations")
