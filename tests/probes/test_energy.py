"""Energy arithmetic on planted counters that step like a GPU's; the real counter where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.errors import DeviceError
from vlmbench.machine import gpu
from vlmbench.probes.energy import EnergyProbe, EnergyWatch, Idle, measure_idle
from vlmbench.probes.protocol import RunFacts
from vlmbench.runner.execution import complete, in_memory, prepare
from vlmbench.testing.planted import PlantedModel, request


class Board:
    """A board that draws a planted power and brings its counter up to date every ``step_s``; time is planted, too."""

    def __init__(self, watts: float, step_s: float = 0.1) -> None:
        self.now_us, self.step_us = 0, round(step_s * 1e6)  # whole µs, so that steps fall where they should
        self.watts, self.true_j, self.shown_j = watts, 1000.0, 1000.0

    def pass_time(self, seconds: float) -> None:
        left = round(seconds * 1e6)
        while left:
            part = min(left, self.step_us - self.now_us % self.step_us)
            self.now_us += part
            self.true_j += part * 1e-6 * self.watts
            left -= part
            if self.now_us % self.step_us == 0:
                self.shown_j = self.true_j

    def clock(self) -> float:
        return self.now_us / 1e6

    def counter(self) -> float:
        return self.shown_j


def facts(tokens: int = 10, batch: int = 2, T_total: float = 1000) -> RunFacts:
    return RunFacts(T_total=T_total, num_output_tokens=tokens, batch_size=batch)


def run(board: Board, *, seconds: float, watts: float, idle: Idle, **of_run: Any) -> dict[str, Any]:
    watch = EnergyWatch(board.counter, idle, gpus=1, clock=board.clock, sleep=board.pass_time)
    before, board.watts = board.watts, watts
    watch.start()
    board.pass_time(seconds)
    watch.stop()
    board.watts = before
    watch.close()
    return watch.values(facts(**of_run))


IDLE = Idle(power_w=100.0, resolution_ms=100.0)


def test_idle_power_is_subtracted_and_shown() -> None:
    values = run(Board(100), seconds=2.0, watts=600, idle=IDLE, T_total=2000)
    assert values["energy_j"] == pytest.approx(1000, rel=1e-3)  # a step is noticed within half a millisecond
    assert values["energy_gross_j"] == pytest.approx(1200, rel=1e-3)
    assert values["energy_per_request_j"] == pytest.approx(500, rel=1e-3)
    assert values["energy_per_output_token_j"] == pytest.approx(50, rel=1e-3)
    assert values["idle_power_w"] == 100
    assert values["energy_window_ms"] == pytest.approx(2100, abs=1)
    assert values["flags"] == []


def test_a_counter_that_stands_still_is_flagged_and_waited_for_four_steps_only() -> None:
    board = Board(0)
    values = run(board, seconds=0.05, watts=0, idle=IDLE)
    assert board.clock() == pytest.approx(0.85, abs=0.01)
    assert values["energy_j"] < 0  # signed, not repaired
    assert values["flags"] == ["energy_below_resolution", "negative_energy"]


def test_without_idle_power_there_is_no_net_energy() -> None:
    values = run(Board(100), seconds=1.0, watts=600, idle=Idle(power_w=None, resolution_ms=None))
    assert "energy_j" not in values
    assert values["energy_gross_j"] == pytest.approx(600)
    assert values["flags"] == ["energy_below_resolution"]


@given(st.floats(0.03, 3), st.floats(150, 700), st.floats(0, 0.099))
def test_every_run_is_right_whatever_its_length_and_phase(seconds: float, watts: float, phase: float) -> None:
    board = Board(100)
    board.pass_time(phase)
    values = run(board, seconds=seconds, watts=watts, idle=IDLE)
    assert values["energy_j"] == pytest.approx((watts - 100) * seconds, abs=0.2)  # 2 x 0.5 ms at idle, and rounding
    assert values["flags"] == []


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.05, 0.3])
@pytest.mark.parametrize("seconds", [0.06, 0.2, 0.6])
def test_the_mean_has_no_bias_at_any_gap(seconds: float, gap: float) -> None:
    """Readings between steps were too low by 8 % at 600 ms and by 70 % at 60 ms."""
    board = Board(120)
    net = 0.0
    for _ in range(30):
        net += run(board, seconds=seconds, watts=600, idle=Idle(power_w=120.0, resolution_ms=100.0))["energy_j"]
        board.pass_time(gap + 0.0037)
    assert net / 30 == pytest.approx(480 * seconds, rel=0.005)


@pytest.mark.parametrize(("factor", "flags"), [(1.03, []), (0.97, []), (1.1, ["energy_unverified"])])
def test_energy_unlike_the_integral_of_sampled_power_is_flagged(factor: float, flags: list[str]) -> None:
    """zeus#181: a counter of 187 J where the integral says 327 J."""
    board = Board(100)
    watch = EnergyWatch(
        board.counter, IDLE, gpus=1, clock=board.clock, sleep=board.pass_time, integral=lambda seconds: 100 * seconds * factor
    )  # fmt: skip
    board.pass_time(4.0)
    watch.close()
    values = watch.values(facts())
    assert values["energy_integral_j"] == pytest.approx(410 * factor, rel=0.01)
    assert [flag for flag in values["flags"] if flag != "negative_energy"] == flags


