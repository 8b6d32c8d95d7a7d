"""The energy of a run, from the GPUs' own counters, with the power of an idle GPU subtracted and shown.

NVML counts the energy of a board since its driver was loaded, in mJ, but brings the count up to date only every
20–100 ms. A reading between two steps is stale: before a run it lacks idle time, after it busy time, so that the mean
of many such readings is too low by (busy power - idle power) × step / 2 a run. Both readings therefore wait for a step
of the counter, at which it is exact: the first for one before the run, the second for the next one after it. What the
idle GPU takes in between is subtracted. The waiting lies outside every clock.

Where several processes share a model (tensor parallel), the first one reads the counters of all their GPUs: NVML sees
every GPU of the host, whatever a process was given. A GPU on another host it does not see: then the probe refuses, for
a sum over some of the GPUs would be no energy of the run.

The counters are read when the probe is attached and when it is detached: outside the timed region, device idle. From
3 s on, the energy is checked against the integral of the power that the driver sampled itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from vlmbench.errors import DeviceError, MeasurementError
from vlmbench.machine.gpu import Gpu, gpus_of
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.probes.protocol import RunFacts, Watch

Counter = Callable[[], float]
"""Energy since some moment in the past, J."""


@dataclass(frozen=True, kw_only=True)
class Idle:
    """What an idle counter shows.

    Args:
        power_w: between the first and the last step seen; None if fewer than two were.
        resolution_ms: median time between steps; None if fewer than two were.
    """

    power_w: float | None
    resolution_ms: float | None


@dataclass(frozen=True, kw_only=True)
class EnergyProbe:
    """Reads the total-energy counter of every GPU of the model before and after each run.

    Args:
        idle_s: how long idle power and the counter's steps are watched, once, when the probe is first attached.
    """

    idle_s: float = 0.6
    _idle: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # devices to Idle

    name = "energy"
    own_run = False
    max_output_tokens = None

    def __post_init__(self) -> None:
        if not 0.2 <= self.idle_s <= 60:
            raise ValueError(f"'idle_s' must be between 0.2 and 60 (got {self.idle_s:g})")

    def applies(self, model: VisionLanguageModel) -> bool:  # noqa: ARG002
        """Always: who asks for energy where it cannot be read is told so."""
        return True

    @contextmanager
    def watch(self, model: VisionLanguageModel) -> Iterator[Watch]:
        """Read the counters on entering and on leaving.

        Raises:
            DeviceError: no NVIDIA GPU, no NVML, or a GPU without the counter (older than Volta).
        """
        gpus = _gpus_with_counter(model)
        counter = _sum_of(gpus)
        key = " ".join(map(str, [*model.devices, *(model.facts.get("other_gpus") or ())]))
        if key not in self._idle:
            self._idle[key] = measure_idle(counter, seconds=self.idle_s)
        watch = EnergyWatch(counter, self._idle[key], gpus=len(gpus), integral=_integral_of(gpus))
        try:
            yield watch
        finally:
            watch.close()


def _gpus_with_counter(model: VisionLanguageModel) -> list[Gpu]:
    try:
        gpus = gpus_of(model.devices, model.facts.get("other_gpus") or ())
    except DeviceError as error:
        raise DeviceError(
            f"the energy probe cannot read the GPU: {error}.\nLeave it out: probe=[timeline,…]"
        ) from error
    if not gpus:
        raise DeviceError(
            "the energy probe needs an NVIDIA GPU and nvidia-ml-py (pip install 'vlmbench-latency[gpu]'); "
            f"the model is on {model.device}.\nLeave it out: probe=[timeline,…]"
        )
    for gpu in gpus:
        if gpu.energy_j() is None:
            raise DeviceError(
                f"{gpu.name} has no energy counter (Volta and newer do).\nLeave it out: probe=[timeline,…]"
            )
    return gpus


def _sum_of(gpus: Sequence[Gpu]) -> Counter:
    return lambda: sum(map(_energy_j, gpus))


def _energy_j(gpu: Gpu) -> float:
    energy = gpu.energy_j()
    if energy is None:
        raise MeasurementError(f"the energy counter of {gpu.name} does not answer any more")
    return energy


def _integral_of(gpus: Sequence[Gpu]) -> Integral:
    def integral(seconds: float) -> float | None:
        found = [gpu.sampled_energy_j(seconds) for gpu in gpus]
        known = [energy for energy in found if energy is not None]
        return sum(known) if len(known) == len(found) else None

    return integral


def measure_idle(counter: Counter, *, seconds: float, clock: Callable[[], float] = time.perf_counter) -> Idle:
    """Watch a counter for ``seconds``, up to four times as long until it has stepped twice.

    Power is taken from step to step, so that the counter's own delay does not enter.
    """
    began = clock()
    steps: list[tuple[float, float]] = []  # (when, J)
    last = counter()
    while (elapsed := clock() - began) < seconds or (len(steps) < 2 and elapsed < 4 * seconds):
        now = counter()
        if now != last:
            steps.append((clock(), now))
            last = now
        time.sleep(0.0005)
    if len(steps) < 2:
        return Idle(power_w=None, resolution_ms=None)
    (first_time, first), (last_time, final) = steps[0], steps[-1]
    gaps = [1e3 * (b[0] - a[0]) for a, b in pairwise(steps)]
    return Idle(power_w=(final - first) / (last_time - first_time), resolution_ms=median(gaps))


Integral = Callable[[float], float | None]
"""Energy of the last so many seconds by sampled power, J; None where power is not sampled, nan where samples lack."""
_CHECKED_FROM_S = 3.0  # the driver averages power over up to a second
_AGREEMENT = 0.05
_PATIENCE = 4  # times the counter's step, then the reading is taken as it is
_POLL_S = 0.0005


class EnergyWatch(Watch):
    """Reads a counter at one of its steps before a run, and at the next one after it.

    Args:
        counter: J.
        idle: what it shows while nothing runs.
        gpus: how many GPUs it sums.
        clock: s.
        sleep: waits, s.
        integral: what sampled power says; None where it says nothing.
    """

    def __init__(
        self,
        counter: Counter,
        idle: Idle,
        *,
        gpus: int,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] | None = None,
        integral: Integral | None = None,
    ) -> None:
        self._counter, self._idle, self._gpus, self._clock = counter, idle, gpus, clock
        self._sleep = sleep or time.sleep
        self._integral = integral
        self._integral_j: float | None = None
        self._rise_j = self._window_s = 0.0
        self._before, self._began, self._aligned = self._at_step()

    def _at_step(self) -> tuple[float, float, bool]:
        """(J, s, whether the counter had just stepped)."""
        last, now = self._counter(), self._clock()
        if self._idle.resolution_ms is None:
            return last, now, False
        limit = now + _PATIENCE * self._idle.resolution_ms / 1e3
        while self._clock() < limit:
            if (value := self._counter()) != last:
                return value, self._clock(), True
            self._sleep(_POLL_S)
        return last, self._clock(), False

    def close(self) -> None:
        """The second reading; the device is idle."""
        after, ended, aligned = self._at_step()
        self._rise_j, self._window_s = after - self._before, ended - self._began
        self._aligned = self._aligned and aligned
        if self._integral is not None and self._window_s >= _CHECKED_FROM_S:
            self._integral_j = self._integral(self._window_s)

    def values(self, run: RunFacts) -> dict[str, Any]:
        """Gross and net energy of the run; without a known idle power the gross one of the window between readings."""
        by_power = self._integral_j
        known = by_power is not None and not math.isnan(by_power)
        values: dict[str, Any] = {
            "energy_gross_j": self._rise_j,
            "energy_window_ms": 1e3 * self._window_s,
            "energy_integral_j": by_power if known else None,
            "idle_power_w": self._idle.power_w,
            "energy_resolution_ms": self._idle.resolution_ms,
            "energy_gpus": self._gpus,
        }
        flags = [] if self._aligned else ["energy_below_resolution"]
        if self._idle.power_w is not None:
            net = self._rise_j - self._idle.power_w * self._window_s
            values["energy_j"] = net
            values["energy_gross_j"] = net + self._idle.power_w * run.T_total / 1e3
            values["energy_per_request_j"] = net / run.batch_size
            values["energy_per_output_token_j"] = net / (run.batch_size * run.num_output_tokens)
            if net < 0:
                flags.append("negative_energy")
        if by_power is not None and not known:
            flags.append("energy_samples_missing")
        elif by_power is not None and abs(by_power - self._rise_j) > _AGREEMENT * by_power:
            flags.append("energy_unverified")
        return values | {"flags": flags}
