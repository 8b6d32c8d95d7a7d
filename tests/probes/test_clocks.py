"""Flags of clocks and throttling, from planted readings; the real ones where there is a GPU."""

from __future__ import annotations

import pytest

from vlmbench.machine.gpu import GpuClocks
from vlmbench.probes.clocks import ClocksProbe, compare
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.runner.execution import complete, in_memory, prepare
from vlmbench.schema import columns_of
from vlmbench.testing.planted import PlantedModel, request

FINE = GpuClocks(sm_clock_mhz=1980, memory_clock_mhz=3201, temperature_c=40, power_ns=5_000_000, thermal_ns=0)


def state(**changed: object) -> GpuClocks:
    return GpuClocks(**{name: getattr(FINE, name) for name in FINE.__dataclass_fields__} | changed)  # type: ignore[arg-type]


def test_a_quiet_run_has_values_and_no_flags() -> None:
    values = compare([FINE], [state(temperature_c=42)], drop=0.05)
    assert values == {
        "sm_clock_before_mhz": 1980,
        "sm_clock_after_mhz": 1980,
        "memory_clock_after_mhz": 3201,
        "temperature_before_c": 40,
        "temperature_after_c": 42,
        "throttled_power_ms": 0.0,
        "throttled_thermal_ms": 0.0,
        "flags": [],
    }


@pytest.mark.parametrize(("clock", "flags"), [(1890, []), (1880, ["clock_drop"]), (345, ["clock_drop"]), (2100, [])])
def test_a_drop_is_flagged_from_the_given_share_on(clock: int, flags: list[str]) -> None:
    assert compare([FINE], [state(sm_clock_mhz=clock)], drop=0.05)["flags"] == flags


def test_a_reason_that_came_up_is_flagged_one_that_was_there_before_is_not() -> None:
    held = state(reasons=("sw_power_cap",))
    both = state(reasons=("sw_power_cap", "hw_thermal_slowdown"))
    assert compare([FINE], [held], drop=0.05)["flags"] == ["throttled:sw_power_cap"]
    assert compare([held], [held], drop=0.05)["flags"] == []
    assert compare([held], [both], drop=0.05)["flags"] == ["throttled:hw_thermal_slowdown"]


def test_throttling_that_came_and_went_within_the_run_is_seen() -> None:
    values = compare([FINE], [state(power_ns=12_500_000, thermal_ns=1_000_000)], drop=0.05)
    assert (values["throttled_power_ms"], values["throttled_thermal_ms"]) == (7.5, 1.0)
    assert values["flags"] == ["throttled:power", "throttled:thermal"]


def test_of_several_gpus_the_slowest_and_hottest_count() -> None:
    values = compare([FINE, FINE], [FINE, state(sm_clock_mhz=1200, temperature_c=80)], drop=0.05)
    assert (values["sm_clock_after_mhz"], values["temperature_after_c"]) == (1200, 80)
    assert values["flags"] == ["clock_drop"]


def test_what_a_gpu_does_not_tell_is_absent() -> None:
    values = compare([GpuClocks()], [GpuClocks()], drop=0.05)
    assert values.pop("flags") == []
    assert set(values.values()) == {None}


def test_on_a_cpu_it_is_harmless() -> None:
    model = PlantedModel()
    outcome = complete(model, prepare(model, in_memory(request())), [TimelineProbe(), ClocksProbe()], [])
    assert not columns_of("probe clocks") & set(outcome.values)
    assert outcome.values["T_total"] > 0


def test_drop_is_checked() -> None:
    with pytest.raises(ValueError, match="'drop' must be between 0 and 1"):
        ClocksProbe(drop=0)


@pytest.mark.gpu
def test_clocks_of_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("pynvml")
    from vlmbench.machine.gpu import open_gpus

    torch.ones(1, device="cuda")
    (gpu,) = open_gpus([torch.device("cuda")])
    found = gpu.clocks()
    assert found.sm_clock_mhz is not None
    assert 100 < found.sm_clock_mhz < 5000
    assert found.temperature_c is not None
    assert 10 < found.temperature_c < 120
