"""The energy of a run, from the GPUs' own counters, with the power of an idle GPU subtracted and shown.

NVML counts the energy of a board since its driver was loaded, in mJ, but brings the count up to date only every
20–100 ms. One run's figure is therefore uncertain by one such step's worth; runs shorter than a step say nothing one
by one and are flagged. Nothing is lost between steps, so means over many runs are right all the same.

Where several processes share a model (tensor parallel), the first one reads the counters of all their GPUs: NVML sees
every GPU of the host, whatever a process was given. A GPU on another host it does not see: then the probe refuses, for
a sum over some of the GPUs would be no energy of the run.

The counters are read when the probe is attached and when it is detached: just outside the timed region, device idle.
"""

from __future__ import annotations

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
        watch = EnergyWatch(counter, self._idle[key], gpus=len(gpus))
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


class EnergyWatch(Watch):
    """Reads a counter when made and when closed.

    Args:
        counter: J.
        idle: what it shows while nothing runs.
        gpus: how many GPUs it sums.
        clock: s.
    """

    def __init__(
        self, counter: Counter, idle: Idle, *, gpus: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._counter, self._idle, self._gpus, self._clock = counter, idle, gpus, clock
        self._energy_j = self._window_s = 0.0
        self._began = clock()
        self._before = counter()

    def close(self) -> None:
        """The second reading; the device is idle."""
        self._energy_j = self._counter() - self._before
        self._window_s = self._clock() - self._began

    def values(self, run: RunFacts) -> dict[str, Any]:
        """Gross and net energy; without a known idle power there is no net."""
        values: dict[str, Any] = {
            "energy_gross_j": self._energy_j,
            "energy_window_ms": 1e3 * self._window_s,
            "idle_power_w": self._idle.power_w,
            "energy_resolution_ms": self._idle.resolution_ms,
            "energy_gpus": self._gpus,
        }
        flags = []
        if self._idle.power_w is not None:
            net = self._energy_j - self._idle.power_w * self._window_s
            values["energy_j"] = net
            values["energy_per_request_j"] = net / run.batch_size
            values["energy_per_output_token_j"] = net / (run.batch_size * run.num_output_tokens)
            if net < 0:
                flags.append("negative_energy")
        if self._idle.resolution_ms is None or 1e3 * self._window_s < self._idle.resolution_ms:
            flags.append("energy_below_resolution")
        return values | {"flags": flags}