def test_idle_power_and_resolution_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(73.0, step_s=0.1)
    board.pass_time(0.033)
    monkeypatch.setattr("time.sleep", board.pass_time)
    idle = measure_idle(board.counter, seconds=0.6, clock=board.clock)
    assert idle.power_w == pytest.approx(73.0, rel=0.01)
    assert idle.resolution_ms == pytest.approx(100, rel=0.02)


def test_a_slow_counter_is_watched_longer_and_a_dead_one_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(73.0, step_s=0.9)
    monkeypatch.setattr("time.sleep", board.pass_time)
    assert measure_idle(board.counter, seconds=0.6, clock=board.clock).power_w == pytest.approx(73.0, rel=0.01)
    began = board.clock()
    assert measure_idle(lambda: 5.0, seconds=0.6, clock=board.clock) == Idle(power_w=None, resolution_ms=None)
    assert board.clock() - began == pytest.approx(2.4, abs=0.01)


def test_without_a_gpu_the_first_attach_says_what_is_needed() -> None:
    model = PlantedModel()
    with pytest.raises(DeviceError, match=r"needs an NVIDIA GPU and nvidia-ml-py .*the model is on cpu"):
        complete(model, prepare(model, in_memory(request())), [EnergyProbe()], [])


class FakeNvml:
    """NVML of a host with some GPUs, each with a counter of its own."""

    NVMLError = RuntimeError

    def __init__(self, **counters_mj: int) -> None:
        self.counters_mj = counters_mj

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.counters_mj:
            raise RuntimeError("not found")
        return uuid

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"Made GPU"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self.counters_mj[handle]


class Shared(PlantedModel):
    """One process's view of a model that processes on other GPUs share."""

    def __init__(self, *others: str) -> None:
        super().__init__()
        self.others = others

    @property
    def devices(self) -> list[torch.device]:
        return [torch.device("cuda", 0)]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {**super().facts, "other_gpus": list(self.others)}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml(**{"GPU-a": 5_000, "GPU-b": 70_000, "GPU-c": 1_000})
    gpu._by_uuid.cache_clear()
    monkeypatch.setattr(gpu, "_binding", lambda: fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="a"))
    yield fake
    gpu._by_uuid.cache_clear()


def test_the_gpus_of_all_processes_are_summed_and_no_other(host: FakeNvml) -> None:
    probe, model = EnergyProbe(), Shared("GPU-b")
    probe._idle["cuda:0 GPU-b"] = Idle(power_w=None, resolution_ms=None)
    with probe.watch(model) as watch:
        for uuid, spent in (("GPU-a", 300_000), ("GPU-b", 200_000), ("GPU-c", 900_000)):
            host.counters_mj[uuid] += spent
    values = watch.values(facts())
    assert values["energy_gross_j"] == pytest.approx(500)
    assert values["energy_gpus"] == 2


def test_a_gpu_of_another_host_is_refused_not_left_out(host: FakeNvml) -> None:
    with (
        pytest.raises(DeviceError, match=r"does not know the GPU GPU-far(.|\n)*Leave it out"),
        EnergyProbe().watch(Shared("GPU-b", "GPU-far")),
    ):
        pass


def test_idle_time_is_checked() -> None:
    with pytest.raises(ValueError, match="'idle_s' must be between"):
        EnergyProbe(idle_s=0)


@pytest.mark.gpu
def test_energy_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("pynvml")

    class Multiplying:
        """Keeps the GPU busy for about two seconds."""

        device = torch.device("cuda")
        devices = (device,)
        facts: Mapping[str, Any] = {}

    probe = EnergyProbe()
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    with probe.watch(Multiplying()) as watch:  # type: ignore[arg-type]
        end = torch.cuda.Event()
        for _ in range(1000):
            a @ a
        end.record()
        torch.cuda.synchronize()
    values = watch.values(facts())
    assert 1 < values["energy_resolution_ms"] < 1000
    assert 5 < values["idle_power_w"] < 400
    assert values["energy_j"] > 20
    assert values["energy_gross_j"] / (values["energy_window_ms"] / 1e3) < 1500  # W
