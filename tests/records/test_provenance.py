"""Where numbers come from: stored fully, without secrets; like and unlike runs told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.errors import DeviceError, DirectoryConflictError, InputError
from vlmbench.machine import gpu, installation
from vlmbench.machine.host import device_state, slurm_ids
from vlmbench.machine.installation import code_state, git_state, source_sha256
from vlmbench.records.comparable import with_mixture_named
from vlmbench.records.files import write_whole
from vlmbench.records.provenance import (
    IGNORED,
    begin_session,
    check_alike,
    check_directory,
    collect,
    end_session,
    fingerprint,
    read_provenance,
)
from vlmbench.records.store import RecordStore
from vlmbench.schema import Mode, Record, Status

CONFIG = {
    "seed": 3,
    "output_dir": "/scratch/alice/run",
    "model": {"name": "tiny", "image_token": "<image>"},
    "dataset": {"name": "vqa_v2", "root": "/home/alice/vqa"},
    "measurement": {"repeats": 2, "time_limit_s": 60, "sizes": [1, 2]},
}


def changed(**values: object) -> dict[str, object]:
    config = json.loads(json.dumps(CONFIG))
    for key, value in values.items():
        node = config
        *path, last = key.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    return config


def collected(config: dict[str, object] | None = None) -> dict[str, object]:
    facts = {"weights": "random", "dtype": "torch.float32", "attention": "sdpa", "folder": "/home/alice/models/x"}
    return collect(config or CONFIG, model_facts=facts, device="cpu", seed=3)


class TestFingerprint:
    def test_order_of_keys_does_not_count(self) -> None:
        assert fingerprint(CONFIG) == fingerprint(dict(reversed(CONFIG.items())))

    @pytest.mark.parametrize("change", [{"output_dir": "/x"}, {"measurement__time_limit_s": 5}, {"progress": True}])
    def test_what_does_not_change_the_measurement_does_not_count(self, change: dict[str, object]) -> None:
        assert fingerprint(changed(**change)) == fingerprint(CONFIG)

    @pytest.mark.parametrize("change", [{"seed": 4}, {"measurement__sizes": [2, 1]}, {"new": {}}, {"seed": "3"}])
    def test_everything_else_does(self, change: dict[str, object]) -> None:
        assert fingerprint(changed(**change)) != fingerprint(CONFIG)

    @given(st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.floats(allow_nan=False), max_size=5))
    def test_it_is_stable_across_a_round_trip(self, config: dict[str, object]) -> None:
        assert fingerprint(config) == fingerprint(json.loads(json.dumps(config)))


class TestDirectory:
    def test_a_new_one_and_a_continued_one(self, tmp_path: Path) -> None:
        assert check_directory(tmp_path / "new", CONFIG) is False
        whole, warnings = begin_session(tmp_path, collected())
        assert (len(whole["sessions"]), warnings) == (1, [])
        assert check_directory(tmp_path, changed(output_dir="/elsewhere")) is True
        whole, warnings = begin_session(tmp_path, collected())
        assert [s["session"] for s in whole["sessions"]] == [0, 1]
        assert warnings == []
        (tmp_path / "provenance.json").unlink()  # whatever became of it: what was begun is ended
        end_session(tmp_path, whole, device="cpu", extra={"rows": 5})
        stored = read_provenance(tmp_path)
        assert stored["sessions"][0]["state_after"] is None
        assert stored["sessions"][1]["state_after"]["unix_s"] >= stored["sessions"][1]["started_unix_s"]
        assert stored["sessions"][1]["rows"] == 5

    def test_another_configuration_is_refused_with_what_differs(self, tmp_path: Path) -> None:
        begin_session(tmp_path, collected())
        other = changed(seed=4, dataset__root="/home/bob/vqa", extra=1)
        del other["model"]["image_token"]
        with pytest.raises(DirectoryConflictError) as caught:
            check_directory(tmp_path, other)
        message = str(caught.value)
        assert "seed: 3 → 4" in message
        assert "extra: (absent) → 1" in message
        assert 'model.image_token: "<image>" → (absent)' in message
        assert 'dataset.root: "…/vqa#' in message
        assert "output_dir:" not in message

    def test_rows_of_nobody_are_refused(self, tmp_path: Path) -> None:
        with RecordStore(tmp_path) as store:
            assert check_directory(tmp_path, CONFIG) is False  # an empty file is nobody's work
            store.append(Record(point_id="p", sample_id="s", repeat=0, mode=Mode.BARE, status=Status.OK))
        with pytest.raises(DirectoryConflictError, match=r"no provenance\.json"):
            check_directory(tmp_path, CONFIG)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
    def test_a_damaged_file_is_an_error_in_words(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "provenance.json").write_text(content)
        with pytest.raises(InputError, match=r"provenance\.json.*\n?.*output_dir=DIR"):
            check_directory(tmp_path, CONFIG)

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("")
        with pytest.raises(InputError, match="is a file"):
            check_directory(tmp_path / "f", CONFIG)

    def test_changed_code_host_and_gpu_are_warned_of(self, tmp_path: Path) -> None:
        """Two GPUs of one kind, two hosts with the same: one result, with a word on it."""
        begin_session(tmp_path, collected())
        current = collected()
        session = current["sessions"][0]
        session["code"]["vlmbench"]["source_sha256"] = "0" * 64
        session["device"] = {**session["device"], "uuid": "GPU-2"}
        session["host"] = {**session["host"], "host": "0" * 12}
        whole, warnings = begin_session(tmp_path, current)
        assert [w.split()[:2] for w in warnings] == [["the", "code"], ["GPU", "changed"], ["host", "changed"]]
        assert read_provenance(tmp_path)["sessions"][1]["warnings"] == warnings
        assert "unlike" not in whole


def on_a_gpu(**model: object) -> dict[str, object]:
    """As :func:`collected`, on an H200."""
    device = {"type": "cuda", "name": "NVIDIA H200", "uuid": "GPU-1", "power_limit_w": 700.0}
    whole = collected()
    whole["device"] = whole["sessions"][0]["device"] = device
    facts = {"dtype": "bfloat16", "attention": "flash_attention_2"} | model
    whole["sessions"][0]["model"].update(facts)
    whole["runtime"] |= facts
    return whole


class TestUnlikeSessions:
    def test_other_hardware_dtype_and_kernel_are_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        begin_session(tmp_path, on_a_gpu())
        before = read_provenance(tmp_path)
        with pytest.raises(DirectoryConflictError) as caught:
            begin_session(tmp_path, collected())
        message = str(caught.value)
        for part in ("device.type: cuda, then cpu", "device.name: NVIDIA H200, then", "runtime.dtype: bfloat16, then float32",
                     "runtime.attention: flash_attention_2, then sdpa", "output_dir=DIR", "allow_unlike=true"):  # fmt: skip
            assert part in message
        assert read_provenance(tmp_path) == before

    def test_what_is_known_before_a_model_is_loaded_is_enough(self, tmp_path: Path) -> None:
        check_alike(tmp_path, {"device": {"type": "cpu"}})  # nothing was measured yet
        begin_session(tmp_path, on_a_gpu())
        check_alike(tmp_path, {"device": {"type": "cuda", "name": "NVIDIA H200", "power_limit_w": 700.04}})
        for device in ({"type": "cpu"}, {"name": "NVIDIA A100"}, {"power_limit_w": 500.0}):
            with pytest.raises(DirectoryConflictError, match=r"device\."):
                check_alike(tmp_path, {"device": device})
            check_alike(tmp_path, {"device": device}, allow_unlike=True)
        begin_session(tmp_path / "team", on_a_gpu(processes=2))
        with pytest.raises(DirectoryConflictError, match=r"runtime\.processes: 2, then 4"):
            check_alike(tmp_path / "team", {"model": {"processes": 4}})

    def test_when_told_to_the_top_names_the_mixture(self, tmp_path: Path) -> None:
        begin_session(tmp_path, on_a_gpu())
        here = collected()
        whole, warnings = begin_session(tmp_path, here, allow_unlike=True)
        assert whole["device"]["name"] == f"NVIDIA H200 + {here['device']['name']}"
        assert whole["device"]["type"] == "cuda + cpu"
        assert (whole["runtime"]["dtype"], whole["runtime"]["attention"]) == (
            "bfloat16 + float32", "flash_attention_2 + sdpa",
        )  # fmt: skip
        assert whole["model"]["dtype"] == "bfloat16 + float32"
        assert "runtime.dtype: bfloat16, then float32" in whole["unlike"]
        assert "rows of unlike sessions are mixed here" in warnings[0]
        check_alike(tmp_path, here["sessions"][0])  # no third kind: nothing new to refuse
        again, _ = begin_session(tmp_path, here)
        assert again["device"] == whole["device"]
        assert with_mixture_named(again) == again

    def test_saying_so_does_not_make_another_configuration(self) -> None:
        assert fingerprint({**CONFIG, "allow_unlike": True}) == fingerprint({**CONFIG, "allow_unlike": False})


def test_code_that_changed_after_submit_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMBENCH_SUBMITTED_SOURCE", code_state()["vlmbench"]["source_sha256"])
    assert begin_session(tmp_path / "same", collected())[1] == []
    monkeypatch.setenv("VLMBENCH_SUBMITTED_SOURCE", "0" * 64)
    _, warnings = begin_session(tmp_path / "other", collected())
    assert warnings == ["the code changed between submit and start (sources 000000000000 at submit)"]
    assert read_provenance(tmp_path / "other")["sessions"][0]["warnings"] == warnings


def test_what_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "gpu")
    monkeypatch.setenv("SLURM_JOB_USER", "alice")
    monkeypatch.setattr(
        sys, "argv", ["/home/alice/bin/vlmbench", "dataset.root=/home/alice/vqa", "model.hub_token=zyxw"]
    )
    whole = collected()
    text = json.dumps(whole, ensure_ascii=False)
    for hidden in ("alice", "hf_", "zyxw", f'"{os.uname().nodename}"', str(Path.home()) + "/"):
        assert hidden not in text, hidden
    assert whole["config"]["dataset"]["name"] == "vqa_v2"
    assert whole["config"]["model"]["image_token"] == "<image>"
    session = whole["sessions"][0]
    assert session["slurm"] == {"job_id": "77", "partition": "gpu"}
    assert session["command"][0] == "vlmbench"
    assert session["command"][2] == "model.hub_token=***"
    assert whole["model"]["name"] == "tiny"
    assert whole["runtime"]["attention"] == "sdpa"
    assert whole["software"]["packages"]["numpy"]
    assert whole["host"]["memory_bytes"] > 2**20
    assert whole["device"]["type"] == "cpu"
    assert whole["ignored"] == list(IGNORED)


def test_slurm_ids_take_nothing_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1; rm -rf")
    assert "job_id" not in slurm_ids()


def test_a_snapshot_of_the_cpu() -> None:
    state = device_state("cpu")
    assert state["unix_s"] > 0
    assert state["load_1m"] >= 0


class TestSource:
    def test_a_checkout(self, tmp_path: Path) -> None:
        def git(*arguments: str) -> None:
            identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
            subprocess.run(["git", *identity, "-C", tmp_path, *arguments], check=True, capture_output=True)

        assert git_state(tmp_path) is None
        git("init")
        assert git_state(tmp_path) is None, "no commit yet"
        (tmp_path / "a.py").write_text("1")
        git("add", "a.py")
        git("commit", "-m", "x")
        clean = git_state(tmp_path)
        assert clean["dirty"] is False
        assert clean["diff_sha256"] is None
        (tmp_path / "results.json").write_text("{}")
        assert git_state(tmp_path) == clean, "results beside the code are no change of code"
        (tmp_path / "a.py").write_text("2")
        first = git_state(tmp_path)
        (tmp_path / "a.py").write_text("3")
        assert first["dirty"] is True
        assert first["diff_sha256"] != git_state(tmp_path)["diff_sha256"]

    def test_without_git(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        installation._code_state.cache_clear()
        assert git_state(Path.cwd()) is None
        state = code_state()["vlmbench"]
        installation._code_state.cache_clear()
        assert state["git"] is None
        assert state["source_sha256"]

    def test_the_source_hash_sees_names_and_contents(self, tmp_path: Path) -> None:
        write_whole(tmp_path / "a" / "x.py", "1")
        first = source_sha256(tmp_path)
        write_whole(tmp_path / "a" / "x.txt", "1")
        assert source_sha256(tmp_path) == first
        (tmp_path / "a" / "x.py").rename(tmp_path / "a" / "y.py")
        assert source_sha256(tmp_path) != first


class Binding:
    """Answers like NVML's binding: the machine of the test need not have a GPU."""

    NVMLError = RuntimeError

    def __init__(self, mask: int) -> None:
        self.mask = mask

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:
        if handle is None:
            raise RuntimeError("not supported")
        return self.mask


