"""Clocks, temperature and throttling of the GPUs around each run: known causes of an odd time.

NVML is asked when the probe is attached and when it is detached: just outside the timed region. What happened in
between shows in NVML's counters of time spent throttled. On a CPU, and where NVML is missing, there are no values.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vlmbench.errors import DeviceError
from vlmbench.machine.gpu import SLOWING, Gpu, GpuClocks, gpus_of
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.probes.protocol import RunFacts, Watch


@dataclass(frozen=True, kw_only=True)
class ClocksProbe:
    """Flags runs in which a GPU's clock fell (``clock_drop``) or was held back (``throttled:<reason>``).

    Args:
        drop: the share by which the SM clock must fall from before to after a run.
    """

    drop: float = 0.05

    name = "clocks"
    own_run = False
    max_output_tokens = None

    def __post_init__(self) -> None:
        if not 0 < self.drop < 1:
            raise ValueError(f"'drop' must be between 0 and 1 (got {self.drop:g})")

    def applies(self, model: VisionLanguageModel) -> bool:  # noqa: ARG002
        """To every model; without an NVIDIA GPU it writes nothing."""
        return True

    @contextmanager
    def watch(self, model: VisionLanguageModel) -> Iterator[Watch]:
        """Ask on entering and on leaving."""
        try:
            gpus = gpus_of(model.devices, model.facts.get("other_gpus") or ())
        except (
            DeviceError
        ):  # NVML is missing (provenance says so), or blind to one; a run without clocks is still a run
            gpus = []
        watch = _ClocksWatch(gpus, self.drop)
        try:
            yield watch
        finally:
            watch.close()


class _ClocksWatch(Watch):
    def __init__(self, gpus: Sequence[Gpu], drop: float) -> None:
        self._gpus, self._drop, self._read_ms = gpus, drop, 0.0
        self._after: list[GpuClocks] = []
        self._before = self._read()

    def _read(self) -> list[GpuClocks]:
        began = time.perf_counter_ns()
        states = [gpu.clocks() for gpu in self._gpus]
        self._read_ms += (time.perf_counter_ns() - began) / 1e6
        return states

    def close(self) -> None:
        self._after = self._read()

    def values(self, run: RunFacts) -> dict[str, Any]:  # noqa: ARG002 – clocks do not depend on what came out
        if not self._gpus:
            return {}
        return compare(self._before, self._after, drop=self._drop) | {"clocks_read_ms": self._read_ms}


def compare(before: Sequence[GpuClocks], after: Sequence[GpuClocks], *, drop: float) -> dict[str, Any]:
    """The metrics of a run and its flags, from readings of the same GPUs before and after it.

    Clocks are those of the slowest GPU, temperatures of the hottest. A reason that holds at both ends held before the
    run, too: it explains a level, not an outlier, and is flagged only where the time spent held back grew.
    """
    values: dict[str, Any] = {
        "sm_clock_before_mhz": _least(s.sm_clock_mhz for s in before),
        "sm_clock_after_mhz": _least(s.sm_clock_mhz for s in after),
        "memory_clock_after_mhz": _least(s.memory_clock_mhz for s in after),
        "temperature_before_c": _most(s.temperature_c for s in before),
        "temperature_after_c": _most(s.temperature_c for s in after),
        "throttled_power_ms": _grown_ms([s.power_ns for s in before], [s.power_ns for s in after]),
        "throttled_thermal_ms": _grown_ms([s.thermal_ns for s in before], [s.thermal_ns for s in after]),
    }
    flags = set()
    for old, new in zip(before, after, strict=True):
        if old.sm_clock_mhz and new.sm_clock_mhz is not None and new.sm_clock_mhz < (1 - drop) * old.sm_clock_mhz:
            flags.add("clock_drop")
        came_up = set(new.reasons or ()) - set(old.reasons or ())
        flags |= {f"throttled:{reason}" for reason in came_up & SLOWING}
    flags |= {f"throttled:{kind}" for kind in ("power", "thermal") if values[f"throttled_{kind}_ms"]}
    return values | {"flags": sorted(flags)}


def _least(values: Iterator[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _most(values: Iterator[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _grown_ms(before: Sequence[int | None], after: Sequence[int | None]) -> float | None:
    grown = [(new - old) / 1e6 for old, new in zip(before, after, strict=True) if old is not None and new is not None]
    return max(grown, default=None)