def test_throttle_reasons_have_names() -> None:
    def reasons(mask: int, handle: str | None = "handle") -> tuple[str, ...] | None:
        return gpu.Gpu(nvml=Binding(mask), handle=handle, name="made").reasons()

    assert reasons(0x4 | 0x40) == ("sw_power_cap", "hw_thermal_slowdown")
    assert reasons(0x1000) == ("unknown_0x1000",)
    assert reasons(0, None) is None


def test_without_nvml_nothing_is_known_and_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise DeviceError("nvidia-ml-py is not installed")

    monkeypatch.setattr(gpu, "_binding", missing)
    found = gpu.find_gpu("cuda:0")
    assert isinstance(found, gpu.NoGpu)
    assert "nvidia-ml-py" in found.state()["note"]
    assert found.facts()["power_limit_w"] is None


def test_a_gpu_in_others_hands_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "gpu_uuid", lambda device: "GPU-1")
    monkeypatch.setattr(gpu, "gpu_state", lambda device: {"other_processes": 2, "memory_used_bytes": 3 * 2**30})
    assert gpu.busy_with("cuda:0") == "2 other processes on GPU GPU-1, 3.0 GiB in use altogether"
    assert str(gpu.busy_with("cuda:0", known=1)).startswith("1 other process on"), (
        "a member of its turns is no stranger"
    )
    assert gpu.busy_with("cuda:0", known=2) is None
    for unknown in ({"other_processes": 0}, {"other_processes": None}, {"note": "no NVML"}):
        monkeypatch.setattr(gpu, "gpu_state", lambda device, state=unknown: state)
        assert gpu.busy_with("cuda:0") is None
    assert gpu._others([os.getpid(), 1, 2]) == 2
    assert gpu._others([]) == 0


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    facts, state = gpu.gpu_facts("cuda:0"), device_state("cuda:0")
    assert facts["uuid"].startswith("GPU-")
    assert facts["memory_bytes"] > 2**30
    assert facts["driver"]
    assert "note" in state or (state["sm_clock_mhz"] > 0 and 0 < state["temperature_c"] < 120)
